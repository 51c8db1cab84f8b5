"""Trainings that are killed end as those that are not: tools/chaos.py."""

import pytest

from tools import chaos


@pytest.mark.long
def test_trainings_that_are_killed_end_as_the_whole_one(tmp_path):
    record = chaos.chaos(tmp_path, kills=3, seed=0)
    assert sum(row["kills"] for row in record["trainings"]) == 3
    assert record["equal"] == len(record["trainings"])


@pytest.mark.parametrize(
    ("epochs", "follow"),
    [
        ([[0, 1, 2], [2, 3], [4, 5, 6, 7]], True),
        ([list(range(8))], True),
        ([[0, 1, 2], [1, 2, 3, 4, 5, 6, 7]], False),  # One trained twice.
        ([[0, 1, 2], [4, 5, 6, 7]], False),  # One left out.
        ([[0, 2], [3, 4, 5, 6, 7]], False),
        ([[1, 2, 3, 4, 5, 6, 7]], False),
        ([[0, 1, 2, 3]], False),
    ],
)
def test_an_epoch_that_is_trained_twice_or_never_is_noticed(epochs, follow):
    assert chaos.follow_each_other(epochs) == follow
