"""One of several workers: trains, and writes down what it ended with.

    python -m tests.callbacks.worker FOLDER INTERVAL [die | no_log | float16]

Who the others are is in `TF_CONFIG`.
"""

import json
import os
import pathlib
import sys

import keras
import numpy as np

from keras_prunetrain import (
    DynamicBatch,
    PruneTrainCallback,
    multi_worker_strategy,
)

strategy = multi_worker_strategy()

import tensorflow as tf  # noqa: E402

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


def main(folder, interval, what=None):
    if what == "float16":
        keras.config.set_dtype_policy("mixed_float16")
    with strategy.scope():
        model = network(compiled={"run_eagerly": False}, dropout=0.0)
    batch = DynamicBatch(8, 4, memory_budget=2**30, maximum=16)
    pruning = PruneTrainCallback(
        interval=int(interval),
        batch=batch,
        log_dir=None
        if what == "no_log"
        else pathlib.Path(folder) / f"logs{INDEX}",
    )
    first = indices(batch)
    history = model.fit(
        batch.arrays(*examples(COUNT)),
        validation_data=tf.data.Dataset.from_tensor_slices(
            examples(20, seed=3)
        ).batch(4),
        epochs=4,
        verbose=0,
        shuffle=False,
        callbacks=[
            Kill({0: {"inner": [0]}, 1: {"stage": [2]}}),
            pruning,
            *([Die()] if what == "die" else []),
        ],
    ).history
    grown = indices(batch)
    path = pathlib.Path(folder) / f"worker{INDEX}"
    np.savez(
        path.with_suffix(".npz"),
        **{
            f"{i} {v.path}".replace("/", " "): local(v)
            for i, v in enumerate(
                [*model.variables, *model.optimizer.variables]
            )
        },
    )
    record = {
        "history": {k: [float(x) for x in v] for k, v in history.items()},
        "indices": [first, grown],
        "reports": len(pruning.reports),
        "threads": threads(),
    }
    path.with_suffix(".json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(*sys.argv[1:])
