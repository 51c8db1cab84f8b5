"""Measures how many images per second a pruned network takes at inference.

    python tools/benchmarks/inference.py runs/DENSE runs/PRUNED
    python tools/benchmarks/inference.py tools/results/RUN.json

Two folders of finished runs: their models, `model.keras`. The record of a run:
its first and its last network, rebuilt. Both take batches of 10 and of 100
random images in turns, as in the paper's table 2, in what the run computed in.
"""

import pathlib
import statistics
import sys
import time

import keras
import numpy as np
import record_file
import recorded_run
import tensorflow as tf
from absl import app, flags
from architectures import SEED, architectures

import keras_prunetrain as kpt

# `apps` is not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from apps.environment import environment  # noqa: E402

BATCHES = (10, 100)
STEPS = 10  # Per turn.


def define(values):
    """Defines the flags of this program in `values`."""
    flags.DEFINE_integer(
        *("turns", 30, "Turns of each network.", 1), flag_values=values
    )
    flags.DEFINE_string(
        *("output", None, "Default: tools/results/inference_RUN.json."),
        flag_values=values,
    )


def main(argv, values=flags.FLAGS):
    name, dense, pruned = networks(argv[1:])
    costs = [kpt.model_cost(model).forward_flops for model in (dense, pruned)]
    record = environment([SEED]) | {
        "run": name,
        "inference_flops_ratio": costs[1] / costs[0],
        "turns": values.turns,
        "batches": [compare(dense, pruned, n, values.turns) for n in BATCHES],
    }
    record_file.write(record, f"inference_{name}", values.output)


def networks(words):
    """Returns a name, the dense network, and the pruned one."""
    if len(words) == 2:
        files = [pathlib.Path(word, "model.keras") for word in words]
        for path in files:
            if not path.is_file():
                sys.exit(f"No finished run in {path.parent}: expected {path}.")
        models = [keras.saving.load_model(path) for path in files]
        return files[1].resolve().parent.name, *models
    run = recorded_run.read_one(words)
    keras.config.set_dtype_policy(run.recipe["dtype_policy"])
    first, *_, last = architectures(run)
    return run.path.stem, first, last


def compare(dense, pruned, batch_size, turns):
    """Returns the images per second of both networks, and their ratio.

    Args:
        dense: A model for images.
        pruned: The smaller one.
        batch_size: Integer, images of a batch.
        turns: Integer. The ratio is the median over so many turns.
    """
    shape = (batch_size, *dense.input_shape[1:])
    images = np.random.default_rng(SEED).normal(size=shape).astype("float32")
    images = tf.constant(images)
    functions = [
        tf.function(lambda x, model=model: model(x, training=False))
        for model in (dense, pruned)
    ]
    pairs = [
        [_seconds(function, images) for function in functions]
        for _ in range(turns + 1)
    ][1:]  # The first turn traces.
    rates = [
        batch_size / statistics.median(x) for x in zip(*pairs, strict=True)
    ]
    return {
        "batch_size": batch_size,
        "images_per_second": rates,
        "speedup_median": statistics.median(a / b for a, b in pairs),
    }


def _seconds(function, images):
    started = time.perf_counter()
    for _ in range(STEPS):
        function(images).numpy()  # Waits for the device.
    return (time.perf_counter() - started) / STEPS


if __name__ == "__main__":
    define(flags.FLAGS)
    app.run(main)
