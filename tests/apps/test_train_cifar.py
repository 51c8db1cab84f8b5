"""The training program, run as users run it, and the files that it leaves."""

import json
import pathlib
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from apps import compare

ROOT = pathlib.Path(__file__).parents[2]
EPOCHS = 3
TRAIN_SIZE = 1437  # Four fifths of 1,797 digits.


def run(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module", params=["dense", "prunetrain"])
def finished(request, tmp_path_factory):
    """A short run. The threshold is high, so that channels go at once."""
    folder = tmp_path_factory.mktemp(request.param)
    process = run(
        "apps/train_cifar.py",
        f"--method={request.param}",
        "--dataset=digits",
        "--network=resnet8",
        f"--epochs={EPOCHS}",
        "--interval=1",
        "--threshold=0.25",
        "--learning_rate_drops=100",  # None, so that weights go on moving.
        "--seed=1",
        f"--workdir={folder}",
    )
    assert process.returncode == 0, process.stderr
    return request.param, folder, process.stdout


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


def test_a_run_that_is_stopped_leaves_what_it_has_seen(tmp_path):
    process = subprocess.Popen(
        [
            *(sys.executable, "apps/train_cifar.py", "--dataset=digits"),
            *("--network=resnet8", "--epochs=1000", f"--workdir={tmp_path}"),
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


def test_comparison_shows_ratios(finished, capsys):
    method, folder, _ = finished
    compare.main([str(folder), str(folder)])
    table = capsys.readouterr().out
    assert f"{method}" in table
    assert "(100%)" in table
    assert "(+0.00 points)" in table


def test_a_folder_that_cannot_be_made_ends_the_program(tmp_path):
    (tmp_path / "file").write_text("")
    process = run(
        "apps/train_cifar.py", f"--workdir={tmp_path / 'file' / 'run'}"
    )
    assert process.returncode == 1
    assert "must be a folder that may be written" in process.stderr
    assert "Traceback" not in process.stderr


def test_comparison_of_a_run_that_breaks_off_says_so(tmp_path):
    (tmp_path / "result.json").write_text('{"method": "den')
    with pytest.raises(SystemExit, match="No finished run"):
        compare.main([str(tmp_path)])


def test_comparison_of_an_unfinished_run_says_so(tmp_path):
    with pytest.raises(SystemExit, match="No finished run"):
        compare.main([str(tmp_path)])


@pytest.mark.parametrize("finished", ["dense"], indirect=True)
def test_a_run_compares_itself_with_another_at_its_end(finished, tmp_path):
    method, other, _ = finished
    arguments = [
        *("apps/train_cifar.py", "--network=resnet8", "--epochs=1"),
        *("--method=prunetrain", f"--workdir={tmp_path / 'run'}"),
    ]
    process = run(*arguments, f"--dense={tmp_path}")
    assert process.returncode == 1
    assert "must be the folder of a finished run" in process.stderr
    process = run(*arguments[:-1], f"--dense={other}", f"--workdir={other}")
    assert process.returncode == 1
    assert "cannot be that of the new run" in process.stderr
    assert (other / "result.json").exists()
    process = run(*arguments, f"--dense={other}")
    assert process.returncode == 0, process.stderr
    table = process.stdout.splitlines()[-7:]
    assert table[0].split() == [method, "prunetrain"]
    assert table[1].startswith("validation accuracy")


def test_a_run_is_logged_for_tensorboard(finished):
    method, folder, _ = finished
    logs = folder / "tensorboard"
    assert len(list(logs.glob("events.out.tfevents.*"))) == 1
    record = json.loads((logs / "density_log.json").read_text())
    assert len(record["densities"]) == EPOCHS
    whole = all(x == 1 for row in record["densities"] for x in row)
    assert whole == (method == "dense")


def test_unprepared_data_set_ends_the_program_with_the_command(tmp_path):
    started = time.perf_counter()
    process = run(
        "-m",
        "apps.train_cifar",
        "--dataset=cifar10",
        f"--data_dir={tmp_path}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert process.returncode != 0
    assert process.stderr.rstrip().endswith(
        f"tools/prepare_cifar10.py --data_dir={tmp_path}"
    )
    assert "Traceback" not in process.stderr
    assert "--seed" not in process.stderr + process.stdout  # No list of flags.
    # Not the minutes of a download that is tried again and again.
    assert time.perf_counter() - started < 100
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flag",
    ["--penalty_ratio=1", "--learning_rate_drops=20,half", "--interval=0"],
)
def test_a_flag_out_of_its_range_is_named_without_a_traceback(flag, tmp_path):
    process = run("apps/train_cifar.py", flag, f"--workdir={tmp_path / 'run'}")
    assert process.returncode != 0
    assert flag.partition("=")[0] in process.stderr
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "run").exists()
