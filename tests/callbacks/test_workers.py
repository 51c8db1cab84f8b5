"""Two workers, two processes of this machine, train one model."""

import json
import sys

import numpy as np
import pytest

from tests import workers

pytestmark = pytest.mark.long  # Processes take longer to start than to train.


def run_workers(*arguments):
    """Runs two workers; returns `(stderr, exit code)` of each."""
    program = [sys.executable, "-m", "tests.callbacks.worker", *arguments]
    return workers.run(program, program)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with what two workers wrote, and how they ended.

    They do one after the other what the tests look at: a process takes longer
    to start than to train.
    """
    folder = tmp_path_factory.mktemp("workers")
    results = run_workers(str(folder), "1", "train")
    for i, (text, _) in enumerate(results):
        assert (folder / f"worker{i}.json").exists(), text[-3000:]
    return folder, results


def records(folder):
    return [
        json.loads((folder / f"worker{i}.json").read_text()) for i in range(2)
    ]


def test_what_would_hang_is_refused(trained):
    folder, _ = trained
    for record in records(folder):
        refused = record["refusals"]
        differ = "The workers do not train the same way"
        assert refused["interval"].startswith(differ)
        assert refused["log"].startswith(differ)
        assert refused["sdgp"].startswith(differ)
        assert "`mixed_float16` does not work" in refused["float16"]
        assert refused["left behind"] == 0
        assert refused["files"] == []  # Nothing is written before.


def test_workers_end_bitwise_equal_and_share_each_epoch(trained):
    folder, _ = trained
    weights = [np.load(folder / f"worker{i}.npz") for i in range(2)]
    assert (folder / "logs0" / "density_log.json").exists()
    assert not (folder / "logs1").exists()
    assert set(weights[0]) == set(weights[1])
    for name, value in weights[0].items():
        np.testing.assert_array_equal(value, weights[1][name], err_msg=name)
    assert any("moving_variance" in name for name in weights[0])

    one, other = records(folder)
    assert one["history"] == other["history"]
    assert one["reports"] == 2
    assert 0 < one["threads"] < 20  # TensorFlow can leave one per exchange.
    assert one["history"]["batch_size"] == [8, 16, 16, 16]
    assert all(np.isfinite(one["history"]["val_loss"]))
    # Before and after the growth: each example once, on one of the workers.
    for share, rest in zip(one["indices"], other["indices"], strict=True):
        assert sorted(share + rest) == list(range(42))
        assert abs(len(share) - len(rest)) <= 8


@pytest.mark.parametrize("what", ["channels", "masks"])
def test_workers_with_scoring_data_of_their_own_prune_alike(what, trained):
    folder, _ = trained
    one, other = (np.load(folder / f"{what}{i}.npz") for i in range(2))
    sizes = [value.size for value in one.values()]
    zeros = sum((value == 0.0).sum() for value in one.values())
    if what == "channels":
        assert sum(sizes) < 700  # Of 857.
    else:
        assert zeros > 0.3 * sum(sizes)
    for a, b in zip(one.values(), other.values(), strict=True):
        np.testing.assert_array_equal(a, b)


def check_that_the_other_ends(results, dying):
    assert results[dying][1] == 77
    text, code = results[1 - dying]  # It would time out if this one hung.
    assert code not in (0, 77)
    # TensorFlow names the others when they come, as well.
    error = text.rpartition("Traceback")[2]
    assert f"/job:worker/replica:0/task:{dying}" in error, text[-3000:]


def test_the_death_of_a_worker_ends_the_others_with_an_error(trained):
    _, results = trained
    check_that_the_other_ends(results, 1)


def test_the_death_of_the_first_worker_ends_the_others(tmp_path):
    check_that_the_other_ends(run_workers(str(tmp_path), "0"), 0)
