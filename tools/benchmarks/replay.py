"""Measures the step of each architecture that a recorded run went through.

    python tools/benchmarks/replay.py tools/results/RUN.json
    python tools/benchmarks/replay.py tools/results/RUN.json \\
        --dtype_policy=float32

The seconds in a run's records depend on what else the machine did meanwhile.
Here the dense network and all architectures of the run, rebuilt from the
records, the latter with lasso, callback and the batch that they had, train in
turns, so that their ratios hold: they are of the time for an image. The epochs
of the run, each weighted with its architecture's ratio, give the training time
relative to dense; reconfigurations are listed apart.
"""

import json
import pathlib
import statistics
import sys
import time

import keras
import numpy as np
from absl import app, flags
from architectures import SEED, cut_like, first_architecture
from turns import in_turns

import keras_prunetrain as kpt

# `apps` is not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from apps.environment import ROOT, environment  # noqa: E402

_TURNS = flags.DEFINE_integer("turns", 10, "Turns of each architecture.")
_DTYPE_POLICY = flags.DEFINE_string(
    "dtype_policy", None, "What layers compute in. Default: as in the run."
)
_OUTPUT = flags.DEFINE_string("output", None, "Default: tools/results/.")


def main(argv):
    if len(argv) != 2:
        raise app.UsageError("Expected one file of tools/record_run.py.")
    path = pathlib.Path(argv[1])
    run = json.loads(path.read_text())
    recipe, reports = run["recipe"], run["reconfigurations"]
    policy = _DTYPE_POLICY.value or recipe["dtype_policy"]
    keras.config.set_dtype_policy(policy)
    stages, first_steps = [first_architecture(recipe)], []
    surgeries = []
    for report in reports:
        started = time.perf_counter()
        stages.append(cut_like(report, stages[-1]))
        surgeries.append(time.perf_counter() - started)
        first_steps.append(first_step_seconds(stages[-1]))
    # No reconfiguration comes up in so few epochs.
    lassos = [[kpt.PruneTrainCallback(interval=10**6)] for _ in stages]
    first = recipe["batch_size"]
    sizes = [first, *(r.get("batch_size_after") or first for r in reports)]
    dense, *seconds = in_turns(
        [first_architecture(recipe), *stages],
        _TURNS.value,
        SEED,
        [[], *lassos],
        [first, *sizes],
    )
    ratios = [
        statistics.median(b / a for a, b in zip(dense, times, strict=True))
        * (first / size)
        for times, size in zip(seconds, sizes, strict=True)
    ]
    begins = [0, *(report["epoch"] + 1 for report in reports), run["epochs"]]
    epochs = np.diff(begins).tolist()
    record = environment([SEED]) | {
        "run": path.stem,
        "dtype_policy": policy,
        "dense_step_seconds": statistics.median(dense),
        "architectures": [
            {
                "epochs": n,
                "batch_size": size,
                "forward_flops": kpt.model_cost(model).forward_flops,
                "parameters": model.count_params(),
                "step_seconds": statistics.median(times),
                "time_ratio": ratio,
            }
            for n, size, model, times, ratio in zip(
                epochs, sizes, stages, seconds, ratios, strict=True
            )
        ],
        "training_time_ratio": float(np.dot(epochs, ratios) / run["epochs"]),
        "surgery_seconds": surgeries,
        "first_step_seconds": first_steps,
    }
    output = pathlib.Path(
        _OUTPUT.value
        or ROOT / "tools" / "results" / f"replay_{path.stem}_{policy}.json"
    )
    output.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def first_step_seconds(model):
    images = np.zeros((128, *model.input_shape[1:]), "float32")
    started = time.perf_counter()
    model.train_on_batch(images, np.zeros(128, "int32"))
    return time.perf_counter() - started


if __name__ == "__main__":
    app.run(main)
