"""One of several workers: refuses, trains, and loses another one.

    python -m tests.callbacks.worker FOLDER DYING [train]

Who the others are is in `TF_CONFIG`. With `train`, writes what was refused and
what the training ended with into FOLDER. In the end, the worker of the index
DYING ends its process in the middle of a training, from which the others must
learn that it is gone.
"""

import json
import os
import pathlib
import sys

import keras
import numpy as np

from keras_prunetrain import (
    DynamicBatch,
    EarlyCroPCallback,
    PruneTrainCallback,
    SDGPCallback,
    multi_worker_strategy,
)

strategy = multi_worker_strategy()

import tensorflow as tf  # noqa: E402
from tensorflow.python.framework import ops  # noqa: E402

from keras_prunetrain.distribution import check_agreement  # noqa: E402
from tests.callbacks.fits import Kill, examples, network  # noqa: E402

INDEX = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
COUNT = 42
DIED = 77  # The exit code of a worker that was to die.


class Die(keras.callbacks.Callback):
    """Ends the process, without a word, after the first step."""

    def on_train_batch_end(self, batch, logs=None):
        os._exit(DIED)


def local(variable):
    """The copy on this worker."""
    value = variable.value
    return getattr(value, "values", [value])[0].numpy()


def indices(batch):
    """Which examples this worker gets in an epoch."""
    rows = batch(tf.data.Dataset.range(COUNT).shuffle(COUNT, seed=0))
    shares = strategy.experimental_distribute_dataset(rows)
    taken = []
    for _, share in zip(range(batch.steps), shares, strict=False):
        for part in strategy.experimental_local_results(share):
            taken += part.numpy().tolist()
    return taken


def threads():
    """How many threads of the process wait for an exchange, or did."""
    names = pathlib.Path("/proc/self/task").glob("*/comm")
    return sum(name.read_text() == "collective_ops\n" for name in names)


def registered():
    """How many gradients of traced functions TensorFlow keeps for good."""
    return len(ops.gradient_registry._registry)


def traced(**kwargs):
    with strategy.scope():
        return network(compiled={"run_eagerly": False}, dropout=0.0, **kwargs)


def refusal(model, callback=None, **arguments):
    """Returns the error of a `fit` that must not begin."""
    batch = DynamicBatch(8)
    pruning = PruneTrainCallback(batch=batch, **arguments)
    try:
        model.fit(
            batch.arrays(*examples(COUNT)),
            epochs=4,
            verbose=0,
            shuffle=False,
            callbacks=[callback or pruning],
        )
    except ValueError as error:
        return str(error)
    return None


def refusals(folder):
    """Tries what would hang: settings that this worker does not share."""
    model = traced()
    log_dir = None if INDEX else folder / "refused"
    found = {
        "interval": refusal(model, interval=1 + INDEX),
        "log": refusal(model, log_dir=log_dir),
        "sdgp": refusal(model, SDGPCallback(1, 2, seed=INDEX)),
    }
    keras.config.set_dtype_policy("mixed_float16")
    found["float16"] = refusal(traced())
    keras.config.set_dtype_policy("float32")
    before = registered()
    for i in range(3):
        check_agreement(model, f"{i}")
    found["left behind"] = registered() - before
    return {**found, "files": [path.name for path in folder.iterdir()]}


def train(folder):
    """Trains while batch and model change; returns what it ended with."""
    model = traced()
    batch = DynamicBatch(8, 4, memory_budget=2**30, maximum=16)
    log_dir = folder / f"logs{INDEX}"
    pruning = PruneTrainCallback(interval=1, batch=batch, log_dir=log_dir)
    first = indices(batch)
    validation = tf.data.Dataset.from_tensor_slices(examples(20, seed=3))
    history = model.fit(
        batch.arrays(*examples(COUNT)),
        validation_data=validation.batch(4),
        epochs=4,
        verbose=0,
        shuffle=False,
        callbacks=[Kill({0: {"inner": [0]}, 1: {"stage": [2]}}), pruning],
    ).history
    variables = [*model.variables, *model.optimizer.variables]
    np.savez(
        folder / f"worker{INDEX}.npz",
        **{
            f"{i} {variable.path}".replace("/", " "): local(variable)
            for i, variable in enumerate(variables)
        },
    )
    return {
        "history": {k: [float(x) for x in v] for k, v in history.items()},
        "indices": [first, indices(batch)],
        "reports": len(pruning.reports),
        "threads": threads(),
    }


def crop(folder):
    """Prunes by scoring data of this worker's own; writes what is left."""
    for structured in (True, False):
        model = traced()
        data = examples(16, seed=INDEX)
        pruning = EarlyCroPCallback(0.4, data, when=1, structured=structured)
        rows = tf.data.Dataset.from_tensor_slices(examples(40)).batch(8)
        model.fit(rows, epochs=2, verbose=0, callbacks=[pruning])
        np.savez(
            folder / f"{'channels' if structured else 'masks'}{INDEX}.npz",
            *(local(variable) for variable in model.variables),
        )


def main(folder, dying, what=None):
    folder = pathlib.Path(folder)
    if what == "train":
        record = {"refusals": refusals(folder), **train(folder)}
        path = folder / f"worker{INDEX}.json"
        path.write_text(json.dumps(record))
        crop(folder)
    data = tf.data.Dataset.from_tensor_slices(examples(COUNT)).batch(8)
    callbacks = [PruneTrainCallback()]
    if int(dying) == INDEX:
        callbacks.append(Die())
    traced().fit(data, verbose=0, shuffle=False, callbacks=callbacks)


if __name__ == "__main__":
    main(*sys.argv[1:])
