"""Writes docs/results.md: trainings compared, from tools/results/*.json.

Trainings of one network with one recipe stand in one table. Runs that differ in
nothing but the seed are one row, the mean over the seeds.

    python tools/results_page.py
"""

import collections
import dataclasses
import json
import os
import pathlib
import re
import statistics
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Neither `apps` nor `tools` is part of the installed package.
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import run_records  # noqa: E402

from apps.training import Recipe  # noqa: E402

FOLDER = ROOT / "tools" / "results"
PAGE = ROOT / "docs" / "results.md"

# What two trainings have in common that stand in one table.
_SETTING = (
    *("dataset", "network", "image_size", "epochs", "batch_size", "optimizer"),
    *("learning_rate", "learning_rate_drops", "momentum", "weight_decay"),
    *("global_clipnorm", "dtype_policy"),
)
# Of runs from when the choice under a target divided scores by the cost to this
# power, and not by the cost.
_EXPONENT = "cost_exponent"
_DEFAULTS = {x.name: x.default for x in dataclasses.fields(Recipe)}

_INTRODUCTION = """\
# Trainings compared

`python tools/results_page.py` writes this page from the records in
`tools/results/`, each of which has its date, commit, machine and command.
Accuracy is that of the last epoch on the validation split, the mean over the
seeds with the standard deviation. FLOPs are fractions of those of the dense
network, training FLOPs the sum over all epochs. The step is timed in paired
replays of the recorded architectures on an idle machine
(`tools/benchmarks/replay.py`): the steps of the whole run, and those of its
last architecture, as fractions of the steps of the dense network. A dash says
that it was not measured. [measurements.md](measurements.md) says what follows
from the numbers.
"""


def main(words):
    if words:
        sys.exit(f"{__doc__}\nIt takes no arguments.")
    try:
        text = page(FOLDER)
    except (ValueError, OSError) as error:
        sys.exit(f"{error}\nNothing was written.")
    PAGE.write_text(text)
    print(f"Wrote {PAGE}.")


def page(folder):
    """Returns the text of the page.

    Args:
        folder: Path of the folder with the records, `*.json`.

    Raises:
        ValueError: If a record of a training lacks something, if two records
            are of one training, or if there is none.
    """
    runs, replays = _read(folder)
    if not runs:
        raise ValueError(f"'{folder}' has no record of a training.")
    settings = collections.defaultdict(list)
    for run in runs:
        key = tuple(_value(run.recipe, name) for name in _SETTING)
        settings[key].append(run)
    parts = [_section(x, replays) for _, x in sorted(settings.items(), key=str)]
    return "\n".join([_INTRODUCTION, *parts])


def _read(folder):
    """Returns the runs, and the replays by the names of their runs."""
    runs, replays, sizes = [], {}, {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        if "metrics" in record:
            runs.append(_checked(run_records.read(path)))
            sizes[path.stem] = runs[-1].recipe.get("image_size")
        elif "training_time_ratio" in record:
            replays[record["run"], record.get("image_size")] = record
    own = {
        name: replays.get((name, size)) or replays.get((name, None))
        for name, size in sizes.items()
    }
    return runs, {name: record for name, record in own.items() if record}


def _checked(run):
    """Returns `run`; raises a `ValueError` if it is not all there."""
    found = {
        "val_accuracy": "val_accuracy" in run.result,
        "command": isinstance(run.result.get("command"), str),
        "recipe": bool(run.recipe),
    }
    missing = [name for name, is_there in found.items() if not is_there]
    if missing:
        raise ValueError(
            f"'{run.path}' has no {', '.join(missing)}: record the run anew "
            "with tools/record_run.py."
        )
    if len(run.metrics) != run.result["epochs"]:
        raise ValueError(
            f"'{run.path}' has {len(run.metrics)} of its "
            f"{run.result['epochs']} epochs: the run was not finished."
        )
    return run


def _value(recipe, name):
    value = recipe.get(name, _DEFAULTS[name])
    return tuple(value) if isinstance(value, list) else value


def _section(runs, replays):
    """Returns the table of the runs that have one recipe."""
    widest = max(
        (x.result["forward_flops"] for x in runs if x.is_dense), default=None
    )
    rows = collections.defaultdict(list)
    for run in runs:
        is_widest = run.is_dense and run.result["forward_flops"] == widest
        rows[label(run.recipe, is_widest)].append(run)
    for found in rows.values():
        seeds = [run.result["seed"] for run in found]
        if len({*seeds}) != len(seeds):
            names = ", ".join(f"'{run.path.name}'" for run in found)
            raise ValueError(f"Two records of one training and seed: {names}.")
    dense = rows.get("dense")
    ordered = sorted(
        rows.items(),
        key=lambda row: (row[0] != "dense", -_mean(row[1], "training"), row[0]),
    )
    lines = [f"## {_title(runs[0].recipe)}\n"]
    lines += [
        "| | validation accuracy | seeds | beside dense | inference FLOPs "
        "| training FLOPs | steps of the run | last step |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
        *(_row(name, found, dense, replays) for name, found in ordered),
    ]
    lines += ["", "Made by, with each `--seed` and a `--workdir`:", "", "```"]
    lines += dict.fromkeys(_command(found[0]) for _, found in ordered)
    return "\n".join([*lines, "```", ""])


def _row(name, runs, dense, replays):
    accuracies = [100 * run.result["val_accuracy"] for run in runs]
    accuracy = f"{statistics.mean(accuracies):.2f}%"
    if len(runs) > 1:
        accuracy += f" ± {statistics.stdev(accuracies):.2f}"
    beside = inference = training = "-"
    if dense:
        difference = _mean(runs, "accuracy") - _mean(dense, "accuracy")
        beside = "" if runs is dense else f"{100 * difference:+.2f} points"
        inference, training = (
            f"{_mean(runs, kind) / _mean(dense, kind):.1%}"
            for kind in ("inference", "training")
        )
    timed = [replays[x.path.stem] for x in runs if x.path.stem in replays]
    whole = last = "-"
    if timed:
        whole, last = (
            f"{statistics.mean(values):.0%}"
            for values in (
                [x["training_time_ratio"] for x in timed],
                [x["architectures"][-1]["time_ratio"] for x in timed],
            )
        )
    seeds = ", ".join(str(run.result["seed"]) for run in runs)
    cells = [name, accuracy, seeds, beside, inference, training, whole, last]
    return f"| {' | '.join(cells)} |"


_KEYS = {
    "accuracy": "val_accuracy",
    "inference": "forward_flops",
    "training": "total_training_flops",
}


def _mean(runs, kind):
    return statistics.mean(run.result[_KEYS[kind]] for run in runs)


def label(recipe, is_widest):
    """Returns what a row is called: the callback, as it is written in code.

    Args:
        recipe: Dict, the recipe of a run.
        is_widest: Whether no dense run beside it has a wider network.
    """
    method = recipe["method"]
    if method == "dense":
        name = "dense" if is_widest else f"narrow, width {recipe['width']}"
    elif method == "narrow":
        name = f"narrow, {recipe['target_flops']:.0%} of the FLOPs"
    else:
        callback, arguments = {
            "prunetrain": ("PruneTrainCallback", _lasso),
            "targetprune": ("TargetPruneCallback", _target),
        }.get(method, ("EarlyCroPCallback", _early_crop))
        words = [*arguments(recipe), *_batch(recipe)]
        name = f"`{callback}({', '.join(words)})`"
    if _EXPONENT in recipe:
        name += f", by score / cost^{recipe[_EXPONENT]}"
    if recipe.get("sdgp"):
        n, m = recipe["sdgp"].split(":")
        words = [n, m, f'"{recipe["sdgp_mode"]}"']
        if recipe["sdgp_dense_last"]:
            words.append(f"dense_last={recipe['sdgp_dense_last']}")
        name += f", `SDGPCallback({', '.join(words)})`"
    return name


def _others(recipe, *names):
    """Yields the arguments that are not the app's defaults, as code."""
    for name in names:
        value = _value(recipe, name)
        if value != _DEFAULTS[name]:
            quoted = isinstance(value, str)
            yield f'{name}="{value}"' if quoted else f"{name}={value}"


def _lasso(recipe):
    yield f"penalty_ratio={recipe['penalty_ratio']}"
    yield f"interval={recipe['interval']}"
    yield from _others(recipe, "solver", "coupled")
    if recipe["finetune_epochs"]:
        yield f"finetune_epochs={recipe['finetune_epochs']}"
    yield from _multiple(recipe, 1)


def _target(recipe):
    if recipe["target_flops"] is not None:
        yield f"flops={recipe['target_flops']}"
    yield from _others(recipe, "training_flops", "warmup", "decay", "rounds")
    if recipe["score"] not in (None, "taylor"):
        yield f'score="{recipe["score"]}"'
    yield from _multiple(recipe, "auto")


def _early_crop(recipe):
    if recipe["target_flops"] is None:
        yield f"{recipe['sparsity']}, structured=False"
    else:
        yield f'{1 - recipe["target_flops"]:.3g}, target="flops"'
    score = recipe["score"] or "gradient_flow"
    yield f'score="{score}", when="{recipe["when"]}"'
    yield from _others(recipe, "iterations")
    if recipe.get("iteration_interval"):
        yield f"interval={recipe['iteration_interval']}"
    yield from _multiple(recipe, 1)


def _multiple(recipe, default):
    multiple = recipe.get("channel_multiple") or str(default)
    if _was_exact(recipe):
        multiple = "1"
    if multiple != str(default):
        shown = f'"{multiple}"' if multiple == "auto" else multiple
        yield f'reconfigure={{"channel_multiple": {shown}}}'


def _batch(recipe):
    if recipe.get("granularity") is not None:
        size, granularity = recipe["batch_size"], recipe["granularity"]
        yield f"batch=DynamicBatch({size}, {granularity})"


def _title(recipe):
    size = _value(recipe, "image_size")
    drops = ", ".join(map(str, _value(recipe, "learning_rate_drops")))
    optimizer = _value(recipe, "optimizer")
    return (
        f"{recipe['network']} on {recipe['dataset']}"
        + (f" of {size}x{size} pixels" if size else "")
        + f", {recipe['epochs']} epochs, {optimizer} at "
        + f"{recipe['learning_rate']:g}, divided by 10 at {drops}, "
        + recipe["dtype_policy"]
    )


def _command(run):
    command = run.result["command"]
    command = re.sub(r" --(seed|workdir|data_dir)=\S+", "", command)
    if run.result["method"] == "targetprune" and _was_exact(run.recipe):
        command += " --channel_multiple=1"
    if _EXPONENT in run.recipe:
        command += f"  # at {run.result['commit'][:7]}"
    return command


def _was_exact(recipe):
    """Whether a run is older than the flag: it has rounded no count."""
    return "channel_multiple" not in recipe


if __name__ == "__main__":
    main(sys.argv[1:])
