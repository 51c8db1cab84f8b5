"""Reads what a training program has written of a run."""

import io
import json
import pathlib
import zipfile
from typing import NamedTuple

import numpy as np


class Run(NamedTuple):
    """The records of one run.

    Attributes:
        name: The name of its folder, or of its file.
        path: Path of either.
        metrics: List of dicts, one for each epoch.
        reconfigurations: List of dicts.
        channels: Dict from a layer to the largest magnitude of each channel,
            shape `(epochs, channels)`, NaN once it is gone. Empty if unknown.
        result: Dict; empty while the run is not finished.
        recipe: Dict; empty if unknown.
        remarks: List of strings: what is missing.
    """

    name: str
    path: pathlib.Path
    metrics: list
    reconfigurations: list
    channels: dict
    result: dict
    recipe: dict
    remarks: list

    @property
    def is_dense(self):
        if "method" in self.recipe:
            return self.recipe["method"] == "dense"
        return all(row.get("density", 1.0) == 1.0 for row in self.metrics)

    @property
    def threshold(self):
        return self.recipe.get("threshold", 1e-4)

    def column(self, key):
        """Returns what `metrics` has under `key`, NaN where it has not."""
        return np.array([row.get(key, np.nan) for row in self.metrics], float)

    def has(self, *keys):
        """Whether any epoch has all of these `keys`."""
        return any(all(key in row for key in keys) for row in self.metrics)

    def left(self, layer, epoch):
        """Returns the positions of the channels that are left."""
        history = self.channels[layer][: len(self.metrics)]
        return np.flatnonzero(~np.isnan(history[epoch]))

    def without_seconds(self):
        """Returns the same run, as if nobody had taken its time."""
        return self._replace(
            metrics=[_without_seconds(row) for row in self.metrics],
            reconfigurations=[
                _without_seconds(report) for report in self.reconfigurations
            ],
            result=_without_seconds(self.result),
            remarks=[*self.remarks, "its seconds are left out"],
        )


def _without_seconds(record):
    return {k: v for k, v in record.items() if not k.endswith("seconds")}


def read(path):
    """Returns the `Run` in a folder, or in a file of `tools/record_run.py`.

    Raises:
        ValueError: If `path` has no epoch of a run.
    """
    path = pathlib.Path(path)
    return _read_file(path) if path.is_file() else _read_folder(path)


def _read_file(path):
    try:
        record = json.loads(path.read_text())
        metrics, reports = record.pop("metrics"), record.pop("reconfigurations")
        if not metrics:
            raise ValueError
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(
            f"'{path}' is no record of tools/record_run.py."
        ) from error
    recipe = record.get("recipe", {})
    remarks = ["kept without channels.npz: no pictures of its layers"]
    return Run(path.stem, path, metrics, reports, {}, record, recipe, remarks)


def _read_folder(folder):
    path = folder / "metrics.jsonl"
    if not path.exists():
        raise ValueError(f"There is no run in '{folder}': expected {path}.")
    remarks = []
    metrics = _lines(path, remarks)
    if not metrics:
        raise ValueError(f"The run in '{folder}' has not finished an epoch.")
    reconfigurations = []
    if (folder / "reconfigurations.jsonl").exists():
        reconfigurations = _lines(folder / "reconfigurations.jsonl", remarks)
    result = _json(folder / "result.json", remarks)
    if result is None:
        remarks.append(f"not finished: {len(metrics)} epochs so far")
        result = {}
    return Run(
        name=folder.resolve().name,
        path=folder,
        metrics=metrics,
        reconfigurations=reconfigurations,
        channels=_channels(folder / "channels.npz", remarks),
        result=result,
        recipe=_json(folder / "recipe.json", remarks)
        or result.get("recipe", {}),
        remarks=remarks,
    )


def _lines(path, remarks):
    """Returns the JSON objects in the lines of a file, without a cut one."""
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            remarks.append(f"{path.name} breaks off in line {number}")
            break
    return rows


def _json(path, remarks):
    """Returns what a file holds, `{}` if it is cut, `None` if it is missing."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError:
        remarks.append(f"{path.name} breaks off")
        return {}


def _channels(path, remarks):
    try:
        with np.load(io.BytesIO(path.read_bytes())) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        remarks.append("no channels.npz: no pictures of its layers")
    except (ValueError, OSError, zipfile.BadZipFile):
        remarks.append("channels.npz breaks off: no pictures of its layers")
    return {}
