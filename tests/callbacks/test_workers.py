"""Two workers, two processes of this machine, train one model."""

import json
import sys

import numpy as np
import pytest

from tests import workers


def run_workers(*arguments):
    """Starts a worker with each of `arguments`; returns (stderr, code)s."""
    program = [sys.executable, "-m", "tests.callbacks.worker"]
    return workers.run(*([*program, *words] for words in arguments))


def test_workers_end_bitwise_equal_and_share_each_epoch(tmp_path):
    results = run_workers(*[[str(tmp_path), "1"]] * 2)
    for text, code in results:
        assert code == 0, text[-3000:]
    weights = [np.load(tmp_path / f"worker{i}.npz") for i in range(2)]
    assert (tmp_path / "logs0" / "density_log.json").exists()
    assert not (tmp_path / "logs1").exists()
    assert set(weights[0]) == set(weights[1])
    for name, value in weights[0].items():
        np.testing.assert_array_equal(value, weights[1][name], err_msg=name)
    assert any("moving_variance" in name for name in weights[0])

    one, other = (
        json.loads((tmp_path / f"worker{i}.json").read_text()) for i in range(2)
    )
    assert one["history"] == other["history"]
    assert one["reports"] == 2
    assert 0 < one["threads"] < 20  # TensorFlow can leave one per exchange.
    assert one["history"]["batch_size"] == [8, 16, 16, 16]
    assert all(np.isfinite(one["history"]["val_loss"]))
    # Before and after the growth: each example once, on one of the workers.
    for share, rest in zip(one["indices"], other["indices"], strict=True):
        assert sorted(share + rest) == list(range(42))
        assert abs(len(share) - len(rest)) <= 8


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (["1"], ["2"], "The workers do not train the same way"),
        (["1"], ["1", "no_log"], "The workers do not train the same way"),
        (["1", "float16"], ["1", "float16"], "`mixed_float16` does not work"),
    ],
    ids=["interval", "log", "float16"],
)
def test_what_would_hang_is_refused(tmp_path, one, other, message):
    for text, code in run_workers(
        [str(tmp_path), *one], [str(tmp_path), *other]
    ):
        assert code != 0
        assert message in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dying", [0, 1])
def test_the_death_of_a_worker_ends_the_others_with_an_error(tmp_path, dying):
    arguments = [[str(tmp_path), "1"] for _ in range(2)]
    arguments[dying].append("die")
    results = run_workers(*arguments)
    assert results[dying][1] == 77
    text, code = results[1 - dying]  # It would time out if this one hung.
    assert code not in (0, 77)
    # TensorFlow names the others when they come, as well.
    error = text.rpartition("Traceback")[2]
    assert f"/job:worker/replica:0/task:{dying}" in error, text[-3000:]
