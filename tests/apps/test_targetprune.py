"""Runs whose network is pruned to a target."""

import json

import keras
import numpy as np
import pytest

import keras_prunetrain as kpt
from apps import data, methods, networks, recipe_flags, train_cifar
from tests.apps.programs import parsed, run

SMALL = (
    *("--network=resnet8", "--width=6", "--image_size=4"),
    *("--method=targetprune", "--epochs=4"),
)


@pytest.mark.parametrize(
    "score", ["taylor", pytest.param("gradient_flow", marks=pytest.mark.long)]
)
def test_a_run_meets_its_target(score, tmp_path):
    run(
        *(train_cifar, *SMALL, "--target_flops=0.5", f"--score={score}"),
        *("--channel_multiple=1", f"--workdir={tmp_path}"),
    )
    result = json.loads((tmp_path / "result.json").read_text())
    full = kpt.models.resnet8((4, 4, 1), 10, width=6)
    most = 0.5 * kpt.model_cost(full).forward_flops
    assert 0.9 * most < result["forward_flops"] <= most
    assert result["method"] == "targetprune"
    assert result["recipe"]["score"] == score
    assert result["reconfigurations"] == 1
    lines = (tmp_path / "reconfigurations.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1]
    model = keras.saving.load_model(tmp_path / "model.keras")
    assert kpt.model_cost(model).forward_flops == result["forward_flops"]


def recipe(*arguments, method="targetprune"):
    words = (f"--method={method}", "--workdir=run", *arguments)
    return recipe_flags.recipe(parsed(train_cifar, *words)[1])


def pruning(*arguments, **kwargs):
    digits = data.load("digits")
    return methods.pruning(recipe(*arguments, **kwargs), digits)


def test_all_arguments_arrive():
    found = pruning(
        *("--training_flops=0.55", "--warmup=2", "--decay=0.25"),
        *("--rounds=3", "--score=magnitude", "--granularity=32"),
    )
    assert str(found.target) == "training_flops=0.55"
    assert (found.warmup, found.decay, found.rounds) == (2, 0.25, 3)
    assert isinstance(found.warmup, int)
    assert found.score == "magnitude"
    assert found.batch.granularity == 32


@pytest.mark.parametrize(
    ("method", "words", "multiple"),
    [
        ("targetprune", ["--target_flops=0.5"], "auto"),
        ("targetprune", ["--target_flops=0.5", "--channel_multiple=8"], 8),
        ("earlycrop", ["--target_flops=0.5"], 1),
        ("prunetrain", ["--channel_multiple=auto"], "auto"),
        ("prunetrain", [], 1),
    ],
)
def test_the_multiple_of_channels_arrives(method, words, multiple):
    found = pruning(*words, method=method)._options
    assert found.channel_multiple == multiple


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("targetprune", ["--target_flops=0.5"]),
        ("earlycrop", ["--target_flops=0.5", "--channel_multiple=8"]),
        ("prunetrain", []),
    ],
)
def test_the_layers_to_skip_arrive(method, words):
    assert pruning(*words, method=method)._options.skip == ()
    words = [*words, "--skip=stem,*_shortcut"]
    found = pruning(*words, method=method)._options
    assert found.skip == ("stem", "*_shortcut")


def test_another_seed_draws_other_random_scores():
    from keras_prunetrain.channels.numbering import number_channels

    numbering = number_channels(kpt.models.resnet8((8, 8, 1), 10))
    one, same, other = (
        pruning("--target_flops=0.5", "--score=random", f"--seed={seed}").score(
            numbering
        )
        for seed in (1, 1, 2)
    )
    assert (one == same).all() and (one != other).any()


def test_all_arguments_of_earlycrop_arrive():
    found = pruning(
        *("--sparsity=0.9", "--when=paper_code", "--score=snip"),
        *("--iterations=3", "--iteration_interval=2"),
        method="earlycrop",
    )
    assert (found.sparsity, found.structured) == (0.9, False)
    assert (found.when, found.score) == ("paper_code", "snip")
    assert (found.iterations, found.interval) == (3, 2)
    found = pruning(
        *("--target_flops=0.4", "--when=7", "--granularity=8"),
        method="earlycrop",
    )
    assert found.batch.granularity == 8
    assert (found.sparsity, found.target) == (pytest.approx(0.6), "flops")
    assert (found.when, found.score) == (7, "gradient_flow")
    assert (found.iterations, found.interval) == (1, 0)
    found = pruning("--target_flops=0.4", method="earlycrop")
    assert found.when == "lazy" and found.structured


@pytest.mark.parametrize(
    ("method", "score"),
    [
        ("crop", "gradient_flow"),
        *((name, name) for name in ("snip", "grasp", "synflow")),
    ],
)
def test_scores_before_the_first_step_are_methods(method, score):
    found = pruning("--sparsity=0.9", method=method)
    assert isinstance(found, kpt.EarlyCroPCallback)
    assert (found.when, found.score) == ("start", score)
    assert recipe("--sparsity=0.9", method=method).method == method


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_gradients_are_clipped_together(optimizer):
    words = "--target_flops=0.5", f"--optimizer={optimizer}"
    for clipping, norm in (((), None), (("--global_clipnorm=10",), 10.0)):
        found = networks._optimizer(recipe(*words, *clipping))
        assert found.global_clipnorm == norm


@pytest.mark.long
def test_a_run_of_earlycrop_meets_its_target(tmp_path):
    words = [x for x in SMALL if "method" not in x]
    printed = run(
        *(train_cifar, *words, "--method=earlycrop", "--when=1"),
        *("--target_flops=0.5", f"--workdir={tmp_path}"),
    )
    result = json.loads((tmp_path / "result.json").read_text())
    full = kpt.models.resnet8((4, 4, 1), 10, width=6)
    most = 0.5 * kpt.model_cost(full).forward_flops
    assert 0.9 * most < result["forward_flops"] <= most
    assert result["recipe"]["when"] == "1"
    assert result["pruned_after_epochs"] == 1
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    distances = [json.loads(row)["weight_distance"] for row in rows]
    assert np.isfinite(distances).tolist() == [True, False, False, False]
    assert "is pruned after 1 epoch (when=1)." in printed


@pytest.mark.long
def test_a_run_of_earlycrop_weight_by_weight(tmp_path):
    words = [x for x in SMALL if "method" not in x]
    run(
        *(train_cifar, *words, "--method=earlycrop", "--when=1"),
        *("--sparsity=0.75", "--score=snip", f"--workdir={tmp_path}"),
    )
    model = keras.saving.load_model(tmp_path / "model.keras")
    assert kpt.mask_report(model).density == pytest.approx(0.25, abs=1e-3)
