"""Measures memory and seconds of a training with 50 reconfigurations.

    python tools/benchmarks/long_run.py

A network of several million parameters trains in one `fit`, on one device and
on two (logical CPUs), each time in a process of its own. After every epoch
channels of each convolution are cut, dead or not: the first channel of each in
the runs that are to stay nearly equal, and so many in those that shrink that
half of the channels are left. What is compared is the resident memory, and the
seconds of the surgery and of the first step after it, after the 5th and the
50th reconfiguration. Seconds are medians over five reconfigurations, those that
end with the one that is named.

On a CPU, oneDNN keeps what it compiles for the shape of each convolution. The
runs without oneDNN show how much of the growth is due to that.
"""

import contextlib
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys

# TensorFlow's notes on devices that are not there; before it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import keras_prunetrain as kpt
from keras_prunetrain.channels.liveness import plan_of
from keras_prunetrain.channels.numbering import number_channels

# `apps` and `tests` are not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from apps import command_line  # noqa: E402
from apps.environment import ROOT, environment  # noqa: E402
from tests.resident import resident_bytes  # noqa: E402

_OUTPUT = flags.DEFINE_string(
    "output",
    str(ROOT / "tools" / "results" / "long_run.json"),
    "File to write the result to.",
)
_MEASURE = flags.DEFINE_list(
    "measure", [], "REPLICAS,LOSS: only this, in this process."
)

SEED = 0
EPOCHS = 50
EARLY = 5  # The reconfiguration that the last one is compared with.
BATCH_SIZE, STEPS = 8, 2
WIDTHS = 256, 512, 512, 512
# Replicas, which channels each convolution loses, and whether oneDNN computes.
RUNS = tuple(itertools.product((1, 2), ("one", "half"), (True, False)))


def main(argv):
    command_line.refuse_words(argv)
    if _MEASURE.value:
        replicas, loss = _MEASURE.value
        print(json.dumps(measure(int(replicas), loss)))
        return
    rows = []
    for replicas, loss, with_onednn in RUNS:
        row = in_a_process(replicas, loss, with_onednn)
        rows.append({"onednn": with_onednn, **row})
        print({k: v for k, v in rows[-1].items() if k != "series"}, flush=True)
    record = environment([SEED]) | {"early": EARLY, "runs": rows}
    pathlib.Path(_OUTPUT.value).write_text(json.dumps(record, indent=1) + "\n")


def in_a_process(replicas, loss, with_onednn):
    process = subprocess.run(
        [sys.executable, __file__, f"--measure={replicas},{loss}"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"TF_ENABLE_ONEDNN_OPTS": str(int(with_onednn))},
    )
    return json.loads(process.stdout.splitlines()[-1])


def measure(replicas, loss):
    """Trains; returns what became of memory and seconds."""
    keras.utils.set_random_seed(SEED)
    with _scope(replicas):
        model = network(WIDTHS)
    widths = [
        list(np.linspace(width, width / 2, EPOCHS + 1).astype(int)[1:])
        if loss == "half"
        else [width - i for i in range(1, EPOCHS + 1)]
        for width in WIDTHS
    ]
    series = train(model, list(zip(*widths, strict=True)))
    return {"replicas": replicas, "loss": loss, **comparison(series, EARLY)}


def _scope(replicas):
    if replicas == 1:
        return contextlib.nullcontext()
    (cpu,) = tf.config.list_physical_devices("CPU")
    parts = [tf.config.LogicalDeviceConfiguration()] * replicas
    tf.config.set_logical_device_configuration(cpu, parts)
    devices = [f"CPU:{i}" for i in range(replicas)]
    return tf.distribute.MirroredStrategy(devices).scope()


def network(widths):
    image = keras.Input((4, 4, 8))
    x = image
    for i, width in enumerate(widths):
        x = keras.layers.Conv2D(
            width, 3, padding="same", use_bias=False, name=f"conv{i}"
        )(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, keras.layers.Dense(10)(x))
    model.compile(
        keras.optimizers.SGD(1e-4, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def train(model, widths):
    """Trains a `network`; returns a list of a dict for each reconfiguration.

    Args:
        model: A `network`.
        widths: List of the channels that its convolutions have after each
            epoch, integers.
    """
    rng = np.random.default_rng(SEED)
    count = BATCH_SIZE * STEPS
    images = rng.normal(size=(count, *model.input_shape[1:]))
    pruning = ToWidths(widths)
    watch = Watch()
    model.fit(
        images.astype("float32"),
        rng.integers(10, size=count),
        batch_size=BATCH_SIZE,
        epochs=len(widths) + 1,  # The last surgery is followed by a step.
        verbose=0,
        callbacks=[watch, pruning],
    )
    return [
        {
            **row,
            "surgery_seconds": report.seconds,
            "first_step_seconds": report.first_step_seconds,
        }
        for row, report in zip(watch.rows[1:], pruning.reports, strict=True)
    ]


class ToWidths(kpt.PruneTrainCallback):
    """Cuts the first channels of each convolution after each epoch."""

    def __init__(self, widths):
        super().__init__()
        self.widths = widths

    def is_due(self, epoch):
        return True

    def plan(self):
        numbering = number_channels(self.model)
        alive = np.ones(numbering.size, bool)
        # The last epoch is only there for its steps.
        widths = self.widths[min(self.epoch, len(self.widths) - 1)]
        for i, width in enumerate(widths):
            numbers = numbering.outputs[f"conv{i}"][0].numbers
            alive[numbers[: len(numbers) - width]] = False
        return plan_of(self.model, numbering, alive, self.options)


class Watch(keras.callbacks.Callback):
    """Notes memory and size of the model that each epoch has trained."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def on_epoch_end(self, epoch, logs=None):
        variables = [*self.model.variables, *self.model.optimizer.variables]
        held = sum(
            int(np.prod(v.shape)) * np.dtype(v.dtype).itemsize
            for v in variables
        )
        replicas = self.model.distribute_strategy.num_replicas_in_sync
        self.rows.append(
            {
                "resident_megabytes": resident_bytes() / 1e6,
                "megabytes_of_weights_and_slots": replicas * held / 1e6,
                "parameters": self.model.count_params(),
            }
        )


def comparison(series, early):
    """Returns the last reconfiguration of a `series` over an early one."""

    def ratio(key, width=1):
        values = [row[key] for row in series]
        first, last = values[early - width : early], values[-width:]
        return statistics.median(last) / statistics.median(first)

    return {
        "resident_ratio": ratio("resident_megabytes"),
        "size_ratio": ratio("parameters"),
        "surgery_ratio": ratio("surgery_seconds", 5),
        "first_step_ratio": ratio("first_step_seconds", 5),
        "resident_megabytes": [
            series[i]["resident_megabytes"] for i in (early - 1, -1)
        ],
        "megabytes_of_weights_and_slots": [
            series[i]["megabytes_of_weights_and_slots"] for i in (early - 1, -1)
        ],
        "series": series,
    }


if __name__ == "__main__":
    app.run(main)
