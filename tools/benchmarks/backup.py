"""Measures what backups cost: seconds to write one, and to go on from it.

    python tools/benchmarks/backup.py

`keras.applications.ResNet50` with the slots of Adam, as it is, and after half
of its channels were removed, which the process that goes on does again; and
ResNet-20 on images of CIFAR-10's size. There the seconds of a backup are also
given as a share of an epoch, of 391 steps on 128 images. The seconds contain
all that `BackupAndRestore` does, until the file is on the disk.
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
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.fit.backups import Backups

# `apps` and `tests` are not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from apps import command_line  # noqa: E402
from apps.environment import ROOT, environment  # noqa: E402
from tests.masked import silence, some_alive  # noqa: E402

_REPEATS = flags.DEFINE_integer("repeats", 5, "Backups to time.", 2)
_FOLDER = flags.DEFINE_string(
    "folder", None, "On the disk to measure. Defaults to that of temporaries."
)
_OUTPUT = flags.DEFINE_string(
    "output",
    str(ROOT / "tools" / "results" / "backup.json"),
    "File to write the result to.",
)

SEED = 0
EPOCH = 391  # Steps on 128 of CIFAR-10's 50,000 images.
# Which are timed, and of which class.
METHODS = {
    "write": Backups,
    "read": Backups,
    "_restore_model": kpt.BackupAndRestore,
    "_restore_callbacks": kpt.BackupAndRestore,
}


def main(argv):
    command_line.refuse_words(argv)
    record = environment([SEED])
    for name, cut in (("resnet50", False), ("resnet50 after a cut", True)):
        record[name] = measured(resnet50, (224, 224, 3), 1, 2, cut)
        print(name, record[name], flush=True)
    found = measured(resnet20, (32, 32, 3), 20, 128, False)
    found["epoch_seconds"] = EPOCH * found["step_seconds_median"]
    found["share_of_an_epoch"] = (
        found["backup_seconds_median"] / found["epoch_seconds"]
    )
    record["resnet20"] = found
    output = pathlib.Path(_OUTPUT.value)
    output.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def resnet50():
    model = keras.applications.ResNet50(weights=None)
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def resnet20():
    model = kpt.models.resnet20()
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


class Watch(keras.callbacks.Callback):
    """Times the steps; ends `fit` in the last epoch, like a lack of power."""

    def __init__(self, last):
        super().__init__()
        self.seconds = []
        self._last = last

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self._last:
            raise InterruptedError

    def on_train_batch_begin(self, batch, logs=None):
        self._started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds.append(time.perf_counter() - self._started)


class Silence(keras.callbacks.Callback):
    """Sets half of the channels to zero in the first epoch."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            numbering = number_channels(self.model)
            random = np.random.default_rng(SEED)
            silence(numbering, some_alive(numbering, random))


def timed(owner, name, seconds):
    """Has the seconds of each call of a method appended to a list."""
    method = getattr(owner, name)

    def around(*args, **kwargs):
        started = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - started)

    setattr(owner, name, around)
    return lambda: setattr(owner, name, method)


def measured(build, shape, steps, batch_size, cut):
    """Returns the seconds of backups and restores of a training, a dict.

    Args:
        build: Function that returns a compiled model.
        shape: Of an image.
        steps: Integer, the steps of an epoch. Each epoch ends with a backup.
        batch_size: Integer.
        cut: Boolean. Whether half of the channels leave after an epoch.
    """
    keras.utils.set_random_seed(SEED)
    images = np.zeros((steps * batch_size, *shape), "float32")
    labels = np.zeros(len(images), "int32")
    # The first epoch is that of the cut.
    epochs = _REPEATS.value + 1
    times = {name: [] for name in METHODS}
    undo = [timed(METHODS[name], name, times[name]) for name in METHODS]
    with tempfile.TemporaryDirectory(dir=_FOLDER.value) as folder:
        steps_seconds = []
        for _ in range(1 + _REPEATS.value):  # All but the first go on.
            model, watch = build(), Watch(epochs)
            # Only what `Silence` has killed is dead.
            pruning = kpt.PruneTrainCallback(interval=1 if cut else 10**6)
            parameters = model.count_params()
            try:
                model.fit(
                    *(images, labels),
                    batch_size=batch_size,
                    epochs=10**6,
                    verbose=0,
                    callbacks=[
                        *([Silence()] if cut else []),
                        *(pruning, kpt.BackupAndRestore(folder), watch),
                    ],
                )
            except InterruptedError:
                steps_seconds += watch.seconds
            size = max(pathlib.Path(folder).glob("*.npz")).stat().st_size
    for function in undo:
        function()
    return {
        "parameters": [parameters, model.count_params()],
        "megabytes": size / 1e6,
        **summary("backup_seconds", times["write"][1:]),
        **summary("restore_seconds", restores(times)),
        "step_seconds_median": statistics.median(steps_seconds),
    }


def restores(times):
    """Returns the seconds of each `fit` that went on from a backup."""
    parts = times["_restore_model"], times["_restore_callbacks"]
    return list(map(sum, zip(times["read"][1:], *parts, strict=True)))


def summary(name, values):
    return {f"{name}_median": statistics.median(values), name: values}


if __name__ == "__main__":
    app.run(main)
