"""Measures what lasso and callback add to a step before anything is removed.

    python tools/benchmarks/step_overhead.py

Two models of the same architecture train in turns, ten steps each, inside two
ordinary `fit`s: whatever else the machine does hits both. The median of the
ratios, turn by turn, is the result; it should stay below 1.05.
"""

import json
import pathlib
import statistics
import threading
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from environment import ROOT, environment

import keras_prunetrain as kpt
from keras_prunetrain import models

_NETWORK = flags.DEFINE_enum(
    "network", "resnet20", sorted(models.__all__), "Network."
)
_TURNS = flags.DEFINE_integer("turns", 30, "Turns of each model.")
_OUTPUT = flags.DEFINE_string(
    "output",
    str(ROOT / "tools" / "results" / "step_overhead.json"),
    "File to write the result to.",
)

BATCH_SIZE = 128
STEPS = 10  # Per turn.
WARM_UP = 2  # Turns that are not counted: tracing, calibration, caches.
SEED = 0


class TakesTurns(keras.callbacks.Callback):
    """Trains for one epoch whenever it is its turn, and times it."""

    def __init__(self, own_turn, other_turn):
        super().__init__()
        self.seconds = []
        self._own_turn = own_turn
        self._other_turn = other_turn

    def on_epoch_begin(self, epoch, logs=None):
        self._own_turn.acquire()
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self._started)
        self._other_turn.release()


def main(argv):
    del argv
    turns = threading.Semaphore(1), threading.Semaphore(0)
    clocks = TakesTurns(*turns), TakesTurns(*turns[::-1])
    # No reconfiguration comes up: what is measured is every other epoch.
    lasso = kpt.PruneTrainCallback(interval=10**6)
    threads = [
        threading.Thread(target=train, args=(callbacks,))
        for callbacks in ([clocks[0]], [lasso, clocks[1]])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    dense, sparsified = (clock.seconds[WARM_UP:-1] for clock in clocks)
    ratios = [b / a for a, b in zip(dense, sparsified, strict=True)]
    record = environment([SEED]) | {
        "network": _NETWORK.value,
        "batch_size": BATCH_SIZE,
        "dense_milliseconds_per_step": milliseconds(dense),
        "sparsified_milliseconds_per_step": milliseconds(sparsified),
        "ratio_median": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4),
        "turns": len(ratios),
    }
    output = pathlib.Path(_OUTPUT.value)
    output.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def train(callbacks):
    rng = np.random.default_rng(SEED)
    images = rng.normal(size=(BATCH_SIZE, 32, 32, 3)).astype("float32")
    labels = rng.integers(0, 10, BATCH_SIZE)
    model = getattr(models, _NETWORK.value)(weight_decay=5e-4)
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(
        endless(images, labels),
        steps_per_epoch=STEPS,
        epochs=_TURNS.value + WARM_UP + 1,  # The last one reconfigures.
        callbacks=callbacks,
        shuffle=False,
        verbose=0,
    )


def endless(images, labels):
    options = tf.data.Options()
    # Its tuner holds up the end of an epoch; see apps/data.py.
    options.autotune.enabled = False
    batches = tf.data.Dataset.from_tensors((images, labels)).repeat()
    return batches.with_options(options)


def milliseconds(seconds):
    return 1000 * statistics.median(seconds) / STEPS


if __name__ == "__main__":
    app.run(main)
