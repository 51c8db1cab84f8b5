"""Counts what figures 4 and 12 of the PruneTrain paper draw, of a finished run.

    python tools/benchmarks/sparsity.py runs/RUN

Of the channels that fell below the threshold while they were in the network:
how many rose to it again, and how far. Of the weights in the kernels that are
left: how many lie below the threshold.
"""

import pathlib
import sys

import keras
import numpy as np
import record_file
from absl import app, flags

# `apps` and `tools` are not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from apps.environment import environment  # noqa: E402
from tools import run_records  # noqa: E402


def define(values):
    """Defines the flags of this program in `values`."""
    flags.DEFINE_string(
        *("output", None, "Default: tools/results/sparsity_RUN.json."),
        flag_values=values,
    )


def main(argv, values=flags.FLAGS):
    if len(argv) != 2:
        sys.exit("Expected: the folder of one finished run.")
    try:
        run = run_records.read(argv[1])
        model = keras.saving.load_model(run.path / "model.keras")
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    record = environment([run.recipe.get("seed")]) | {
        "run": run.name,
        "recipe_of_run": run.recipe,
        "threshold": run.threshold,
        "channels": revived(run.channels, run.threshold),
        "weights": near_zero(model, run.threshold),
    }
    record_file.write(record, f"sparsity_{run.name}", values.output)


def revived(channels, threshold):
    """Returns how many channels fell below the threshold, and rose again.

    Args:
        channels: Dict from a layer to the largest weight magnitude of each
            channel after each epoch, shape `(epochs, channels)`, NaN once it is
            gone.
        threshold: Float.
    """
    fell, heights = 0, []
    for history in channels.values():
        # Whether it was below in an epoch before; a NaN is neither.
        was_below = np.logical_or.accumulate(history < threshold)[:-1]
        later = np.where(was_below, history[1:], np.nan)
        highest = np.fmax.reduce(later, initial=-np.inf)
        fell += int((history < threshold).any(axis=0).sum())
        heights += highest[highest >= threshold].tolist()
    return {
        "fell": fell,
        "rose": len(heights),
        "highest": max(heights, default=None),
    }


def near_zero(model, threshold):
    """Returns how many weights of each kernel lie below the threshold."""
    kernels = {
        weight.path: np.abs(keras.ops.convert_to_numpy(weight))
        for weight in model.weights
        if weight.name == "kernel"
    }
    counts = {
        path: [int((weights < threshold).sum()), weights.size]
        for path, weights in kernels.items()
    }
    below, all_weights = np.sum(list(counts.values()), axis=0)
    return {"share": float(below / all_weights), "kernels": counts}


if __name__ == "__main__":
    define(flags.FLAGS)
    app.run(main)
