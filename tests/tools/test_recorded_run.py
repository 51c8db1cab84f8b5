"""Benchmarks build the networks of kept runs again, or say why they cannot."""

import json
import pathlib
import sys

import pytest

from keras_prunetrain import model_cost
from tests.tools.written import write_run

TOOLS = pathlib.Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS / "benchmarks"))

import architectures  # noqa: E402  # isort: skip
import record_run  # noqa: E402  # isort: skip
import recorded_run  # noqa: E402  # isort: skip

RECIPE = {
    "method": "prunetrain",
    "network": "resnet8",
    "dtype_policy": "float32",
    "batch_size": 128,
    "momentum": 0.9,
    "weight_decay": 0.0,
}


@pytest.fixture
def kept(tmp_path):
    folder = write_run(tmp_path / "run")
    result = json.loads((folder / "result.json").read_text())
    result |= {"recipe": RECIPE, "epochs": 4}
    (folder / "result.json").write_text(json.dumps(result))
    path = folder / "reconfigurations.jsonl"
    report = json.loads(path.read_text()) | {"keep": {"a": [0, 1]}}
    path.write_text(json.dumps(report))
    record_run.main([str(folder), "kept"], tmp_path)
    return tmp_path / "kept.json"


def refusal(words, read=recorded_run.read_all):
    with pytest.raises(SystemExit) as caught:
        read(list(map(str, words)))
    return caught.value.code


def test_a_kept_run_is_read(kept):
    run = recorded_run.read_one([str(kept)])
    assert run.path == kept
    assert run.recipe == RECIPE
    assert run.epochs_of_architectures == [2, 2]


def test_each_run_of_this_repository_can_be_built_again():
    words = sorted(map(str, (TOOLS / "results").glob("cifar10_resnet20*.json")))
    runs = recorded_run.read_all(words)
    assert len(runs) == 10
    for run in runs:
        assert sum(run.epochs_of_architectures) == run.epochs == 40


def test_the_width_of_a_narrow_network_is_that_of_its_result(kept):
    record = json.loads(kept.read_text())
    record["recipe"] |= {"method": "narrow", "target_flops": 0.5}
    kept.write_text(json.dumps(record))
    assert refusal([kept]) == (
        f"{kept} has no 'width'. Restore the file, or repeat the run."
    )
    kept.write_text(json.dumps(record | {"width": 5}))
    assert recorded_run.read_one([str(kept)]).recipe["width"] == 5


def test_the_program_wants_files(kept, tmp_path):
    assert refusal([]) == (
        "Expected: one or more files of tools/record_run.py."
    )
    assert refusal([kept, kept], recorded_run.read_one) == (
        "Expected: one file of tools/record_run.py."
    )
    for path in (tmp_path / "none.json", tmp_path):
        assert refusal([path]) == f"{path} is no file of tools/record_run.py."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda record: record["recipe"].pop("momentum"),
            ", 'recipe' has no 'momentum'. Restore the file, or repeat the "
            "run.",
        ),
        (
            lambda record: record["recipe"].update(network="resnet9"),
            ", 'recipe': there is no network 'resnet9' in "
            "keras_prunetrain.models.",
        ),
        (
            lambda record: record.pop("epochs"),
            " has no 'epochs'. Restore the file, or repeat the run.",
        ),
        (
            lambda record: record["reconfigurations"][0].pop("keep"),
            ", 'reconfigurations' 1 has no 'keep'. Restore the file, or repeat "
            "the run.",
        ),
    ],
)
def test_a_run_that_cannot_be_built_again_is_refused(kept, change, message):
    record = json.loads(kept.read_text())
    change(record)
    kept.write_text(json.dumps(record))
    assert refusal([kept]) == f"{kept}{message}"


@pytest.mark.long
def test_networks_of_runs_on_smaller_images_cost_what_the_run_says():
    path = TOOLS / "results/cifar10_16x16_resnet20_target48_taylor_seed0.json"
    run = recorded_run.read_one([str(path)])
    stages = architectures.architectures(run)
    assert [model_cost(x).forward_flops for x in stages] == [
        run.reports[0]["cost_before"]["forward_flops"],
        *(x["cost_after"]["forward_flops"] for x in run.reports),
    ]
    rounded = architectures.rounded_up(run)
    for layer, exact in zip(rounded.layers, stages[-1].layers, strict=True):
        if hasattr(layer, "filters"):
            assert layer.filters % (4 if layer.filters < 48 else 8) == 0
            assert 0 <= layer.filters - exact.filters < 8
    narrow = TOOLS / "results/cifar10_16x16_resnet20_width11_seed0.json"
    recipe = recorded_run.read_one([str(narrow)]).recipe
    model = architectures.first_architecture(recipe)
    assert model.get_layer("stem").filters == 11
    assert model.input_shape == (None, 16, 16, 3)


@pytest.mark.parametrize("keep", [{"none": [0]}, {"stem": [16]}])
def test_a_cut_of_another_network_is_refused(keep):
    model = architectures.first_architecture(RECIPE)
    with pytest.raises(ValueError, match="do not describe this cut: there is"):
        architectures.cut_like({"keep": keep}, model)
