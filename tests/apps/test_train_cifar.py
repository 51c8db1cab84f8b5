"""The training program, and the files that it leaves."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
import zipfile

import keras
import numpy as np
import pytest
from absl import flags

from apps import (
    compare,
    data,
    environment,
    methods,
    networks,
    quickstart,
    recipe_flags,
    train_cifar,
    training,
    workdir,
)
from apps.refusal import RefusedError
from keras_prunetrain.devices import device_kind
from tests.apps.programs import files, parsed, run
from tests.disks import full_disk

ROOT = pathlib.Path(__file__).parents[2]
EPOCHS = 2
TRAIN_SIZE = 1437  # Four fifths of 1,797 digits.
SMALL = ("--dataset=digits", "--network=resnet8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two short runs: folder, and what was printed, of each method.

    The threshold is high, so that channels go at once.
    """
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for method in ("dense", "prunetrain"):
        printed = run(
            *(train_cifar, *SMALL, f"--method={method}"),
            *(f"--epochs={EPOCHS}", "--interval=1", "--threshold=0.25"),
            "--learning_rate_drops=100",  # None, so that weights go on moving.
            *("--seed=1", f"--workdir={folder / method}"),
            *(f"--dense={x}" for x, _ in found.values()),
        )
        found[method] = folder / method, printed
    return found


@pytest.fixture(params=["dense", "prunetrain"])
def finished(request, runs):
    return request.param, *runs[request.param]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_result_has_the_keys_that_others_read(finished):
    method, folder, _ = finished
    result = json.loads((folder / "result.json").read_text())
    assert result["method"] == method
    assert result["dataset"] == "digits"
    assert result["network"] == "resnet8"
    assert result["epochs"] == EPOCHS
    assert result["seed"] == 1
    metrics = lines(folder / "metrics.jsonl")
    assert result["val_accuracy"] == metrics[-1]["val_accuracy"]
    assert result["parameters"] == metrics[-1]["parameters"]
    assert result["total_training_flops"] == sum(
        row["training_flops"] for row in metrics
    )
    assert result["seconds"] >= sum(row["seconds"] for row in metrics[1:])
    assert 0 <= result["reconfiguration_seconds"] < result["seconds"]


def test_the_factor_of_a_lasso_is_kept_and_can_be_passed_on(runs, tmp_path):
    folder, _ = runs["prunetrain"]
    factor = json.loads((folder / "result.json").read_text())["factor"]
    assert factor > 0
    again = recipe_of([f"--workdir={tmp_path}", f"--factor={factor}"])
    assert methods.pruning(again, None).settings()["factor"] == factor
    dense, _ = runs["dense"]
    assert "factor" not in json.loads((dense / "result.json").read_text())


def recipe_of(words):
    return recipe_flags.recipe(parsed(train_cifar, *words)[1])


@pytest.mark.parametrize(
    ("optimizer", "rate", "l2", "decoupled"),
    [("sgd", 0.1, 2.5e-4, None), ("adam", 1e-3, 2.5e-4, None),
     ("adamw", 1e-3, 0.0, 5e-4)],
)  # fmt: skip
def test_each_optimizer_has_its_rate_and_its_weight_decay(
    optimizer, rate, l2, decoupled, tmp_path
):
    words = *SMALL, f"--optimizer={optimizer}", f"--workdir={tmp_path}"
    recipe = recipe_of(words)
    model = networks.compiled(recipe, data.load("digits", None))
    assert type(model.optimizer).__name__.lower() == optimizer
    assert recipe.learning_rate == pytest.approx(rate)
    assert float(model.optimizer.learning_rate) == pytest.approx(rate)
    kernel = model.get_layer("logits").kernel
    assert float(getattr(kernel.regularizer, "l2", 0.0)) == pytest.approx(l2)
    assert model.optimizer.weight_decay == decoupled
    words += ("--learning_rate=0.5",)
    assert recipe_of(words).learning_rate == 0.5


def test_the_solver_of_the_flags_is_that_of_the_callback(tmp_path):
    words = *SMALL, "--solver=proximal", "--coupled", f"--workdir={tmp_path}"
    pruning = methods.pruning(recipe_of(words), None)
    assert pruning.solver == "proximal"
    assert pruning.coupled


def test_metrics_have_a_row_for_each_epoch(finished):
    _, folder, _ = finished
    rows = lines(folder / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == list(range(EPOCHS))
    needed = {
        *("loss", "task_loss", "accuracy", "val_loss", "val_accuracy"),
        *("seconds", "batch_size", "learning_rate", "density"),
        *("parameters", "training_flops"),
    }
    for row in rows:
        assert needed <= row.keys()
        assert row["loss"] > row["task_loss"] > 0
    # The FLOPs of the full network, three passes for every image.
    assert rows[0]["training_flops"] == 3 * 1_527_040 * TRAIN_SIZE


def test_shrinking_is_recorded_and_told(finished):
    method, folder, stdout = finished
    rows = lines(folder / "metrics.jsonl")
    reports = lines(folder / "reconfigurations.jsonl")
    if method == "dense":
        assert reports == []
        assert {row["density"] for row in rows} == {1.0}
        return
    assert len(reports) >= 2
    assert rows[-1]["density"] < rows[0]["density"] < 1.0
    assert rows[-1]["training_flops"] < rows[0]["training_flops"]
    for report in reports:
        assert f"Epoch {report['epoch'] + 1}: channels" in stdout
        assert report["first_step_seconds"] > 0 or report is reports[-1]


def test_magnitudes_follow_each_channel_until_it_goes(finished):
    method, folder, _ = finished
    model = keras.saving.load_model(folder / "model.keras")
    with np.load(folder / "channels.npz") as magnitudes:
        history = magnitudes["stage2_block0_conv1"]
    assert history.shape == (EPOCHS, 32)
    kernel = np.abs(model.get_layer("stage2_block0_conv1").kernel.numpy())
    now = kernel.reshape(-1, kernel.shape[-1]).max(axis=0)
    stayed = ~np.isnan(history[-1])
    np.testing.assert_array_equal(history[-1][stayed], now)
    assert stayed.all() == (method == "dense")
    assert not np.isnan(history[0][stayed]).any()


@pytest.mark.long
def test_a_run_that_is_stopped_leaves_what_it_has_seen(tmp_path):
    process = subprocess.Popen(
        [
            *(sys.executable, "apps/train_cifar.py", *SMALL),
            *("--epochs=1000", f"--workdir={tmp_path}"),
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics = tmp_path / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        # Meanwhile the folder is not to be had.
        with pytest.raises(SystemExit) as caught:
            run(train_cifar, *SMALL, "--epochs=1", f"--workdir={tmp_path}")
        assert str(caught.value).startswith(
            f"A run is going on in {tmp_path}: Process {process.pid} on "
        )
    finally:
        process.kill()
        process.wait()
    epochs = len(lines(metrics))
    with np.load(tmp_path / "channels.npz") as magnitudes:
        history = magnitudes["stage2_block0_conv1"]
    assert not np.isnan(history[:epochs]).any()
    assert np.isnan(history[epochs + 1 :]).all()
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert recipe["method"] == "prunetrain"
    assert recipe["epochs"] == 1000
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    ("size", "epochs"),
    [
        pytest.param(1_500, 0, id="channels"),
        pytest.param(20_000, 2, id="model", marks=pytest.mark.long),
    ],
)
@pytest.mark.long
def test_a_full_disk_ends_a_run_with_a_message(tmp_path, size, epochs):
    folder = tmp_path / "run"
    with (
        full_disk(size),
        pytest.raises(SystemExit) as caught,
    ):
        run(
            *(train_cifar, *SMALL, "--width=2", "--epochs=2"),
            *(
                "--method=dense",
                "--image_size=4",
                "--batch_size=512",
                f"--workdir={folder}",
            ),
        )
    assert str(caught.value).startswith(
        f"The training has ended, because its records cannot be written into "
        f"{folder}: [Errno 27] File too large"
    )
    # What was written until then is whole.
    assert not list(folder.glob("*.new*"))
    names = {path.name for path in folder.iterdir()}
    records = {"recipe.json", "reconfigurations.jsonl", "metrics.jsonl"}
    if epochs:
        records.add("channels.npz")
    assert names - {"tensorboard", "backups"} == records
    assert len(lines(folder / "metrics.jsonl")) == epochs
    assert lines(folder / "reconfigurations.jsonl") == []
    assert json.loads((folder / "recipe.json").read_text())["epochs"] == 2
    # Once there is space again, the folder can be used.
    workdir.check(folder)


@pytest.mark.long
def test_a_run_whose_model_cannot_be_saved_is_not_trained_twice(
    tmp_path, monkeypatch
):
    words = [
        *(train_cifar, *SMALL, "--width=2", "--epochs=2", "--method=dense"),
        *("--image_size=4", "--batch_size=512", f"--workdir={tmp_path}"),
    ]

    def fail(model, path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(keras.Model, "save", fail)
        run(*words)
    assert "No space left on device" in str(caught.value)
    before = (tmp_path / "metrics.jsonl").read_text()
    assert len(before.splitlines()) == 2

    run(*words)

    assert (tmp_path / "metrics.jsonl").read_text() == before
    assert json.loads((tmp_path / "result.json").read_text())["epochs"] == 2
    assert (tmp_path / "model.keras").exists()
    assert not (tmp_path / "backups").exists()


def test_comparison_shows_ratios(finished, capsys):
    method, folder, _ = finished
    compare.main([str(folder), str(folder)])
    table = capsys.readouterr().out
    assert f"{method}" in table
    assert "(100%)" in table
    assert "(+0.00 points)" in table


def test_a_run_compares_itself_with_another_at_its_end(runs):
    table = runs["prunetrain"][1].splitlines()[-7:]
    assert table[0].split() == ["dense", "prunetrain"]
    assert table[1].startswith("validation accuracy")
    assert "validation accuracy" not in runs["dense"][1]


def test_a_run_is_not_compared_with_what_it_replaces(runs):
    folder, _ = runs["dense"]
    arguments = f"--dense={folder}", f"--workdir={folder}"
    with pytest.raises(flags.Error) as caught:
        parsed(train_cifar, *arguments)
    assert str(caught.value).endswith(
        "the dense run's folder cannot be that of the new run."
    )


@pytest.mark.skipif(device_kind() != "cpu", reason="Not on a CPU.")
def test_a_run_says_that_its_processor_emulates_16_bits(tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(environment, "_CPU_INFO", info)
    info.write_text("flags : fpu avx2\n")
    words = (
        *(train_cifar, *SMALL, "--method=dense", "--epochs=1", "--width=2"),
        *("--dtype_policy=mixed_bfloat16", "--batch_size=512"),
    )
    printed = run(*words, f"--workdir={tmp_path / 'a'}")
    assert printed.count("This processor has no AVX-512") == 1


def test_a_run_begins_with_the_weights_of_another(runs, tmp_path):
    trained, _ = runs["dense"]
    run(
        *(train_cifar, *SMALL, "--method=dense", "--epochs=1", "--seed=2"),
        *("--learning_rate=1e-9", "--weight_decay=0"),  # They hardly move.
        *(f"--initial_run={trained}", f"--workdir={tmp_path}"),
    )
    before, after = (
        keras.saving.load_model(folder / "model.keras")
        for folder in (trained, tmp_path)
    )
    for one, other in zip(
        before.trainable_variables, after.trainable_variables, strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_run_to_begin_with_is_found_in_the_home_directory(
    runs, tmp_path, monkeypatch
):
    trained, _ = runs["dense"]
    monkeypatch.setenv("HOME", str(trained.parent))
    words = [f"--workdir={tmp_path}", "--initial_run=~/dense"]
    assert recipe_of(words).initial_run == str(trained)


def test_weights_of_another_width_are_refused(runs, tmp_path):
    trained, _ = runs["dense"]
    with pytest.raises(
        SystemExit,
        match=rf"--initial_run={trained} has no weights for this network: .* "
        "Choose a finished run of the same network, as wide as this one.",
    ):
        run(
            *(train_cifar, *SMALL, "--width=5", "--epochs=1"),
            *(f"--initial_run={trained}", f"--workdir={tmp_path / 'run'}"),
        )


@pytest.mark.parametrize("broken", ["checksum", "weights", "config"])
def test_weights_that_cannot_be_read_are_refused(broken, tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    path = tmp_path / "model.keras"
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    weights = parts["model.weights.h5"]
    if broken == "weights":
        parts["model.weights.h5"] = weights[: len(weights) // 2]
    if broken == "config":
        del parts["config.json"]
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    if broken == "checksum":
        path.write_bytes(path.read_bytes().replace(weights[:99], bytes(99)))
    with pytest.raises(
        RefusedError, match=rf"--initial_run={tmp_path} has no weights for this"
    ):
        networks.take_weights(model, tmp_path)


def test_a_run_is_logged_for_tensorboard(finished):
    method, folder, _ = finished
    logs = folder / "tensorboard"
    assert len(list(logs.glob("events.out.tfevents.*"))) == 1
    record = json.loads((logs / "density_log.json").read_text())
    assert len(record["densities"]) == EPOCHS
    whole = all(x == 1 for row in record["densities"] for x in row)
    assert whole == (method == "dense")


# What cannot begin. A finished run of the same folder stays as it was.


@pytest.mark.long
def test_a_typo_costs_no_run(runs):
    folder, _ = runs["dense"]
    before = files(folder)
    process = subprocess.run(
        [
            *(sys.executable, "apps/train_cifar.py", *SMALL),
            *(f"--workdir={folder}", "--seed=-1"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1
    assert (
        "flag --seed=-1: must be a whole number from 0 to 4,294,967,295."
        in process.stderr
    )
    assert "Traceback" not in process.stderr
    assert files(folder) == before


def test_a_batch_that_exceeds_the_data_costs_no_run(runs):
    folder, _ = runs["dense"]
    before = files(folder)
    with pytest.raises(SystemExit) as caught:
        run(train_cifar, *SMALL, "--batch_size=1438", f"--workdir={folder}")
    assert caught.value.code == (
        "--batch_size=1438 is more than the 1437 training images of digits. "
        "Choose a smaller one."
    )
    assert files(folder) == before


def test_a_training_that_is_refused_costs_no_run(runs):
    folder, _ = runs["dense"]
    before = files(folder)
    _, values = parsed(train_cifar, *SMALL, "--epochs=2", f"--workdir={folder}")
    # What only the callback refuses, when `fit` begins.
    recipe = dataclasses.replace(recipe_flags.recipe(values), finetune_epochs=2)
    with pytest.raises(RefusedError) as caught:
        training.train(recipe, data.load("digits"), folder, restart=True)
    assert str(caught.value).startswith(
        "This run cannot begin: `finetune_epochs` must leave"
    )
    assert files(folder) == before


def test_an_error_in_training_is_not_taken_for_a_refusal(tmp_path):
    digits = data.load("digits")
    grey, labels = digits.validation
    broken = dataclasses.replace(
        digits,
        train=tuple(array[:32] for array in digits.train),
        validation=(np.repeat(grey, 3, axis=-1), labels),  # No such input.
    )
    _, values = parsed(
        *(train_cifar, *SMALL, "--method=dense", "--batch_size=32"),
        f"--workdir={tmp_path / 'run'}",
    )
    with pytest.raises(ValueError, match="value 1, but received") as caught:
        training.train(recipe_flags.recipe(values), broken, tmp_path / "run")
    assert not isinstance(caught.value, RefusedError)
    assert "recipe.json" in os.listdir(tmp_path / "run")
    assert ".prunetrain.lock" not in os.listdir(tmp_path / "run")


def test_an_unprepared_data_set_ends_the_program_with_the_command(tmp_path):
    import tensorflow_datasets  # noqa: F401, takes its time before the clock.

    started = time.perf_counter()
    with pytest.raises(SystemExit) as caught:
        run(
            *(train_cifar, "--dataset=cifar10", f"--data_dir={tmp_path}"),
            f"--workdir={tmp_path / 'run'}",
        )
    assert caught.value.code.rstrip().endswith(
        f"tools/prepare_cifar10.py --data_dir={tmp_path}"
    )
    # Not the minutes of a download that is tried again and again.
    assert time.perf_counter() - started < 30
    assert not (tmp_path / "run").exists()


def test_the_quick_start_drops_no_words():
    with pytest.raises(SystemExit) as caught:
        quickstart.main(["--epochs=1"])
    assert caught.value.code == (
        "The quick start takes no arguments: --epochs=1. apps/train_cifar.py "
        "does."
    )


def test_the_quick_start_has_flags_that_the_program_takes(tmp_path):
    words = *quickstart.RECIPE, *quickstart.SHRINKING, "--method=targetprune"
    _, values = parsed(train_cifar, *words, f"--workdir={tmp_path}")
    assert (values.width, values.target_flops) == (64, 0.2)
    assert os.listdir(tmp_path) == []


def test_the_quick_start_says_whether_pruning_was_worth_it():
    def result(accuracy, flops):
        return {"val_accuracy": accuracy, "forward_flops": flops}

    dense, shrunk = result(0.99, 400), result(0.97, 100)
    assert quickstart.target_flops(dense, shrunk) == 0.25
    for accuracy, words in (
        (0.98, "1.00 points below"),
        (0.965, "0.50 points above"),
        (0.97, "equal to"),
    ):
        assert quickstart.verdict(shrunk, result(accuracy, 96)) == (
            f"The shrunk network is {words} the narrow one, which takes 96% of "
            "its inference FLOPs and was trained from scratch (one seed)."
        )


@pytest.mark.long
def test_the_quick_start_compares_three_runs(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(quickstart, "RUNS", tmp_path)
    small = [
        *("--network=resnet8", "--width=8", "--image_size=4", "--epochs=3"),
        *("--batch_size=256",),
    ]
    monkeypatch.setattr(quickstart, "RECIPE", small)
    shrinking = ["--target_flops=0.5", "--rounds=1", "--warmup=1", "--decay=1"]
    monkeypatch.setattr(quickstart, "SHRINKING", shrinking)
    quickstart.main([])
    printed = capfd.readouterr().out
    methods = "dense", "targetprune", "narrow"
    (header,) = (x for x in printed.splitlines() if x.split() == [*methods])
    assert "The shrunk network is" in printed.partition(header)[2]
    for method in methods:
        assert f"{method}: recorded in {tmp_path / method}" in printed
    _, shrunk, narrow = (
        json.loads((tmp_path / method / "result.json").read_text())
        for method in methods
    )
    assert narrow["forward_flops"] <= shrunk["forward_flops"]
    assert narrow["width"] < narrow["full_width"] == 8
