"""Measures the step of each architecture that a recorded run went through.

    python tools/benchmarks/replay.py tools/results/RUN.json
    python tools/benchmarks/replay.py tools/results/RUN.json \\
        --dtype_policy=float32

The seconds in a run's records depend on what else the machine did meanwhile.
Here the dense network and all architectures of the run, rebuilt from the
records, train in turns, so that their ratios hold: they are of the time for an
image. The architectures have the batch that they had and, if the run had a
lasso, lasso and callback. The epochs of the run, each weighted with its
architecture's ratio, give the training time relative to dense; reconfigurations
are listed apart. `saved_per_flop` is the share of the step's time that an
architecture saves, divided by the share of its FLOPs. `rounded` is the last
architecture once more, with the channel counts that `channel_multiple="auto"`
would have left; `narrow`, with `--narrow_width=11`, the network of this width.
"""

import json
import pathlib
import statistics
import sys
import time

import keras
import numpy as np
import recorded_run
from absl import app, flags
from architectures import SEED, cut_like, first_architecture, rounded_up
from turns import in_turns

import keras_prunetrain as kpt

# `apps` is not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from apps.environment import ROOT, environment  # noqa: E402

_TURNS = flags.DEFINE_integer("turns", 10, "Turns of each architecture.")
_DTYPE_POLICY = flags.DEFINE_string(
    "dtype_policy", None, "What layers compute in. Default: as in the run."
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Pixels of a side. Default: as in the run.", 1
)
_NARROW_WIDTH = flags.DEFINE_integer(
    "narrow_width", None, "Width of a network that takes turns as well.", 1
)
_OUTPUT = flags.DEFINE_string("output", None, "Default: tools/results/.")


def main(argv):
    run = recorded_run.read_one(argv[1:])
    policy = _DTYPE_POLICY.value or run.recipe["dtype_policy"]
    keras.config.set_dtype_policy(policy)
    name = f"replay_{run.path.stem}_{policy}"
    if _IMAGE_SIZE.value:
        run.recipe["image_size"] = _IMAGE_SIZE.value
        name += f"_image{_IMAGE_SIZE.value}"
    stages, times_of_cuts = rebuilt(run)
    first = run.recipe["batch_size"]
    grown = (r.get("batch_size_after") or first for r in run.reports)
    sizes = [first, *grown]
    others = {"rounded": rounded_up(run)}
    if _NARROW_WIDTH.value:
        width = {"width": _NARROW_WIDTH.value}
        others["narrow"] = first_architecture(run.recipe | width)
    dense, *seconds = in_turns(
        [first_architecture(run.recipe), *stages, *others.values()],
        _TURNS.value,
        SEED,
        [[], *(callbacks_of(run) for _ in stages), *([] for _ in others)],
        [first, *sizes, *(first for _ in others)],
    )
    seconds, of_others = seconds[: len(stages)], seconds[len(stages) :]
    flops = kpt.model_cost(stages[0]).forward_flops
    rows = [
        row(*columns, dense, first, flops)
        for columns in zip(
            run.epochs_of_architectures, sizes, stages, seconds, strict=True
        )
    ]
    trained = sum(row["epochs"] * row["time_ratio"] for row in rows)
    record = environment([SEED]) | {
        "run": run.path.stem,
        "dtype_policy": policy,
        "image_size": run.recipe.get("image_size"),
        "dense_step_seconds": statistics.median(dense),
        "architectures": rows,
        **{
            name: row(0, first, model, times, dense, first, flops)
            for (name, model), times in zip(
                others.items(), of_others, strict=True
            )
        },
        "training_time_ratio": trained / run.epochs,
        **times_of_cuts,
    }
    folder = ROOT / "tools" / "results"
    output = pathlib.Path(_OUTPUT.value or folder / f"{name}.json")
    output.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def callbacks_of(run):
    """Returns what the run had in its steps outside of reconfigurations."""
    if run.recipe["method"] != "prunetrain":
        return []
    # No reconfiguration comes up in so few epochs.
    return [kpt.PruneTrainCallback(interval=10**6)]


def rebuilt(run):
    """Returns the networks of `run`, and what making each of them took."""
    stages = [first_architecture(run.recipe)]
    surgeries, first_steps = [], []
    for report in run.reports:
        started = time.perf_counter()
        stages.append(cut_like(report, stages[-1]))
        surgeries.append(time.perf_counter() - started)
        first_steps.append(first_step_seconds(stages[-1]))
    return stages, {
        "surgery_seconds": surgeries,
        "first_step_seconds": first_steps,
    }


def row(epochs, size, model, times, dense, first, flops):
    """Returns the record of an architecture.

    Args:
        epochs: Integer. How many it was trained.
        size: Integer. Its batch size.
        model: The network.
        times: List of its seconds per step, for each turn.
        dense: The same of the dense network.
        first: Integer. The batch size of the dense network.
        flops: Integer. The FLOPs of the dense network.
    """
    ratio = statistics.median(b / a for a, b in zip(dense, times, strict=True))
    left = kpt.model_cost(model).forward_flops
    saved = {}
    if left != flops:
        saved_time = 1 - ratio * (first / size)
        saved["saved_per_flop"] = saved_time / (1 - left / flops)
    return {
        "epochs": epochs,
        "batch_size": size,
        "forward_flops": left,
        "parameters": model.count_params(),
        "step_seconds": statistics.median(times),
        "time_ratio": ratio * (first / size),
        **saved,
    }


def first_step_seconds(model):
    images = np.zeros((128, *model.input_shape[1:]), "float32")
    started = time.perf_counter()
    model.train_on_batch(images, np.zeros(128, "int32"))
    return time.perf_counter() - started


if __name__ == "__main__":
    app.run(main)
