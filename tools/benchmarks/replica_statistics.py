"""Compares two replicas with one device, by how they normalize.

    python tools/benchmarks/replica_statistics.py

ResNet-8 trains on the digits with one global batch size, on one device, and on
two (logical CPUs), there with batch normalization over the global batch
(`synchronized=True`) and over each replica's own part, which is the default of
Keras. The loss of each step is compared with that of the one device; nothing is
timed. Twice a channel of each of two layers is set to zero, so that a
reconfiguration follows.
"""

import contextlib
import json
import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import keras_prunetrain as kpt

# `apps` is not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from apps import command_line, data  # noqa: E402
from apps.environment import ROOT, environment  # noqa: E402

_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Of all replicas.")
_EPOCHS = flags.DEFINE_integer("epochs", 6, "Of ten steps each.")

OUTPUT = ROOT / "tools" / "results" / "replica_statistics.json"
SEED = 0
STEPS = 10
# Epoch -> the layers that lose a channel after it.
DEATHS = {1: "stage1_block0_conv1", 3: "stage2_block0_conv1"}


def main(argv):
    command_line.refuse_words(argv)
    (cpu,) = tf.config.list_physical_devices("CPU")
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, two)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    expected = train(None, synchronized=False)
    rows = []
    for synchronized in (True, False):
        found = train(strategy, synchronized)
        differences = np.abs(found["losses"] / expected["losses"] - 1)
        rows.append(
            {
                "synchronized": synchronized,
                "largest_relative_difference_of_a_loss": float(
                    differences.max()
                ),
                "median_relative_difference_of_a_loss": float(
                    np.median(differences)
                ),
                "val_accuracy": found["val_accuracy"],
                "reconfigurations": found["reconfigurations"],
            }
        )
        print(rows[-1], flush=True)
    record = environment([SEED]) | {
        "batch_size": _BATCH_SIZE.value,
        "steps": len(expected["losses"]),
        "one_device_val_accuracy": expected["val_accuracy"],
        "two_replicas": rows,
    }
    OUTPUT.write_text(json.dumps(record, indent=1) + "\n")


class Kill(keras.callbacks.Callback):
    """Sets a channel to zero, in the layer that writes it and around it."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch not in DEATHS:
            return
        block = DEATHS[epoch].removesuffix("_conv1")
        for name, index in (
            ("conv1", np.s_[..., 0]),
            ("conv2", np.s_[:, :, 0]),
        ):
            kernel = self.model.get_layer(f"{block}_{name}").kernel
            value = np.array(kernel)
            value[index] = 0.0
            kernel.assign(value)


class Losses(keras.callbacks.Callback):
    """Notes the loss of each step."""

    def __init__(self):
        super().__init__()
        self.values = []

    def on_train_batch_end(self, batch, logs=None):
        # The logs have the mean of the epoch so far.
        total = logs["loss"] * (batch + 1)
        self.values.append(total - (self._before if batch else 0.0))
        self._before = total


def train(strategy, synchronized):
    keras.utils.set_random_seed(SEED)
    digits = data.load("digits")
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = kpt.models.resnet8(
            digits.image_shape, digits.classes, weight_decay=5e-4
        )
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = synchronized
        model.compile(
            keras.optimizers.SGD(0.05, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    losses, pruning = Losses(), kpt.PruneTrainCallback(interval=1)
    # As they are and in one order: Keras reads a batch more where there are
    # replicas, and would begin with the order of the second epoch.
    images, labels = digits.train
    examples = tf.data.Dataset.from_tensor_slices(
        (images.astype("float32") / 8 - 1, labels)
    )
    history = model.fit(
        examples.batch(_BATCH_SIZE.value).take(STEPS),
        validation_data=digits.validation_batches(_BATCH_SIZE.value),
        epochs=_EPOCHS.value,
        callbacks=[Kill(), pruning, losses],
        shuffle=False,
        verbose=0,
    )
    return {
        "losses": np.array(losses.values),
        "val_accuracy": history.history["val_accuracy"][-1],
        "reconfigurations": len(pruning.reports),
    }


if __name__ == "__main__":
    app.run(main)
