"""Measures what `DensityLog` adds to an epoch of ResNet-20 on CIFAR-10.

    python tools/benchmarks/log_overhead.py

A short training, whose channels go at a high threshold so that heat maps and
texts are among what is written. The time spent in all hooks of the log, in each
epoch, is divided by the time of 391 training steps of the same run.
"""

import json
import pathlib
import statistics
import sys
import tempfile
import time

import keras
import numpy as np
from absl import app, flags

import keras_prunetrain as kpt

# `apps` is not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from apps import command_line  # noqa: E402
from apps.environment import ROOT, environment  # noqa: E402

_EPOCHS = flags.DEFINE_integer("epochs", 12, "Epochs, of 10 steps.")

OUTPUT = ROOT / "tools" / "results" / "log_overhead.json"
SEED = 0
BATCH_SIZE = 128
STEPS = 10
STEPS_OF_CIFAR = 391
THRESHOLD = 0.2  # So that channels go after a few steps.
HOOKS = (
    *("on_epoch_begin", "on_epoch_end", "on_train_batch_end"),
    *("on_test_begin", "on_test_end", "on_train_begin", "on_train_end"),
)


class Timed(kpt.DensityLog):
    """Adds up the seconds of its own hooks."""

    def __init__(self, log_dir):
        super().__init__(log_dir)
        self.epochs = []
        self.spent = 0.0
        for name in HOOKS:
            setattr(self, name, self._timed(getattr(self, name)))

    def _timed(self, hook):
        def timed(*args, **kwargs):
            started = time.perf_counter()
            hook(*args, **kwargs)
            self.spent += time.perf_counter() - started
            if hook.__name__ == "on_epoch_end":
                self.epochs.append(self.spent)
                self.spent = 0.0
            elif hook.__name__ == "on_train_end":
                self.epochs[-1] += self.spent

        return timed


class Steps(keras.callbacks.Callback):
    """Notes the seconds of each step."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        self._started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds.append(time.perf_counter() - self._started)


def main(argv):
    command_line.refuse_words(argv)
    keras.utils.set_random_seed(SEED)
    rng = np.random.default_rng(SEED)
    count = BATCH_SIZE * STEPS
    images = rng.normal(size=(count, 32, 32, 3)).astype("float32")
    labels = rng.integers(0, 10, count)
    model = kpt.models.resnet20(weight_decay=5e-4)
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    pruning = kpt.PruneTrainCallback(interval=3, threshold=THRESHOLD)
    steps = Steps()
    with tempfile.TemporaryDirectory() as folder:
        log = Timed(folder)
        model.fit(
            images,
            labels,
            batch_size=BATCH_SIZE,
            epochs=_EPOCHS.value,
            verbose=0,
            callbacks=[steps, pruning, log],
        )
    epoch = STEPS_OF_CIFAR * statistics.median(steps.seconds)
    record = environment([SEED]) | {
        "seconds_of_log_per_epoch": log.epochs,
        "seconds_of_epoch": epoch,
        "ratio": statistics.mean(log.epochs) / epoch,
        "largest_ratio": max(log.epochs) / epoch,
        "reconfigurations": len(pruning.reports),
    }
    OUTPUT.write_text(json.dumps(record, indent=1) + "\n")
    print({k: v for k, v in record.items() if "ratio" in k})


if __name__ == "__main__":
    app.run(main)
