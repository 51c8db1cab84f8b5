"""Runs with pruned data gradients."""

import json

import pytest

import keras_prunetrain as kpt
from apps import compare, methods, recipe_flags, train_cifar
from tests.apps.programs import parsed, run

SMALL = ("--network=resnet8", "--width=8", "--image_size=4", "--sdgp=2:4")


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.long
def test_a_dense_run_says_what_only_hardware_would_leave_out(tmp_path):
    run(
        *(train_cifar, *SMALL, "--method=dense", "--epochs=2"),
        *("--sdgp_dense_last=0.5", f"--workdir={tmp_path}"),
    )
    first, last = rows(tmp_path)
    assert 0.5 < first["kept_gradient"] < last["kept_gradient"] == 1.0
    whole = last["training_flops"]
    assert last["emulated_flops"] == 0 < first["emulated_flops"]
    assert first["training_flops"] + first["emulated_flops"] == whole
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["total_emulated_flops"] == first["emulated_flops"]
    assert result["recipe"]["sdgp"] == "2:4"
    assert "left out by n:m hardware" in compare.table([result])
    assert "n:m" not in compare.table([{**result, "total_emulated_flops": 0}])


@pytest.mark.long
@pytest.mark.parametrize(
    "words",
    [
        ["--method=targetprune", "--target_flops=0.5"],
        ["--method=prunetrain", "--interval=2"],
        ["--method=earlycrop", "--when=1", "--target_flops=0.5"],
        ["--method=narrow", "--target_flops=0.5"],
    ],
)
def test_every_method_has_it(words, tmp_path):
    run(
        *(train_cifar, *SMALL, "--epochs=4", "--sdgp_mode=mvue", *words),
        f"--workdir={tmp_path}",
    )
    assert all(0.4 < row["kept_gradient"] < 1 for row in rows(tmp_path))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["total_emulated_flops"] > 0


def test_all_arguments_arrive():
    words = ("--sdgp=1:8", "--sdgp_mode=mvue", "--sdgp_dense_last=0.25")
    values = parsed(train_cifar, *words, "--workdir=run", "--seed=7")[1]
    (found,) = methods.sdgp(recipe_flags.recipe(values))
    assert isinstance(found, kpt.SDGPCallback)
    assert str(found.pattern) == "1:8 mvue"
    assert (found.dense_last, found.seed) == (0.25, 7)
    words = ("--workdir=run", "--method=dense")
    assert (
        methods.sdgp(recipe_flags.recipe(parsed(train_cifar, *words)[1])) == []
    )
