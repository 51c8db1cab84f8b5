"""Files from others are read as data: nothing in them is executed."""

import json
import os
import pathlib

import keras
import numpy as np
import pytest
from keras import layers

import keras_prunetrain as kpt
from keras_prunetrain.fit.backup_files import BackupFolder
from tests.tools.written import write_run

import report  # isort: skip
import run_records  # isort: skip

SCRIPT = "<script>alert(1)</script>"
EXECUTED = "KPT_WAS_EXECUTED"


class Touch:
    """Makes a file wherever it is unpickled."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self._path,)


def pickled(path):
    """Returns an array that makes the file `path` when it is read."""
    return np.array([Touch(path)], dtype=object)


def test_the_pickle_would_be_executed(tmp_path):
    np.savez(tmp_path / "file.npz", a=pickled(tmp_path / "executed"))
    with np.load(tmp_path / "file.npz", allow_pickle=True) as arrays:
        assert arrays["a"] is not None
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["state", "array0"])
def test_a_pickle_in_a_backup_is_refused(name, tmp_path):
    folder = BackupFolder(tmp_path / "backups", 1)
    folder.write((1, 0), {"weights": np.arange(3.0)})
    path, _ = folder.read()
    with np.load(path) as arrays:
        parts = dict(arrays)
    np.savez(path, **parts | {name: pickled(tmp_path / "executed")})
    with pytest.raises(ValueError, match="No backup in .* can be read"):
        folder.read()
    assert not (tmp_path / "executed").exists()


def test_a_backup_says_no_address_in_memory(tmp_path):
    """Bytes that are taken for objects would be read as addresses."""
    folder = BackupFolder(tmp_path, 1)
    folder.write((1, 0), {"weights": np.arange(1.0)})
    path, _ = folder.read()
    with np.load(path) as arrays:
        parts = dict(arrays)
    text = parts["state"].tobytes().decode()
    changed = text.replace("<f8", "O")
    assert changed != text
    parts["state"] = np.frombuffer(changed.encode(), "uint8")
    np.savez(path, **parts)
    with pytest.raises(ValueError, match="No backup in .* can be read"):
        folder.read()


def test_a_pickle_among_the_channels_of_a_run_is_not_read(tmp_path):
    folder = write_run(tmp_path / "run")
    np.savez(folder / "channels.npz", a=pickled(tmp_path / "executed"))
    page = report.write([folder], tmp_path / "report").read_text()
    assert "channels.npz breaks off" in page
    assert not (tmp_path / "executed").exists()


def lambda_model(path):
    """Saves a model with a function that sets a variable when it is called."""

    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(4, 3, name="a")(inputs)
    called = layers.Lambda(
        lambda x: [
            x,
            __import__("os").environ.setdefault("KPT_WAS_EXECUTED", "yes"),
        ][0]
    )
    keras.Model(inputs, called(x)).save(path)
    os.environ.pop(EXECUTED)


def test_a_function_in_the_model_of_a_run_is_not_called(tmp_path):
    folder = write_run(tmp_path / "run")
    lambda_model(folder / "model.keras")
    page = report.write([folder], tmp_path / "report").read_text()
    assert "model.keras cannot be read" in page
    assert EXECUTED not in os.environ
    # But for this, it would be.
    keras.saving.load_model(folder / "model.keras", safe_mode=False)
    assert os.environ.pop(EXECUTED) == "yes"


def test_names_are_text_in_the_report(tmp_path):
    folder = write_run(tmp_path / SCRIPT.replace("/", ""))
    with np.load(folder / "channels.npz") as arrays:
        channels = dict(arrays)
    channels[SCRIPT] = channels.pop("a")
    np.savez(folder / "channels.npz", **channels)
    path = folder / "reconfigurations.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["removed_layers"] = [SCRIPT, "<img src=x onerror=alert(1)>"]
        for name in ("channels_before", "channels_after"):
            row[name][SCRIPT] = row[name].pop("a")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = json.loads((folder / "result.json").read_text())
    result["method"] = result["recipe"]["method"] = SCRIPT
    (folder / "result.json").write_text(json.dumps(result))
    page = report.write([folder], tmp_path / "report").read_text()
    assert SCRIPT in run_records.read(folder).channels
    assert "<script" not in page and "<img src=x" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


def test_names_are_text_in_the_picture_of_channels(tmp_path):
    name = SCRIPT.replace("/", "")  # Keras takes no slash.
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(4, 3, name=name)(inputs)
    model = keras.Model(inputs, layers.Conv2D(2, 1, name="last")(x))
    path = tmp_path / "channels.dot"
    kpt.plot_channels(model, path)
    # In quotes: without them, Graphviz would take it for HTML.
    assert f'label="{name}"' in path.read_text()
