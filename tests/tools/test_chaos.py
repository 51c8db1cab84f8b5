"""Trainings that are killed end as those that are not: tools/chaos.py."""

import json

import pytest

from tools import chaos


# Two workers that are killed: tests/apps/test_imagenet.py, and `make chaos`.
@pytest.mark.long
def test_trainings_that_are_killed_end_as_the_whole_one(tmp_path):
    record = chaos.chaos(tmp_path, 2, seed=0, count=1)
    assert sum(row["kills"] for row in record["trainings"]) == 2
    assert record["equal"] == len(record["trainings"])


def test_kills_that_were_counted_are_not_done_again(tmp_path):
    ended = {"equal": True, "no_gap": False, "while_writing": 1}
    ended |= {"kills": 2, "save_freq": "3", "ended": True}
    progress = {"seed": 5, "trainings": [ended]}
    (tmp_path / "progress.json").write_text(json.dumps(progress))
    for save_freq in chaos.SAVE_FREQS:  # As they ended without a kill.
        place = tmp_path / f"whole_{save_freq}"
        place.mkdir()
        (place / "end0.json").write_text("{}")
        (place / "seconds").write_text("9.5")
    record = chaos.chaos(tmp_path, 2, seed=5)
    assert record["trainings"] == [ended]
    assert record["kills"] == 2
    assert record["kills_while_writing"] == 1
    assert record["equal"] == 0
    with pytest.raises(SystemExit, match="of the seed 5"):
        chaos.chaos(tmp_path, 2, seed=6)


def test_results_of_workers_stand_beside_those_of_one_process(tmp_path):
    path = tmp_path / "chaos.json"
    chaos.add(path, "one process", {"kills": 100})
    chaos.add(path, "two workers", {"kills": 1})
    chaos.add(path, "two workers", {"kills": 20})
    found = json.loads(path.read_text())
    assert found == {
        "one process": {"kills": 100},
        "two workers": {"kills": 20},
    }


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


def test_backups_of_steps_may_be_of_the_epoch_before():
    epochs = [[0, 1, 2], [1, 2, 3, 4, 5, 6, 7]]
    assert chaos.follow_each_other(epochs, "3")
    assert not chaos.follow_each_other(epochs, "epoch")
    assert not chaos.follow_each_other([[0, 1, 2], [*range(8)]], "3")
