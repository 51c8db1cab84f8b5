"""Measures what a grown batch saves two workers, and one that is alone.

    python tools/benchmarks/worker_growth.py tools/results/RUN.json

Processes, each on a core of its own, train the last architecture of a recorded
run, in turns with the first batch and with the one that a `DynamicBatch` grows
to in the memory of the dense network. All turns have as many images. Two
workers exchange gradients over the loopback device, which no network is; one
worker, which exchanges nothing, shows how much of the gain is not due to that.
"""

import itertools
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import time

from absl import app, flags

_TURNS = flags.DEFINE_integer("turns", 24, "Turns of each batch size.")

WORKERS = (1, 2)
# First batch size of each worker; small, so that updates cost.
FIRST, GRANULARITY = 8, 2
IMAGES = 960  # Of a turn, about: whole batches of either size.


def main(argv):
    if "TF_CONFIG" in os.environ:
        _keep_to_one_core()
        print(json.dumps(_growth(argv[1:])))
        return
    import recorded_run

    recorded_run.read_one(argv[1:])  # Better now than in each worker.
    rows = []
    for count in WORKERS:
        rows.append(_run_workers(count))
        print(rows[-1], flush=True)
    from architectures import SEED

    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
    from apps.environment import ROOT, environment

    record = environment([SEED]) | {"run": argv[1], "growths": rows}
    output = ROOT / "tools" / "results" / "worker_growth.json"
    output.write_text(json.dumps(record, indent=1) + "\n")


def _run_workers(count):
    """Runs this program as `count` workers; returns what the first measured."""
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(count)]
    workers = []
    for index in range(count):
        config = {
            "cluster": {"worker": addresses},
            "task": {"type": "worker", "index": index},
        }
        workers.append(
            subprocess.Popen(
                [sys.executable, *sys.argv],
                env=os.environ | {"TF_CONFIG": json.dumps(config)},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        sys.exit("A worker has failed.")
    return json.loads(outputs[0].splitlines()[-1])


def _keep_to_one_core():
    """Gives each worker a core of its own: they are to be machines."""
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[index % len(cores)]})


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _growth(words):
    """Trains as one of the workers; returns what it measured."""
    import keras_prunetrain as kpt

    # Before anything else that TensorFlow does.
    strategy = kpt.multi_worker_strategy()
    import recorded_run
    from architectures import architectures
    from communication import grown

    run = recorded_run.read_one(words)
    with strategy.scope():
        stages = architectures(run)
    last = int(grown(stages, FIRST, GRANULARITY)[-1])
    if last == FIRST:
        sys.exit(f"The batch of {FIRST} does not grow in this run.")
    workers = strategy.num_replicas_in_sync
    sizes = [workers * FIRST, workers * last]
    seconds = _seconds_per_image(stages[-1], sizes)
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    return {
        "workers": workers,
        "batch_sizes": sizes,
        "granularity": GRANULARITY,
        "images_of_a_turn": IMAGES,
        "images_per_second": [
            1 / statistics.median(column) for column in seconds
        ],
        "time_per_image_ratio": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4),
    }


def _seconds_per_image(model, sizes):
    """Trains with each of two sizes in turn; returns a list for each.

    All turns are of one `fit`: each `fit` would trace the step anew.
    """
    import keras

    pairs = _TURNS.value + 1  # The first is not counted: it has no beginning.
    # In every other pair the larger one is first.
    order = [sizes[:: (-1) ** pair] for pair in range(pairs)]
    turns = list(itertools.chain(*order))
    steps = {size: round(IMAGES / size) for size in sizes}
    ends = list(itertools.accumulate(steps[size] for size in turns))
    times = []

    class Clock(keras.callbacks.Callback):
        """Notes when each turn ended."""

        def on_train_batch_end(self, batch, logs=None):
            if batch + 1 in ends:
                times.append(time.perf_counter())

    model.fit(
        _batches(model, turns, steps),
        callbacks=[Clock()],
        shuffle=False,
        verbose=0,
    )
    seconds = {size: [] for size in sizes}
    for i in range(len(sizes), len(turns)):
        taken = times[i] - times[i - 1]
        seconds[turns[i]].append(taken / (steps[turns[i]] * turns[i]))
    return list(seconds.values())


def _batches(model, turns, steps):
    """Returns noise in batches, those of one turn after those of another."""
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(0)
    largest = max(turns)
    images = rng.normal(size=(largest, *model.input_shape[1:]))
    images = images.astype("float32")
    labels = rng.integers(0, model.output_shape[-1], largest)
    blocks = {
        size: tf.data.Dataset.from_tensors(
            (images[:size], labels[:size])
        ).repeat(count)
        for size, count in steps.items()
    }
    batches = blocks[turns[0]]
    for size in turns[1:]:
        batches = batches.concatenate(blocks[size])
    options = tf.data.Options()
    # Its tuner holds up the end of an epoch; see apps/data.py.
    options.autotune.enabled = False
    return batches.with_options(options)


if __name__ == "__main__":
    app.run(main)
