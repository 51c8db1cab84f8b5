"""The benchmark of inference compares two finished runs, or a recorded one."""

import json
import pathlib
import sys

import keras
import pytest
from absl import flags

from keras_prunetrain import models

BENCHMARKS = pathlib.Path(__file__).parents[2] / "tools" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import inference  # noqa: E402  # isort: skip


@pytest.fixture
def values(tmp_path):
    values = flags.FlagValues()
    inference.define(values)
    values(["", "--turns=1", f"--output={tmp_path / 'out.json'}"])
    return values


@pytest.mark.long
def test_two_runs_are_compared(values, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "BATCHES", (1, 2))
    for name, width in (("dense", 16), ("small", 4)):
        model = models.resnet8((8, 8, 3), width=width)
        (tmp_path / name).mkdir()
        model.save(tmp_path / name / "model.keras")
    folders = [str(tmp_path / name) for name in ("dense", "small")]
    inference.main(["", *folders], values)
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["run"] == "small"
    assert 0.05 < record["inference_flops_ratio"] < 0.1
    assert [row["batch_size"] for row in record["batches"]] == [1, 2]
    for row in record["batches"]:
        assert row["speedup_median"] > 0
        assert len(row["images_per_second"]) == 2


def test_a_factor_is_that_of_the_dense_seconds(monkeypatch):
    taken = iter([9.0, 9.0, 4.0, 2.0, 6.0, 2.0])  # The first turn traces.
    monkeypatch.setattr(inference, "_seconds", lambda *_: next(taken))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    row = inference.compare(model, model, 10, 2)
    assert row["speedup_median"] == 2.5
    assert row["images_per_second"] == [2.0, 5.0]


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"No finished run in .*/dense"):
        inference.networks([str(tmp_path / "dense"), str(tmp_path / "small")])
