"""Kills trainings at random moments, and compares how they end.

    python tools/chaos.py --kills=100

A small network trains with `BackupAndRestore`; it is made smaller three times,
and its batch grows. The process is killed (SIGKILL) at a random moment, and
often while a backup is being written. It is started again, and
killed again, until it ends. Weights, optimizer, history and reports must then
be those of a training that nobody killed, to the last bit, and no epoch but the
last one that had begun may have been trained twice.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

# TensorFlow's notes on devices that are not there; before it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags

# `apps` and `tests` are not part of the installed package.
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from apps import command_line  # noqa: E402
from apps.environment import environment  # noqa: E402

_KILLS = flags.DEFINE_integer("kills", 100, "How often to kill.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
_OUTPUT = flags.DEFINE_string(
    "output",
    str(ROOT / "tools" / "results" / "chaos.json"),
    "File to write the result to.",
)
_TRAIN = flags.DEFINE_list(
    "train", [], "SAVE_FREQ,FOLDER: only train, in this process."
)

EPOCHS = 8
STEPS = 8  # Of an epoch, before the batch has grown.
# Epochs after which channels are dead, and which.
DEATHS = {
    1: {"inner": [0, 3]},
    3: {"stage": [2], "inner": [1]},
    5: {"stage": [0, 4]},
}
SAVE_FREQS = "epoch", "3"
AIMED = 0.4  # The share of the kills that wait for a backup to be written.
BALLAST = 2**22  # Numbers beside the model, for a backup to take its time.


def main(argv):
    command_line.refuse_words(argv)
    if _TRAIN.value:
        save_freq, folder = _TRAIN.value
        train(pathlib.Path(folder), save_freq)
        return
    with tempfile.TemporaryDirectory() as folder:
        record = chaos(pathlib.Path(folder), _KILLS.value, _SEED.value)
    record = environment([_SEED.value]) | record
    pathlib.Path(_OUTPUT.value).write_text(json.dumps(record, indent=1) + "\n")
    print({k: v for k, v in record.items() if k != "trainings"})
    if record["equal"] < len(record["trainings"]):
        sys.exit("A training that was killed has ended otherwise.")


def chaos(folder, kills, seed):
    """Kills `kills` times; returns what became of the trainings, a dict."""
    moments = random.Random(seed)
    expected = {}
    for save_freq in SAVE_FREQS:
        whole = folder / f"whole_{save_freq}"
        process = begin(whole, save_freq)
        process.stdout.readline()  # It is about to call `fit`.
        started = time.monotonic()
        if ended(process) != 0:
            sys.exit("The training fails, without a kill.")
        expected[save_freq] = json.loads((whole / "end.json").read_text())
        seconds = time.monotonic() - started
        print(f"{save_freq}: {seconds:.0f} s without a kill", flush=True)
    if expected["epoch"] != expected["3"]:
        sys.exit("The training itself does not end in the same way twice.")
    trainings = []
    while (killed := sum(x["kills"] for x in trainings)) < kills:
        save_freq = SAVE_FREQS[len(trainings) % len(SAVE_FREQS)]
        place = folder / f"training{len(trainings)}"
        row = one_training(place, save_freq, kills - killed, seconds, moments)
        end = json.loads((place / "end.json").read_text())
        row["equal"] = end == expected[save_freq]
        trainings.append({"save_freq": save_freq, **row})
        print(trainings[-1], flush=True)
    return {
        "kills": kills,
        "kills_while_writing": sum(x["while_writing"] for x in trainings),
        "equal": sum(x["equal"] and x["no_gap"] for x in trainings),
        "trainings": trainings,
    }


def one_training(folder, save_freq, most, seconds, moments):
    """Kills a training again and again, until it ends; returns a dict.

    Args:
        folder: Path of its folder.
        save_freq: String, one of `SAVE_FREQS`.
        most: Integer. How often it is killed at most.
        seconds: Float. How long `fit` takes without a kill.
        moments: A `random.Random`.
    """
    epochs, kills, while_writing = [], 0, 0
    while not (folder / "end.json").exists():
        left = unfinished(folder)
        process = begin(folder, save_freq)
        process.stdout.readline()
        if kills < most:
            time.sleep(moments.uniform(0.0, seconds * 0.7))
            if moments.random() < AIMED:
                wait_for_a_backup(process, folder, left, moments)
            process.kill()
        if ended(process) == -9:
            kills += 1
            while_writing += bool(unfinished(folder) - left)
        elif process.returncode != 0:
            sys.exit(f"A training has failed, with {process.returncode}.")
        with contextlib.suppress(FileNotFoundError):
            seen = (folder / "epochs").read_text().split()
            epochs.append(list(map(int, seen)))
            (folder / "epochs").unlink()
    epochs = [x for x in epochs if x]
    return {
        "kills": kills,
        "while_writing": while_writing,
        "epochs": epochs,
        "no_gap": follow_each_other(epochs),
    }


def follow_each_other(epochs):
    """Whether each process goes on with the last epoch of the one before.

    Or with the next one. Each process trains one epoch after the other.

    Args:
        epochs: List of a list for each process.
    """
    within = all(
        row == list(range(row[0], row[0] + len(row))) for row in epochs
    )
    between = all(
        0 <= after[0] - before[-1] <= 1
        for before, after in zip(epochs, epochs[1:], strict=False)
    )
    whole = epochs[0][0] == 0 and epochs[-1][-1] == EPOCHS - 1
    return within and between and whole


def begin(folder, save_freq):
    """Begins a training, or goes on with it, in a process of its own."""
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, __file__, f"--train={save_freq},{folder}"],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )


def ended(process):
    """Waits for the end of a process; returns its status."""
    with process:  # Closes the pipe.
        return process.wait()


def wait_for_a_backup(process, folder, left, moments):
    """Waits until a backup is being written, or the process ends."""
    while process.poll() is None and not unfinished(folder) - left:
        time.sleep(0.001)
    time.sleep(moments.uniform(0.0, 0.01))


def unfinished(folder):
    """Returns a set of the backups that are not written to their end."""
    found = set()
    for path in folder.glob("backups/*.new"):
        with contextlib.suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_ino, path.stat().st_mtime_ns))
    return found


# In the process that trains.


def train(folder, save_freq):
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_prunetrain as kpt
    from tests.callbacks.fits import Kill, examples, network

    class Ballast(keras.callbacks.Callback):
        """Makes backups large, and notes the epochs that begin."""

        def on_epoch_begin(self, epoch, logs=None):
            with (folder / "epochs").open("a") as file:
                print(epoch, file=file)

        def get_state(self):
            return np.arange(BALLAST)

        def set_state(self, state):
            np.testing.assert_array_equal(state, np.arange(BALLAST))

    tf.config.experimental.enable_op_determinism()
    model = network(compiled={"run_eagerly": False, "optimizer": "adam"})
    batch = kpt.DynamicBatch(8, 4, memory_budget=2**30, maximum=20)
    pruning = kpt.PruneTrainCallback(interval=2, batch=batch)
    x, y = examples(8 * STEPS)
    print("fit", flush=True)
    history = model.fit(
        batch.arrays(x, y, seed=3),
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        validation_data=(x[:13], y[:13]),
        callbacks=[
            Kill(DEATHS),
            kpt.BackupAndRestore(
                folder / "backups",
                save_freq if save_freq == "epoch" else int(save_freq),
            ),
            pruning,
            Ballast(),
        ],
    )
    end = {
        "variables": [
            digest(keras.ops.convert_to_numpy(variable))
            for variable in (*model.variables, *model.optimizer.variables)
        ],
        "history": {k: list(map(repr, v)) for k, v in history.history.items()},
        "epochs": history.epoch,
        "factor": repr(pruning.factor),
        "batch_size": batch.size,
        "reconfigurations": len(pruning.reports),
    }
    scratch = folder / "end.new"
    scratch.write_text(json.dumps(end))
    scratch.replace(folder / "end.json")


def digest(array):
    return [list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]


if __name__ == "__main__":
    app.run(main)
