"""Settings and results of a run, as TensorBoard's *HParams* tab lists them."""

import pathlib
import zlib
from collections.abc import Iterable
from typing import Any

# TensorBoard takes the columns of one run for all, of whichever it reads first:
# a dense run has the same ones.
_COLUMNS = (
    *("penalty_ratio", "interval", "threshold", "finetune_epochs", "factor"),
)


def settings_of(training: Any) -> dict[str, Any]:
    """Returns the settings of a method, `None` for those that it has not.

    TensorBoard sorts the settings by name and shows the first five, so the name
    of the one that tells runs apart begins with an "a".

    Args:
        training: A `ReconfiguringCallback` or a `DenseTraining`.
    """
    return {
        "algorithm": type(training).__name__,
        **dict.fromkeys(_COLUMNS),
        **training.settings(),
    }


def result_tags(names: Iterable[str]) -> list[str]:
    """Returns the tags of the results of a run, in the order of the columns.

    Args:
        names: The metrics of an epoch. One of the validation comes first.
    """
    results = sorted(names, key=lambda name: not name.startswith("val_"))
    return [
        *(f"final/{name}" for name in results[:1]),
        *("cost/relative_training_flops", "final/density"),
        *("final/parameters", "time/epoch_seconds"),
        *(f"final/{name}" for name in results[1:] if name != "density"),
    ]


def name_of_run(folder: pathlib.Path) -> str:
    """Returns a name by which the run in `folder` has a row of its own.

    Runs of the same settings, but another seed, would share one. The end of
    the path is for people; the checksum of all of it tells runs apart whose
    paths end alike.
    """
    folder = folder.resolve()
    return f"{'/'.join(folder.parts[-2:])} {zlib.crc32(bytes(folder)):08x}"
