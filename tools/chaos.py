"""Kills trainings at random moments, and compares how they end.

    python tools/chaos.py --kills=100 --worker_kills=20

A small network trains with `BackupAndRestore`, in one process or on two
workers; it is made smaller three times, and its batch grows. The process, one
of the workers or both are killed (SIGKILL) at a random moment, and often while
a backup is being written. They are started again, and killed again, until the
training ends. Weights, optimizer, history and reports must then be those of a
training that nobody killed, to the last bit, and no epoch but the last one that
had begun may have been trained twice; where backups are written after a number
of steps, also the last steps of the epoch before.

This program can be killed as well: started again, it goes on counting. Its
counts are in `--folder` until all trainings of one kind have ended.
"""

import contextlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

# TensorFlow's notes on devices that are not there; before it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags

# `apps` and `tests` are not part of the installed package.
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from apps import command_line  # noqa: E402
from apps.environment import environment  # noqa: E402
from tests import workers  # noqa: E402
from tools.chaos_training import EPOCHS, end_of, name_of_life, write  # noqa: E402

_KILLS = flags.DEFINE_integer("kills", 100, "Kills of one process.", 0)
_WORKER_KILLS = flags.DEFINE_integer(
    "worker_kills", 20, "Kills of one of two workers, or of both.", 0
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
_FOLDER = flags.DEFINE_string(
    "folder",
    str(ROOT / "runs" / "chaos"),
    "Where the trainings are, until all have ended.",
)
_OUTPUT = flags.DEFINE_string(
    "output",
    str(ROOT / "tools" / "results" / "chaos.json"),
    "File to write the results to; those that it has of another number of "
    "workers stay.",
)

SAVE_FREQS = "epoch", "3"
AIMED = 0.4  # The share of the kills that wait for a backup to be written.
NAMES = {1: "one process", 2: "two workers"}
SECONDS = 900  # Until a worker that has lost the other counts as hung.


def main(argv):
    command_line.refuse_words(argv)
    folder = pathlib.Path(command_line.folder(_FOLDER.value))
    output = pathlib.Path(command_line.folder(_OUTPUT.value))
    failed = False
    for count, kills in ((1, _KILLS.value), (2, _WORKER_KILLS.value)):
        if kills:
            place = folder / f"workers{count}"
            record = chaos(place, kills, _SEED.value, count)
            add(output, NAMES[count], environment([_SEED.value]) | record)
            print({k: v for k, v in record.items() if k != "trainings"})
            failed |= record["equal"] < len(record["trainings"])
            shutil.rmtree(place)
    if failed:
        sys.exit("A training that was killed has ended otherwise.")


def add(path, name, record):
    """Writes `record` beside the other results in a file."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        found = json.loads(path.read_text())
    kept = {k: v for k, v in found.items() if k in NAMES.values()}
    write(path, kept | {name: record})


def chaos(folder, kills, seed, count=1):
    """Kills `kills` times; returns what became of the trainings, a dict.

    Args:
        folder: Path. If an earlier call of the same seed was interrupted there,
            this one goes on.
        kills: Integer. How often to kill.
        seed: Integer. Of the moments.
        count: Integer, of the workers; 1 for a process that is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    progress = folder / "progress.json"
    if not progress.exists():
        write(progress, {"seed": seed, "trainings": []})
    found = json.loads(progress.read_text())
    rows = found["trainings"]
    if found["seed"] != seed:
        sys.exit(f"Delete '{folder}', of the seed {found['seed']}.")
    expected, seconds = undisturbed(folder, count)
    while True:
        killed = sum(row["kills"] for row in rows)
        if not rows or rows[-1]["ended"]:
            if killed >= kills:
                break
            save_freq = SAVE_FREQS[len(rows) % len(SAVE_FREQS)]
            rows.append(new_row(save_freq))
        row, place = rows[-1], folder / f"training{len(rows) - 1}"
        # A generator for each life of a training: this program may go on.
        moments = random.Random(f"{seed} {len(rows)} {row['kills']}")
        wait = moments.uniform(0.0, seconds * 0.7) if killed < kills else None
        live(place, row, count, wait, moments)
        if row["ended"]:
            row["epochs"] = epochs_in(place)
            row["no_gap"] = follow_each_other(row["epochs"], row["save_freq"])
            row["equal"] = ends(place, count) == expected
            print(row, flush=True)
        write(progress, found)
    return {
        "kills": killed,
        "kills_while_writing": sum(row["while_writing"] for row in rows),
        "equal": sum(row["equal"] and row["no_gap"] for row in rows),
        "trainings": rows,
    }


def new_row(save_freq):
    counts = {"kills": 0, "while_writing": 0}
    return {"save_freq": save_freq, "ended": False, **counts}


def undisturbed(folder, count):
    """Returns how a training ends without a kill, and the seconds of `fit`."""
    for save_freq in SAVE_FREQS:
        place = folder / f"whole_{save_freq}"
        if not (place / "seconds").exists():
            shutil.rmtree(place, ignore_errors=True)
            processes = begin(place, save_freq, count)
            started = time.monotonic()
            if any(ended(processes)):
                fail(place, "The training fails, without a kill.")
            seconds = time.monotonic() - started
            print(f"{save_freq}: {seconds:.0f} s without a kill", flush=True)
            (place / "seconds").write_text(str(seconds))
    found = [ends(folder / f"whole_{x}", count) for x in SAVE_FREQS]
    if found[0] != found[1]:
        sys.exit("The training itself does not end in the same way twice.")
    return found[0], float((place / "seconds").read_text())


def ends(folder, count):
    """Returns what all workers have ended with; `None` before."""
    paths = [folder / end_of(i) for i in range(count)]
    if all(path.exists() for path in paths):
        return [json.loads(path.read_text()) for path in paths]
    return None


def live(folder, row, count, wait, moments):
    """Begins a training, or goes on with it, and kills it; notes so in `row`.

    Args:
        folder: Path of its folder.
        row: A `new_row`, what became of the training so far.
        count: Integer, the number of workers.
        wait: Float, so many seconds after the beginning; `None` for no kill.
        moments: A `random.Random`.
    """
    left = unfinished(folder)
    processes = begin(folder, row["save_freq"], count)
    writing = set()
    if wait is not None:
        time.sleep(wait)
        if moments.random() < AIMED:
            wait_for_a_backup(processes, folder, left, moments)
        doomed = moments.choice([[0], [1], [0, 1]]) if count > 1 else [0]
        if doomed == [1]:  # The first one goes on writing.
            writing = unfinished(folder) - left
        for index in doomed:
            processes[index].kill()
    statuses = ended(processes)
    if -9 in statuses:
        row["kills"] += 1
        row["while_writing"] += bool(writing or unfinished(folder) - left)
    elif any(statuses):
        fail(folder, f"A training has failed, with {statuses}.")
    row["ended"] = ends(folder, count) is not None


def epochs_in(folder):
    """Returns a list of a list for each process: the epochs that it began."""
    lives = [folder / name_of_life(i) for i in range(len(os.listdir(folder)))]
    texts = [path.read_text() for path in lives if path.exists()]
    return [list(map(int, text.split())) for text in texts]


def follow_each_other(epochs, save_freq="epoch"):
    """Whether each process goes on with the last epoch of the one before.

    Or with the next one. Each process trains one epoch after the other.

    Args:
        epochs: List of a list for each process.
        save_freq: String, one of `SAVE_FREQS`. With a number of steps, the last
            backup may be one of the end of the epoch before.
    """
    back = 0 if save_freq == "epoch" else 1
    within = all(
        row == list(range(row[0], row[0] + len(row))) for row in epochs
    )
    between = all(
        -back <= after[0] - before[-1] <= 1
        for before, after in zip(epochs, epochs[1:], strict=False)
    )
    whole = epochs[0][0] == 0 and epochs[-1][-1] == EPOCHS - 1
    return within and between and whole


def begin(folder, save_freq, count):
    """Begins a training, or goes on with it, in processes of their own.

    Returns:
        List of the processes, the first of which is about to call `fit`.
    """
    folder.mkdir(exist_ok=True)
    program = ["-m", "tools.chaos_training", save_freq, str(folder)]
    processes = workers.start(
        [[sys.executable, *program]] * count,
        [folder / f"errors{i}" for i in range(count)],
        subprocess.PIPE,
    )
    processes[0].stdout.readline()
    return processes


def ended(processes):
    """Waits for the end of all processes; returns their statuses."""
    deadline = time.monotonic() + SECONDS
    try:
        for process in processes:
            process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        sys.exit("A worker hangs.")
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()
    return [process.returncode for process in processes]


def fail(folder, message):
    """Ends this program, with the errors of a training."""
    for path in sorted(folder.glob("errors*")):
        print(path.read_text()[-3000:], file=sys.stderr)
    sys.exit(message)


def wait_for_a_backup(processes, folder, left, moments):
    """Waits until a backup is being written, or a process ends."""
    while all(x.poll() is None for x in processes):
        if unfinished(folder) - left:
            break
        time.sleep(0.001)
    time.sleep(moments.uniform(0.0, 0.01))


def unfinished(folder):
    """Returns a set of the backups that are not written to their end."""
    found = set()
    for path in folder.glob("backups/*.new"):
        with contextlib.suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_ino, path.stat().st_mtime_ns))
    return found


if __name__ == "__main__":
    app.run(main)
