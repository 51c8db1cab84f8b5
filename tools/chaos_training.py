"""The training that tools/chaos.py kills, in one process or on two workers.

    python -m tools.chaos_training SAVE_FREQ FOLDER

With `TF_CONFIG` in the environment, the process is one of several workers.
"""

import ctypes
import hashlib
import itertools
import json
import os
import pathlib
import signal
import sys

EPOCHS = 8
STEPS = 8  # Of an epoch, before the batch has grown.
# Epochs after which channels are dead, and which.
DEATHS = {
    1: {"inner": [0, 3]},
    3: {"stage": [2], "inner": [1]},
    5: {"stage": [0, 4]},
}
BALLAST = 2**22  # Numbers beside the model, for a backup to take its time.
_PR_SET_PDEATHSIG = 1  # Of Linux's prctl.


def train(folder, save_freq):
    import keras

    import keras_prunetrain as kpt

    config = json.loads(os.environ.get("TF_CONFIG", "{}"))
    worker = config.get("task", {}).get("index", 0)
    strategy = kpt.multi_worker_strategy() if config else None

    import tensorflow as tf

    from tests.callbacks.fits import Kill, examples, network

    tf.config.experimental.enable_op_determinism()
    with strategy.scope() if config else tf.init_scope():
        model = network(compiled={"run_eagerly": False, "optimizer": "adam"})
    batch = kpt.DynamicBatch(8, 4, memory_budget=2**30, maximum=20)
    pruning = kpt.PruneTrainCallback(interval=2, batch=batch)
    x, y = examples(8 * STEPS)
    validation = tf.data.Dataset.from_tensor_slices((x[:12], y[:12])).batch(4)
    life = next(
        path
        for path in map(folder.joinpath, map(name_of_life, itertools.count()))
        if not path.exists()
    )
    print("fit", flush=True)
    model.fit(
        batch.arrays(x, y, seed=3),
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        validation_data=validation,
        callbacks=[
            Kill(DEATHS),
            kpt.BackupAndRestore(
                folder / "backups",
                save_freq if save_freq == "epoch" else int(save_freq),
            ),
            pruning,
            keras.callbacks.LambdaCallback(
                on_epoch_begin=lambda epoch, logs: note(life, worker, epoch),
                # Before the backups are deleted, as a program would that must
                # not be trained twice.
                on_train_end=lambda logs: write(
                    folder / end_of(worker), end(model, pruning)
                ),
            ),
            ballast(),
        ],
    )


def ballast():
    import keras
    import numpy as np

    class Ballast(keras.callbacks.Callback):
        """Makes backups large."""

        def get_state(self):
            return np.arange(BALLAST)

        def set_state(self, state):
            np.testing.assert_array_equal(state, np.arange(BALLAST))

    return Ballast()


def name_of_life(number):
    """Returns the name of the file with the epochs that a process began."""
    return f"epochs{number}"


def note(path, worker, epoch):
    """Notes that an epoch begins."""
    if worker == 0:
        with path.open("a") as file:
            print(epoch, file=file)


def end_of(worker):
    """Returns the name of the file with what a worker has ended with."""
    return f"end{worker}.json"


def end(model, pruning):
    history = model.history
    return {
        "variables": [
            digest(variable)
            for variable in (*model.variables, *model.optimizer.variables)
        ],
        "history": {k: list(map(repr, v)) for k, v in history.history.items()},
        "epochs": history.epoch,
        "factor": repr(pruning.factor),
        "batch_size": pruning.batch.size,
        "reconfigurations": len(pruning.reports),
    }


def digest(variable):
    # The copy of this worker: a variable may be one of several.
    value = variable.value
    array = getattr(value, "values", [value])[0].numpy()
    return [list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]


def write(path, record):
    """Writes a file of JSON that is never half written."""
    scratch = path.with_suffix(".half")
    scratch.write_text(json.dumps(record, indent=1) + "\n")
    scratch.replace(path)


if __name__ == "__main__":
    # It must not train on beside its successor if tools/chaos.py is killed.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    train(pathlib.Path(sys.argv[2]), sys.argv[1])
