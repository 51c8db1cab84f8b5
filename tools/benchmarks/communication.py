"""Computes what a recorded run would send between devices (paper, figure 11).

    python tools/benchmarks/communication.py tools/results/RUN.json ...

Nothing is measured: the architectures are rebuilt from the records, and each
update sends their gradients once around. On each device is a batch as large as
that of the run, or what a `DynamicBatch` would have made of it with the memory
of the dense network.
"""

import json
import math
import pathlib
import sys

import numpy as np
import recorded_run
from absl import app
from architectures import SEED, architectures

import keras_prunetrain as kpt

# `apps` is not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from apps.environment import ROOT, environment  # noqa: E402

OUTPUT = ROOT / "tools" / "results" / "communication.json"

DEVICES = (16, 32, 64, 128, 256)
DEVICES_PER_MACHINE = 4
GRANULARITIES = (8, 32)
EXAMPLES = 50_000


def main(argv):
    runs = [of_run(run) for run in recorded_run.read_all(argv[1:])]
    record = environment([SEED]) | {"runs": runs}
    OUTPUT.write_text(json.dumps(record, indent=1) + "\n")
    for run in runs:
        print(json.dumps({k: v for k, v in run.items() if k != "devices"}))
        for row in run["devices"]:
            print(json.dumps(row))


def of_run(run):
    """Returns the communication of a run, dense, shrinking, and growing."""
    stages = architectures(run)
    epochs = np.array(run.epochs_of_architectures)
    sizes = np.array([kpt.gradient_bytes(model) for model in stages])
    batches = {"fixed": np.full(len(stages), run.recipe["batch_size"])}
    for granularity in GRANULARITIES:
        batches[f"granularity {granularity}"] = grown(
            stages, run.recipe["batch_size"], granularity
        )
    # For each image and device; all of them send in proportion to it.
    updates = {name: 1 / batch for name, batch in batches.items()}
    dense = sizes[0] * updates["fixed"][0] * run.epochs
    return {
        "run": run.path.stem,
        "gradient_bytes": sizes.tolist(),
        "epochs": epochs.tolist(),
        "batch_sizes_per_device": {k: v.tolist() for k, v in batches.items()},
        "ratio_to_dense": {
            name: float((sizes * updates[name] * epochs).sum() / dense)
            for name in batches
        },
        "devices": [
            row(n, sizes[0], run.recipe["batch_size"]) for n in DEVICES
        ],
    }


def grown(stages, initial, granularity):
    """Returns the batch of each device for each architecture."""
    budget = kpt.training_bytes(stages[0], initial)
    batch = [initial]
    for model in stages[1:]:
        fixed = kpt.training_bytes(model, 0)
        room = (budget - fixed) / (kpt.training_bytes(model, 1) - fixed)
        room = math.floor(room / granularity) * granularity
        batch.append(max(room, batch[-1]))
    return np.array(batch)


def row(devices, size, batch_size):
    """Returns what each device sends for the dense network, in bytes."""
    updates = math.ceil(EXAMPLES / (batch_size * devices))
    between = kpt.communication_bytes(size, devices, DEVICES_PER_MACHINE)
    ring = kpt.communication_bytes(size, devices)
    return {
        "devices": devices,
        "dense_bytes_per_update": ring,
        "dense_bytes_per_epoch": ring * updates,
        "of_it_between_machines_per_update": between,
        "of_it_between_machines_per_epoch": between * updates,
    }


if __name__ == "__main__":
    app.run(main)
