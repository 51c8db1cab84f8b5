"""Settings and results of a run, as TensorBoard's *HParams* tab lists them."""

import pathlib
import zlib
from collections.abc import Iterable
from typing import Any

import keras

from keras_prunetrain.sdgp.attach import emulation_of

# For all runs, TensorBoard shows the columns of the run that it reads first, so
# every run has these columns, even a dense one.
_COLUMNS = (
    *("penalty_ratio", "interval", "threshold", "finetune_epochs", "factor"),
    *("solver", "coupled"),
    *("target", "score", "warmup", "decay", "rounds", "max_layer_cut"),
    *("sparsity", "when", "structured", "iterations"),
)


def settings_of(training: Any, model: keras.Model) -> dict[str, Any]:
    """Returns the settings of a method, `None` for settings that it lacks.

    TensorBoard sorts the settings by name and shows the first five, so the
    setting that distinguishes the runs has a name that begins with an "a".

    Args:
        training: A `ReconfiguringCallback` or a `DenseTraining`.
        model: The model that is trained.
    """
    emulation = emulation_of(model)
    return {
        "algorithm": type(training).__name__,
        **dict.fromkeys(_COLUMNS),
        "sdgp": None if emulation is None else str(emulation.pattern),
        **training.settings(),
    }


def result_tags(names: Iterable[str]) -> list[str]:
    """Returns the tags of the results of a run, in the order of the columns.

    Args:
        names: The metrics of an epoch. A validation metric becomes the first.
    """
    results = sorted(names, key=lambda name: not name.startswith("val_"))
    return [
        *(f"final/{name}" for name in results[:1]),
        *("cost/relative_training_flops", "final/density"),
        *("final/parameters", "time/epoch_seconds"),
        *(
            f"final/{name}"
            for name in results[1:]
            # The distance is unknown at the end, once the model is pruned.
            if name not in ("density", "weight_distance")
        ),
    ]


def name_of_run(folder: pathlib.Path) -> str:
    """Returns a name by which the run in `folder` has a row of its own.

    Runs that differ only in the seed would otherwise share a row. The end of
    the path is for readers; the checksum of the whole path distinguishes runs
    whose paths end alike.
    """
    folder = folder.resolve()
    return f"{'/'.join(folder.parts[-2:])} {zlib.crc32(bytes(folder)):08x}"
