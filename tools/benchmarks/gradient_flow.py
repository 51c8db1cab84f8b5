"""Measures what it takes to score a network by its gradient flow.

    python tools/benchmarks/gradient_flow.py

ResNet-50 at 64 pixels, on 5 batches of 32 images, should take less than 60
seconds on 2 cores, and less than three times the memory of as many training
steps. Each of the two is measured in a process of its own: the seconds, tracing
included, and how much its memory grows at most behind the built model.
"""

import json
import pathlib
import resource
import subprocess
import sys
import time

import keras
import numpy as np
from absl import app, flags

from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.gradient_flow import Batch, gradient_flow

# `apps` is not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from apps.environment import ROOT, environment  # noqa: E402

_OUTPUT = flags.DEFINE_string(
    "output",
    str(ROOT / "tools" / "results" / "gradient_flow.json"),
    "File to write the result to.",
)
_TASK = flags.DEFINE_enum(
    "task", None, ["score", "train"], "Only this, in this process."
)

SEED = 0
BATCHES, BATCH_SIZE, PIXELS = 5, 32, 64


def main(argv):
    del argv
    if _TASK.value is not None:
        print(json.dumps(measured(_TASK.value)))
        return
    tasks = {task: in_a_process(task) for task in ("train", "score")}
    record = environment([SEED]) | {
        "network": "ResNet50",
        "pixels": PIXELS,
        "batches": BATCHES,
        "batch_size": BATCH_SIZE,
        **tasks,
        "memory_ratio": tasks["score"]["bytes"] / tasks["train"]["bytes"],
    }
    pathlib.Path(_OUTPUT.value).write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def in_a_process(task):
    """Returns what `measured` returns, from a process of its own."""
    process = subprocess.run(
        [sys.executable, __file__, f"--task={task}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(process.stdout.splitlines()[-1])


def measured(task):
    """Returns seconds and bytes of the scores, or of as many training steps."""
    keras.utils.set_random_seed(SEED)
    model = keras.applications.ResNet50(
        weights=None,
        input_shape=(PIXELS, PIXELS, 3),
        classes=10,
        classifier_activation=None,
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    model.optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(SEED)
    shape = (BATCHES * BATCH_SIZE, PIXELS, PIXELS, 3)
    images = rng.normal(size=shape).astype("float32")
    labels = rng.integers(10, size=len(images))
    before, started = peak_bytes(), time.perf_counter()
    if task == "train":
        model.fit(images, labels, BATCH_SIZE, verbose=0)
    else:
        parts = np.split(np.arange(len(images)), BATCHES)
        batches = [Batch(images[part], labels[part]) for part in parts]
        flow = gradient_flow(model, batches)
        flow.channel_scores(number_channels(model), "gradient_flow")
    return {
        "seconds": time.perf_counter() - started,
        "bytes": peak_bytes() - before,
    }


def peak_bytes():
    """Returns the largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    app.run(main)
