"""A training program that is interrupted goes on when it is started again."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = [
    *("--dataset=digits", "--network=resnet8", "--epochs=5", "--interval=2"),
    *("--threshold=0.25", "--learning_rate_drops=100", "--granularity=8"),
    *("--image_size=4", "--width=8"),
]
SECONDS = 300


def start(folder, *more):
    return subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "apps" / "train_cifar.py")),
            *(f"--workdir={folder}", *SETTINGS, *more),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"TF_DETERMINISTIC_OPS": "1"},
    )


def finish(folder, *more):
    """Returns the status and the output of a program that is not disturbed."""
    process = start(folder, *more)
    output, _ = process.communicate(timeout=SECONDS)
    return process.returncode, output


def disturb(folder, number, epochs):
    """Sends a signal once so many epochs are recorded; as `finish`."""
    process = start(folder)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if len(rows(folder)) >= epochs:
            process.send_signal(number)
            break
        time.sleep(0.02)
    output, _ = process.communicate(timeout=SECONDS)
    return process.returncode, output


def rows(folder):
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def without_seconds(row):
    return {k: v for k, v in row.items() if "seconds" not in k}


@pytest.mark.long
def test_a_run_in_pieces_leaves_the_records_of_the_whole_one(tmp_path):
    status, output = finish(tmp_path / "whole")
    assert status == 0, output
    pieces = tmp_path / "pieces"
    for number, epochs, expected in (
        (signal.SIGTERM, 1, 143),
        (signal.SIGKILL, 3, -9),
        (signal.SIGINT, 4, 130),
    ):
        status, output = disturb(pieces, number, epochs)
        assert status == expected, output
        assert not (pieces / "result.json").exists()
        if number != signal.SIGKILL:
            assert "Start the program again to go on" in output
            assert "Traceback" not in output
    # A line that was cut when the process died.
    with (pieces / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "accu')
    status, output = finish(pieces)
    assert status == 0, output
    assert "goes on in epoch" in output
    assert not (pieces / "backups").exists()

    for name in ("metrics.jsonl", "reconfigurations.jsonl"):
        found, expected = (
            [
                without_seconds(json.loads(line))
                for line in (folder / name).read_text().splitlines()
            ]
            for folder in (pieces, tmp_path / "whole")
        )
        assert found == expected, name
        assert len(found) == {"metrics.jsonl": 5}.get(name, len(found)) > 0
    with (
        np.load(pieces / "channels.npz") as found,
        np.load(tmp_path / "whole" / "channels.npz") as expected,
    ):
        assert found.keys() == expected.keys()
        for name in found:
            np.testing.assert_array_equal(found[name], expected[name])

    before = (pieces / "result.json").read_text()
    status, output = finish(pieces)
    assert status == 0, output
    assert "has finished already" in output
    assert (pieces / "result.json").read_text() == before
    status, output = finish(pieces, "--seed=1")
    assert status == 1
    assert "seed=0 instead of 1" in output
    assert "--restart" in output
    assert (pieces / "result.json").read_text() == before
