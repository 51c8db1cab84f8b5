"""Channels that live again, and weights near zero, are counted."""

import json
import pathlib
import shutil
import sys

import keras
import numpy as np
import pytest
from absl import flags

from tests.tools.written import write_run

BENCHMARKS = pathlib.Path(__file__).parents[2] / "tools" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import sparsity  # noqa: E402  # isort: skip

NAN = np.nan


def test_channels_that_rise_again_are_counted():
    history = np.array(
        [
            [1.0, 1.0, 1.0, 0.1, 0.1],
            [1.0, 0.1, 0.1, 0.4, 0.1],
            [1.0, 0.1, 0.7, 0.1, NAN],
            [0.6, NAN, 0.6, 0.1, NAN],
        ]
    )
    # The third and the fourth rose; the others stayed above, below, or left.
    assert sparsity.revived({"a": history, "b": history[:, :2]}, 0.3) == {
        "fell": 5,
        "rose": 2,
        "highest": 0.7,
    }
    alive = np.ones((3, 2))
    assert sparsity.revived({"a": alive}, 0.3) == {
        "fell": 0,
        "rose": 0,
        "highest": None,
    }


def small():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    kernel = np.array([[1, 0], [1e-5, -1], [-1e-5, 1], [1, 1]])
    model.layers[0].kernel.assign(kernel)
    return model


def test_weights_near_zero_are_counted_in_kernels_only():
    found = sparsity.near_zero(small(), 1e-4)
    assert found["share"] == 3 / 8
    assert list(found["kernels"].values()) == [[3, 8]]


def test_a_finished_run_becomes_a_record(tmp_path):
    folder = write_run(tmp_path / "run")
    values = flags.FlagValues()
    sparsity.define(values)
    values(["", f"--output={tmp_path / 'out.json'}"])
    with pytest.raises(SystemExit, match=r"model\.keras"):
        sparsity.main(["", str(folder)], values)
    small().save(folder / "model.keras")
    sparsity.main(["", str(folder)], values)
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["run"] == "run"
    assert record["weights"]["share"] == 3 / 8
    assert record["channels"].keys() == {"fell", "rose", "highest"}
    shutil.rmtree(folder)
    with pytest.raises(SystemExit, match="There is no run in"):
        sparsity.main(["", str(folder)], values)
