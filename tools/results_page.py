"""Writes docs/results.md from tools/results/*.json and tools/papers.json.

A summary, the papers' numbers beside ours, and all recorded trainings.
Trainings of one network with one recipe stand in one table. Runs that differ in
nothing but the seed are one row, the mean over the seeds.

    python tools/results_page.py
"""

import collections
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

import papers_section  # noqa: E402
import peers_section  # noqa: E402
import run_records  # noqa: E402
from recorded_recipes import (  # noqa: E402
    DEFAULTS,
    EXPONENT,
    dense_of,
    mean,
    setting,
    value,
    was_exact,
)

FOLDER = ROOT / "tools" / "results"
PAGE = ROOT / "docs" / "results.md"

_INTRODUCTION = """\
# Results

`make results` writes this page from the records in `tools/results/`, each of
which has its date, commit, machine, seeds and command.
[measurements.md](measurements.md) says what follows from the numbers, and has
times and memory.

## In short
"""

_TRAININGS = """\
## All recorded trainings

Accuracy is that of the last epoch on the validation split, the mean over the
seeds with the standard deviation. FLOPs are fractions of those of the dense
network, training FLOPs the sum over all epochs. The step is timed in paired
replays of the recorded architectures on an idle machine
(`tools/benchmarks/replay.py`): the steps of the whole run, and those of its
last architecture, as fractions of the steps of the dense network. A dash says
that it was not measured.
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
        settings[setting(run.recipe)].append(run)
    tables = [_rows(x) for _, x in sorted(settings.items(), key=str)]
    papers, made, of_all = papers_section.section(runs, replays, folder)
    summary = [_short(rows) for rows in tables if "dense" in rows]
    summary.append(
        f"{of_all} rows of the papers' tables and figures, and of ours among "
        f"them, have a command below. {made} of them have been run.\n"
    )
    parts = [
        *(_INTRODUCTION, *summary, papers),
        *(peers_section.section(folder), _TRAININGS),
        *(_section(rows, replays) for rows in tables),
    ]
    return "\n".join(filter(None, parts))


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


def _rows(runs):
    """Returns the runs of one setting by the names of their rows, in order."""
    dense = dense_of(runs[0].recipe, runs)
    rows = collections.defaultdict(list)
    for run in runs:
        rows[label(run.recipe, run in dense)].append(run)
    for found in rows.values():
        seeds = [run.result["seed"] for run in found]
        if len({*seeds}) != len(seeds):
            names = ", ".join(f"'{run.path.name}'" for run in found)
            raise ValueError(f"Two records of one training and seed: {names}.")
    return dict(
        sorted(
            rows.items(),
            key=lambda row: (
                row[0] != "dense",
                -mean(row[1], "training"),
                row[0],
            ),
        )
    )


def _short(rows):
    """Returns a table of few columns, without what is older than the code."""
    dense = rows["dense"]
    first = dense[0].recipe
    lines = [
        f"{_name(first)}, {first['epochs']} epochs:\n",
        "| | accuracy | inference FLOPs | training FLOPs | seeds |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, runs in rows.items():
        if EXPONENT in runs[0].recipe:
            continue
        cells = [
            *(name, _accuracy(runs)),
            *(
                f"{mean(runs, kind) / mean(dense, kind):.0%}"
                for kind in ("inference", "training")
            ),
            str(len(runs)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _section(rows, replays):
    """Returns the table of the runs that have one recipe."""
    dense = rows.get("dense")
    (first, *_), *_ = rows.values()
    lines = [f"### {_title(first.recipe)}\n"]
    lines += [
        "| | validation accuracy | seeds | beside dense | inference FLOPs "
        "| training FLOPs | steps of the run | last step |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
        *(_row(name, found, dense, replays) for name, found in rows.items()),
    ]
    lines += ["", "Made by, with each `--seed` and a `--workdir`:", "", "```"]
    lines += dict.fromkeys(_command(found[0]) for found in rows.values())
    return "\n".join([*lines, "```", ""])


def _row(name, runs, dense, replays):
    beside = inference = training = "-"
    if dense:
        difference = mean(runs, "accuracy") - mean(dense, "accuracy")
        beside = "" if runs is dense else f"{100 * difference:+.2f} points"
        inference, training = (
            f"{mean(runs, kind) / mean(dense, kind):.1%}"
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
    cells = [
        name,
        _accuracy(runs),
        seeds,
        beside,
        inference,
        training,
        whole,
        last,
    ]
    return f"| {' | '.join(cells)} |"


def _accuracy(runs):
    accuracies = [100 * run.result["val_accuracy"] for run in runs]
    text = f"{statistics.mean(accuracies):.2f}%"
    if len(runs) > 1:
        text += f" ± {statistics.stdev(accuracies):.2f}"
    return text


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
    if EXPONENT in recipe:
        name += f", by score / cost^{recipe[EXPONENT]}"
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
        found = value(recipe, name)
        if found != DEFAULTS[name]:
            quoted = isinstance(found, str)
            yield f'{name}="{found}"' if quoted else f"{name}={found}"


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
    if was_exact(recipe):
        multiple = "1"
    if multiple != str(default):
        shown = f'"{multiple}"' if multiple == "auto" else multiple
        yield f'reconfigure={{"channel_multiple": {shown}}}'


def _batch(recipe):
    if recipe.get("granularity") is not None:
        size, granularity = recipe["batch_size"], recipe["granularity"]
        yield f"batch=DynamicBatch({size}, {granularity})"


def _title(recipe):
    drops = ", ".join(map(str, value(recipe, "learning_rate_drops")))
    optimizer = value(recipe, "optimizer")
    return (
        f"{_name(recipe)}, {recipe['epochs']} epochs, {optimizer} at "
        f"{recipe['learning_rate']:g}, divided by 10 at {drops}, "
        f"{recipe['dtype_policy']}"
    )


def _name(recipe):
    size = value(recipe, "image_size")
    pixels = f" of {size}x{size} pixels" if size else ""
    return f"{recipe['network']} on {recipe['dataset']}{pixels}"


def _command(run):
    command = run.result["command"]
    command = re.sub(r" --(seed|workdir|data_dir)=\S+", "", command)
    if run.result["method"] == "targetprune" and was_exact(run.recipe):
        command += " --channel_multiple=1"
    if EXPONENT in run.recipe:
        command += f"  # at {run.result['commit'][:7]}"
    return command


if __name__ == "__main__":
    main(sys.argv[1:])
