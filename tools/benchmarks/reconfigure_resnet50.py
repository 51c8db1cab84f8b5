"""Measures how long `reconfigure` takes, and how much memory, on a ResNet50.

    python tools/benchmarks/reconfigure_resnet50.py

`keras.applications.ResNet50` with the slots of Adam; half of its removable
channels are dead on both sides. The first training step afterwards, which is
traced anew, is reported apart, and so is the peak of the memory: never more
than the old model and the new one.
"""

import gc
import json
import pathlib
import resource
import statistics
import sys
import time

import keras
import numpy as np
from absl import app, flags

import keras_prunetrain as kpt
from keras_prunetrain.channels.numbering import number_channels

# `apps` and `tests` are not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from apps import command_line  # noqa: E402
from apps.environment import ROOT, environment  # noqa: E402
from tests.masked import silence, some_alive  # noqa: E402

_REPEATS = flags.DEFINE_integer("repeats", 5, "Reconfigurations to time.")
_OUTPUT = flags.DEFINE_string(
    "output",
    str(ROOT / "tools" / "results" / "reconfigure_resnet50.json"),
    "File to write the result to.",
)

SEED = 0


def main(argv):
    command_line.refuse_words(argv)
    keras.utils.set_random_seed(SEED)
    model = keras.applications.ResNet50(weights=None)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    numbering = number_channels(model)
    silence(numbering, some_alive(numbering, np.random.default_rng(SEED)))
    gc.collect()
    held = megabytes(model)
    before = peak_megabytes()
    seconds = []
    smaller = None
    for _ in range(_REPEATS.value):
        smaller = None
        gc.collect()
        started = time.perf_counter()
        smaller = kpt.reconfigure(model)
        seconds.append(time.perf_counter() - started)
    grown = peak_megabytes() - before
    images = np.zeros((8, 224, 224, 3), "float32")
    labels = np.zeros(8, "int32")
    steps = []
    for _ in range(3):
        started = time.perf_counter()
        smaller.train_on_batch(images, labels)
        steps.append(time.perf_counter() - started)
    record = environment([SEED]) | {
        "seconds_median": statistics.median(seconds),
        "seconds": seconds,
        "first_step_seconds": steps[0],
        "later_step_seconds": steps[-1],
        "parameters": [model.count_params(), smaller.count_params()],
        "megabytes_of_model_and_slots": [held, megabytes(smaller)],
        "peak_grew_by_megabytes": grown,
    }
    output = pathlib.Path(_OUTPUT.value)
    output.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def megabytes(model):
    variables = model.variables + model.optimizer.variables
    return sum(v.value.numpy().nbytes for v in variables) / 1e6


def peak_megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    app.run(main)
