"""Measures what a grown batch saves where workers exchange gradients.

    python tools/benchmarks/worker_growth.py tools/results/RUN.json

Two processes, each on a core of its own, train the last architecture of a
recorded run, in turns with the first batch and with the one that a
`DynamicBatch` grows to in the memory of the dense network. A turn has as many
images each time.
"""

import functools
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

WORKERS = 2
# First batch size of each worker -> granularity; small, so that updates cost.
FIRST = {8: 2}
IMAGES = 960  # Of a turn, about: whole batches of either size.
WARM_UP = 1  # Pairs of turns that are not counted.


def main(argv):
    if "TF_CONFIG" in os.environ:
        _keep_to_one_core()
        print(json.dumps(_growths(argv[1])))
        return
    addresses = [f"127.0.0.1:{port}" for port in _free_ports()]
    workers = []
    for index in range(WORKERS):
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
    rows = json.loads(outputs[0].splitlines()[-1])
    for row in rows:
        print(row)
    from architectures import SEED

    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
    from apps.environment import ROOT, environment

    record = environment([SEED]) | {"run": argv[1], "growths": rows}
    output = ROOT / "tools" / "results" / "worker_growth.json"
    output.write_text(json.dumps(record, indent=1) + "\n")


def _keep_to_one_core():
    """Gives each worker a core of its own: they are to be machines."""
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[index % len(cores)]})


def _free_ports():
    sockets = [socket.socket() for _ in range(WORKERS)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _growths(path):
    """Trains as one of the workers; returns what it measured."""
    import keras_prunetrain as kpt

    # Before anything else that TensorFlow does.
    strategy = kpt.multi_worker_strategy()
    from architectures import cut_like, first_architecture
    from communication import grown

    run = json.loads(pathlib.Path(path).read_text())
    with strategy.scope():
        stages = [first_architecture(run["recipe"])]
        for report in run["reconfigurations"]:
            stages.append(cut_like(report, stages[-1]))
    return [
        _growth(stages[-1], first, int(grown(stages, first, granularity)[-1]))
        for first, granularity in FIRST.items()
    ]


def _growth(model, first, last):
    sizes = [WORKERS * first, WORKERS * last]
    seconds = _seconds_per_image(model, sizes, _TURNS.value)
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    return {
        "workers": WORKERS,
        "batch_sizes": sizes,
        "images_per_second": [
            1 / statistics.median(column) for column in seconds
        ],
        "time_per_image_ratio": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4),
    }


def _seconds_per_image(model, sizes, turns):
    """Trains with each of two sizes in turn; returns a list for each."""
    import keras
    import tensorflow as tf

    # In every other pair the larger one is first.
    order = [
        size for i in range(turns + WARM_UP) for size in sizes[:: (-1) ** i]
    ]
    blocks = [_block(model, size) for size in order]
    ends = list(itertools.accumulate(int(b.cardinality()) for b in blocks))
    batches = functools.reduce(tf.data.Dataset.concatenate, blocks)
    options = tf.data.Options()
    # Its tuner holds up the end of an epoch; see apps/data.py.
    options.autotune.enabled = False
    times = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch + 1 in ends:
                times.append(time.perf_counter())

    model.fit(
        batches.with_options(options),
        callbacks=[Clock()],
        shuffle=False,
        verbose=0,
    )
    seconds = {size: [] for size in sizes}
    images = {
        size: size * int(_block(model, size).cardinality()) for size in sizes
    }
    turns_taken = zip(order[1:], itertools.pairwise(times), strict=True)
    for size, (start, end) in turns_taken:
        seconds[size].append((end - start) / images[size])
    return [column[-turns:] for column in seconds.values()]


def _block(model, batch_size):
    """Returns a data set of one turn: a batch, again and again."""
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch_size, *model.input_shape[1:]))
    labels = rng.integers(0, model.output_shape[-1], batch_size)
    batches = tf.data.Dataset.from_tensors((images.astype("float32"), labels))
    return batches.repeat(round(IMAGES / batch_size))


if __name__ == "__main__":
    app.run(main)
