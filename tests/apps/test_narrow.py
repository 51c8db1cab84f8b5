"""Networks with every width times one factor, at a given cost."""

import json
import types

import keras
import pytest

import keras_prunetrain as kpt
from apps import networks, recipe_flags, train_cifar
from apps.refusal import RefusedError
from keras_prunetrain import models
from tests.apps.programs import files, parsed, run

SMALL = ("--network=resnet8", "--width=6", "--image_size=4", "--epochs=1")


def narrowed(*arguments):
    words = ("--method=narrow", "--workdir=run", *arguments)
    _, values = parsed(train_cifar, *words)
    images = types.SimpleNamespace(image_shape=(32, 32, 3), classes=10)
    return networks.narrowed(recipe_flags.recipe(values), images)


def flops(network, width):
    model = getattr(models, network)(width=width)
    return kpt.model_cost(model).forward_flops


@pytest.mark.parametrize(
    ("network", "full_width", "target"),
    [
        ("resnet8", 16, 0.5),
        ("resnet8", 16, 0.02),
        pytest.param("resnet20", 16, 0.47, marks=pytest.mark.long),
        pytest.param("vgg11", 64, 0.3, marks=pytest.mark.long),
    ],
)
def test_the_widest_network_that_meets_the_target_is_chosen(
    network, full_width, target
):
    found = narrowed(f"--network={network}", f"--target_flops={target}")
    assert found.full_width == full_width
    assert found.full_forward_flops == flops(network, full_width)
    assert found.forward_flops == flops(network, found.width)
    most = target * found.full_forward_flops
    assert found.forward_flops <= most < flops(network, found.width + 1)


@pytest.mark.parametrize("width", range(1, 6))
def test_a_target_that_a_width_meets_exactly_gives_this_width(width):
    target = flops("resnet8", width) / flops("resnet8", 5)
    found = narrowed(
        *("--network=resnet8", "--width=5", f"--target_flops={target}")
    )
    assert found.width == width
    assert found.forward_flops == flops("resnet8", width)


def test_a_target_below_the_narrowest_network_is_refused():
    words = "--network=resnet8", "--width=4"
    with pytest.raises(RefusedError) as caught:
        narrowed(*words, "--target_flops=0.01")
    message = str(caught.value)
    least = message.partition("takes ")[2].partition(" of")[0]
    assert message == (
        "--target_flops=0.01 cannot be met: with one channel in its first "
        f"stage, resnet8 takes {least} of the inference FLOPs that it takes "
        "with 4. Choose at least that."
    )
    assert narrowed(*words, f"--target_flops={least}").width == 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("narrow")
    printed = run(
        *(train_cifar, *SMALL, "--method=narrow", "--target_flops=0.5"),
        f"--workdir={folder}",
    )
    return folder, printed


def test_a_narrow_run_says_and_records_what_it_trains(finished):
    folder, printed = finished
    assert printed.startswith(
        "resnet8 with 4 channels in its first stage instead of 6, and with "
        "every other width times the same factor, 0.667: "
    )
    result = json.loads((folder / "result.json").read_text())
    assert result["method"] == "narrow"
    assert (result["width"], result["full_width"]) == (4, 6)
    assert result["width_factor"] == 4 / 6
    assert result["recipe"]["width"] == 6
    assert result["recipe"]["target_flops"] == 0.5
    assert result["forward_flops"] <= 0.5 * result["full_forward_flops"]
    assert result["reconfigurations"] == 0
    model = keras.saving.load_model(folder / "model.keras")
    assert kpt.model_cost(model).forward_flops == result["forward_flops"]
    assert model.get_layer("stage3_block0_conv2").filters == 16


@pytest.mark.long
def test_a_narrow_run_is_a_dense_one_of_that_width(finished, tmp_path):
    words = [x for x in SMALL if "width" not in x]
    run(
        *(train_cifar, *words, "--method=dense", "--width=4"),
        f"--workdir={tmp_path}",
    )
    (narrow, dense) = (
        json.loads((folder / "metrics.jsonl").read_text())
        for folder in (finished[0], tmp_path)
    )
    assert narrow["training_flops"] == dense["training_flops"]
    # The same weights at first, and the same images.
    assert narrow["loss"] == pytest.approx(dense["loss"], rel=1e-3)


def test_a_run_with_another_target_does_not_take_its_place(finished):
    folder, _ = finished
    before = files(folder)
    with pytest.raises(SystemExit) as caught:
        run(
            *(train_cifar, *SMALL, "--method=narrow", "--target_flops=0.4"),
            f"--workdir={folder}",
        )
    assert "target_flops=0.5 instead of 0.4" in caught.value.code
    assert files(folder) == before
