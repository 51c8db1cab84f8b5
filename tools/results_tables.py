"""Tables of docs/results.md: the trainings that have one recipe in common."""

import collections
import re
import statistics

import results_records
from recorded_recipes import EXPONENT, mean, setting, shortens, was_exact
from run_labels import label, title, training


def read_tables(folder):
    """Returns the rows of each table, and the replays by the runs' names.

    Args:
        folder: Path of the folder with the records, `*.json`.

    Raises:
        ValueError: If a record lacks something or holds what cannot be shown,
            if two records are of one training, or if there is none.
    """
    runs, replays = results_records.read(folder)
    if not runs:
        raise ValueError(f"'{folder}' has no record of a training.")
    settings = collections.defaultdict(list)
    for run in runs:
        settings[setting(run.recipe)].append(run)
    _move_shortened(settings)
    rows = [_rows(x) for _, x in sorted(settings.items(), key=str)]
    return rows, replays


def _move_shortened(settings):
    """Lays dense runs with a compressed schedule to the runs with the whole."""
    # The longest first: a shorter one then finds these moved already.
    for own, runs in sorted(
        settings.items(), key=lambda x: -x[1][0].recipe["epochs"]
    ):
        longer = [
            found
            for found in settings.values()
            if all(shortens(run.recipe, found[0].recipe) for run in runs)
        ]
        if len(longer) == 1:
            longer[0].extend(settings.pop(own))


def _rows(runs):
    """Returns the runs of one setting by the names of their rows, in order."""
    widest = max(
        (run.result["forward_flops"] for run in runs if run.is_dense),
        default=None,
    )
    rows = collections.defaultdict(list)
    epochs = max(run.recipe["epochs"] for run in runs)
    for run in runs:
        is_widest = run.is_dense and run.result["forward_flops"] == widest
        name = label(run.recipe, is_widest)
        if run.recipe["epochs"] < epochs:
            name += f", {run.recipe['epochs']} epochs"
        rows[name].append(run)
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


def current(rows):
    """Returns the rows without those that are older than the code."""
    return {k: v for k, v in rows.items() if EXPONENT not in v[0].recipe}


def trained(rows):
    """Returns what the dense rows of a table train; `None` without any."""
    return training(rows["dense"][0].recipe) if "dense" in rows else None


def short(name, rows, replays):
    """Returns a table of few columns, of a training of that name."""
    dense = rows["dense"]
    lines = [
        f"{name}:\n",
        "| | accuracy | seeds | inference FLOPs | training FLOPs "
        "| training time |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row, runs in current(rows).items():
        inference, in_training = _flops(runs, dense, digits=0)
        time = "100%" if runs is dense else _times(runs, replays)[0]
        cells = [row, _accuracy(runs), str(len(runs))]
        cells += [inference, in_training, time]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def whole(rows, replays):
    """Returns the table of the runs that have one recipe."""
    dense = rows.get("dense")
    (first, *_), *_ = rows.values()
    lines = [f"### {title(first.recipe)}\n"]
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
    beside = inference = in_training = "-"
    if dense:
        difference = mean(runs, "accuracy") - mean(dense, "accuracy")
        beside = "" if runs is dense else f"{100 * difference:+.2f} points"
        inference, in_training = _flops(runs, dense, digits=1)
    of_run, last = _times(runs, replays)
    seeds = ", ".join(
        f"{run.result['seed']} ({run.result['val_accuracy']:.2%})"
        for run in runs
    )
    cells = [
        name,
        _accuracy(runs),
        seeds,
        beside,
        inference,
        in_training,
        of_run,
        last,
    ]
    return f"| {' | '.join(cells)} |"


def _flops(runs, dense, digits):
    """Returns the FLOPs of inference and of training beside dense, as texts."""
    inference, training, on_hardware = (
        f"{mean(runs, kind) / mean(dense, kind):.{digits}%}"
        for kind in ("inference", "training", "training on n:m hardware")
    )
    if on_hardware != training:
        training += f" ({on_hardware} on n:m hardware)"
    return inference, training


def _times(runs, replays):
    """Returns the time of all steps of a run, and of a last one, as texts."""
    timed = [replays[x.path.stem] for x in runs if x.path.stem in replays]
    if not timed:
        return "-", "-"
    columns = (
        [x["training_time_ratio"] for x in timed],
        [x["architectures"][-1]["time_ratio"] for x in timed],
    )
    return tuple(f"{statistics.mean(values):.0%}" for values in columns)


def _accuracy(runs):
    accuracies = [100 * run.result["val_accuracy"] for run in runs]
    text = f"{statistics.mean(accuracies):.2f}%"
    if len(runs) > 1:
        text += f" ± {statistics.stdev(accuracies):.2f}"
    return text


def _command(run):
    command = run.result["command"]
    command = re.sub(r" --(seed|workdir|data_dir)=\S+", "", command)
    # Of a flag that was given twice, the last one counted.
    command = re.sub(r" --(\w+)=\S+(?=.* --\1=)", "", command)
    if run.result["method"] == "targetprune" and was_exact(run.recipe):
        command += " --channel_multiple=1"
    if EXPONENT in run.recipe:
        command += f"  # at {run.result['commit'][:7]}"
    return command
