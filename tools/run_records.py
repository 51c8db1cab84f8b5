"""Reads what a training program has written of a run."""

import io
import pathlib
import sys
from typing import NamedTuple

import numpy as np

# `apps` is not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from apps import records  # noqa: E402


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
        return not self.may_shrink

    @property
    def may_shrink(self):
        """Whether the method removes channels; if unknown, whether any went."""
        if "method" in self.recipe:
            return self.recipe["method"] not in ("dense", "narrow")
        return any(row.get("density", 1.0) != 1.0 for row in self.metrics)

    @property
    def threshold(self):
        return self.recipe.get("threshold", 1e-4)

    @property
    def pruned_after(self):
        """After how many epochs EarlyCroP has pruned; `None` if it has not."""
        if "pruned_after_epochs" in self.result:
            return self.result["pruned_after_epochs"]
        # Of a run that is not finished: the distance is measured until then.
        known = np.isfinite(self.column("weight_distance"))
        if not known.any() or known[-1]:
            return None
        return int(np.flatnonzero(known)[-1]) + 1

    def column(self, key):
        """Returns what `metrics` has under `key`, NaN where it has not."""
        return np.array([row.get(key, np.nan) for row in self.metrics], float)

    @property
    def training_flops(self):
        """The FLOPs of each epoch, with those of an emulation by SDGP."""
        emulated = self.column("emulated_flops")
        return self.column("training_flops") + np.nan_to_num(emulated)

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
        ValueError: If `path` has no epoch of a run, or if one of its records
            holds something else than a run writes.
        OSError: If a file cannot be read.
    """
    path = pathlib.Path(path)
    return _read_file(path) if path.is_file() else _read_folder(path)


def is_kept(path):
    """Whether the file `path` is one of `tools/record_run.py`."""
    try:
        _read_file(path)
    except (ValueError, OSError):
        return False
    return True


def _read_file(path):
    try:
        record = records.parsed(records.text_of(path), path)
        metrics, reports = record.pop("metrics"), record.pop("reconfigurations")
        if not (metrics and type(metrics) is type(reports) is list):
            raise ValueError
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(
            f"'{path}' is no record of tools/record_run.py."
        ) from error
    records.checked_epochs(metrics, _places(path, "metrics", metrics))
    places = _places(path, "reconfigurations", reports)
    for report, place in zip(reports, places, strict=True):
        records.checked(report, records.RECONFIGURATION, place)
    return Run(
        name=readable(path.stem),
        path=path,
        metrics=metrics,
        reconfigurations=reports,
        channels={},
        result=records.checked_result(record, path),
        recipe=record.get("recipe", {}),
        remarks=["kept without channels.npz: no pictures of its layers"],
    )


def _places(path, key, rows):
    return [f"{path}, '{key}' {number}" for number in range(1, len(rows) + 1)]


def _read_folder(folder):
    path = folder / "metrics.jsonl"
    if not path.exists():
        raise ValueError(f"There is no run in '{folder}': expected {path}.")
    remarks = []
    metrics = records.checked_epochs(*_lines(path, remarks))
    if not metrics:
        raise ValueError(f"The run in '{folder}' has not finished an epoch.")
    result = _json(folder / "result.json", records.checked_result, remarks)
    if result is None:
        remarks.append(f"not finished: {len(metrics)} epochs so far")
    channels = _channels(folder / "channels.npz", remarks)
    return Run(
        name=readable(folder.resolve().name),
        path=folder,
        metrics=metrics,
        reconfigurations=_reconfigurations(folder, remarks),
        channels=_checked_channels(channels, len(metrics), folder),
        result=result or {},
        recipe=_json(folder / "recipe.json", _checked_recipe, remarks)
        or (result or {}).get("recipe", {}),
        remarks=remarks,
    )


def readable(name):
    """Returns the name of a file as text, which it need not be."""
    return name.encode(errors="replace").decode()


def _lines(path, remarks):
    """Returns what the lines of a file hold, without a cut one, and places."""
    rows, places = [], []
    for number, line in enumerate(records.text_of(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            rows.append(records.parsed(line, place))
        except records.BrokenOffError:
            remarks.append(f"{path.name} breaks off in line {number}")
            break
        places.append(place)
    return rows, places


def _reconfigurations(folder, remarks):
    path = folder / "reconfigurations.jsonl"
    if not path.exists():
        return []
    return [
        records.checked(row, records.RECONFIGURATION, place)
        for row, place in zip(*_lines(path, remarks), strict=True)
    ]


def _checked_recipe(value, place):
    return records.checked(value, records.RECIPE, place)


def _json(path, checked, remarks):
    """Returns what a file holds, `{}` if it is cut, `None` if it is missing."""
    try:
        return checked(records.parsed(records.text_of(path), path), path)
    except FileNotFoundError:
        return None
    except records.BrokenOffError:
        remarks.append(f"{path.name} breaks off")
        return {}


def _channels(path, remarks):
    try:
        with np.load(io.BytesIO(path.read_bytes())) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        remarks.append("no channels.npz: no pictures of its layers")
    except Exception:  # Whatever a broken archive leads NumPy and zlib to.
        remarks.append("channels.npz breaks off: no pictures of its layers")
    return {}


def _checked_channels(channels, epochs, folder):
    """Returns `channels` if they are those of a run of so many `epochs`."""
    for layer, history in channels.items():
        what = f"{folder / 'channels.npz'}: the channels of '{layer}'"
        kind = getattr(history, "dtype", np.dtype(object)).kind
        if kind != "f" or history.ndim != 2 or not history.shape[1]:
            raise records.RecordError(
                f"{what} are no numbers of shape (epochs, channels). Restore "
                "the file, or remove it to do without pictures of the layers."
            )
        if len(history) < epochs:
            raise records.RecordError(
                f"{what} are those of {len(history)} epochs, but metrics.jsonl "
                f"has {epochs}: files of two runs. Restore one of them, or "
                "remove channels.npz to do without pictures of the layers."
            )
    return channels
