"""Reads a run that is kept under tools/results, to build its networks again."""

import pathlib
import sys
from typing import NamedTuple

# `apps` and `tools` are not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from apps import records  # noqa: E402
from keras_prunetrain import models  # noqa: E402
from tools import run_records  # noqa: E402

_RECIPE = {
    "method": records.TEXT,
    "network": records.TEXT,
    "dtype_policy": records.TEXT,
    "batch_size": records.COUNT,
    "momentum": records.NUMBER,
    "weight_decay": records.NUMBER,
}
# Absent or `None` where the network and the data set say it themselves.
_SIZES = "image_size", "width"


class RecordedRun(NamedTuple):
    """What the networks of a run are built from.

    Attributes:
        path: Path of its file.
        recipe: Dict of settings.
        reports: List of a dict for each reconfiguration.
        epochs: Integer.
    """

    path: pathlib.Path
    recipe: dict
    reports: list
    epochs: int

    @property
    def epochs_of_architectures(self):
        """List of how many epochs each architecture was trained."""
        begins = [report["epoch"] + 1 for report in self.reports]
        ends = [*begins, self.epochs]
        return [b - a for a, b in zip([0, *begins], ends, strict=True)]


def read_all(words):
    """Returns the `RecordedRun`s in the files that are named by `words`.

    Exits if there is none, or if one of them is something else.
    """
    if not words:
        sys.exit("Expected: one or more files of tools/record_run.py.")
    try:
        return [_read(pathlib.Path(word)) for word in words]
    except (ValueError, OSError) as error:
        sys.exit(str(error))


def read_one(words):
    """Returns the only one; exits if there are several."""
    if len(words) != 1:
        sys.exit("Expected: one file of tools/record_run.py.")
    return read_all(words)[0]


def _read(path):
    if not path.is_file():
        raise ValueError(f"{path} is no file of tools/record_run.py.")
    run = run_records.read(path)
    place = f"{path}, 'recipe'"
    record = records.Record(_RECIPE, tuple(_RECIPE))
    recipe = records.checked(run.recipe, record, place)
    if recipe["network"] not in models.__all__:
        raise ValueError(
            f"{place}: there is no network '{recipe['network']}' in "
            "keras_prunetrain.models."
        )
    if recipe["method"] == "narrow":  # Its width follows from the target.
        sizes = records.Record({"width": records.COUNT}, ("width",))
        width = records.checked(run.result, sizes, path)["width"]
        recipe = recipe | {"width": width}
    given = {k: v for k in _SIZES if (v := recipe.get(k)) is not None}
    sizes = records.Record(dict.fromkeys(_SIZES, records.COUNT), ())
    records.checked(given, sizes, place)
    record = records.Record({"epochs": records.COUNT}, ("epochs",))
    epochs = records.checked(run.result, record, path)["epochs"]
    for number, report in enumerate(run.reconfigurations, start=1):
        place = f"{path}, 'reconfigurations' {number}"
        records.checked(report, records.Record({}, ("keep",)), place)
    return RecordedRun(path, recipe, run.reconfigurations, epochs)
