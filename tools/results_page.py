"""Writes docs/results.md, and the README's excerpt, from tools/results/*.json.

A summary, what it takes to reach an accuracy, the numbers of tools/papers.json
beside ours, and all trainings.
Trainings of one network with one recipe stand in one table. Runs that differ in
nothing but the seed are one row, the mean over the seeds.

    python tools/results_page.py
"""

import collections
import dataclasses
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
import results_picture  # noqa: E402
import run_records  # noqa: E402
import time_to_accuracy  # noqa: E402
from recorded_recipes import (  # noqa: E402
    DEFAULTS,
    EXPONENT,
    mean,
    setting,
    shortens,
    value,
    was_exact,
)
from run_labels import label  # noqa: E402

from apps import records  # noqa: E402

FOLDER = ROOT / "tools" / "results"
PAGE = ROOT / "docs" / "results.md"
PICTURE = ROOT / "docs" / "accuracy.svg"
README = ROOT / "README.md"

# The excerpt in the README: a training, and its rows.
_EXCERPT = {
    "resnet20 on cifar10 of 16x16 pixels, 30 epochs": (
        "dense",
        "dense, 16 epochs",
        "narrow, width 12",
        "narrow, width 11",
        "`TargetPruneCallback(flops=0.48)`",
        '`EarlyCroPCallback(0.5, target="flops", score="gradient_flow", '
        'when="lazy")`',
        '`EarlyCroPCallback(0.5, target="flops", score="synflow", '
        'when="start")`',
    ),
    "vgg11 on cifar10 of 16x16 pixels, 20 epochs": (
        "dense",
        "narrow, 50% of the FLOPs",
        "`TargetPruneCallback(training_flops=0.5)`",
    ),
    "resnet20 on cifar10, 40 epochs": (
        "dense",
        "narrow, 57% of the FLOPs",
        "narrow, 50% of the FLOPs",
        "`TargetPruneCallback(training_flops=0.55)`",
        '`EarlyCroPCallback(0.5, target="flops", score="synflow", '
        'when="start")`',
        "`PruneTrainCallback(penalty_ratio=0.25, interval=5, "
        "finetune_epochs=5)`",
        "`PruneTrainCallback(penalty_ratio=0.35, interval=5, "
        "finetune_epochs=5)`",
    ),
}
_BEGIN, _END = "<!-- make results -->\n", "<!-- end -->\n"

_INTRODUCTION = """\
# Results

`make results` writes this page from the records in `tools/results/`, each of
which has its date, commit, machine, seeds and command.
[measurements.md](measurements.md) says what follows from the numbers, and has
times and memory.

Accuracy is that of the last epoch on the validation split, the mean over the
seeds with the standard deviation. The validation split of CIFAR-10 is its test
images. FLOPs are fractions of those of the dense network, training FLOPs the
sum over all epochs. The training time is that of all steps, beside the steps
of the dense network, timed in turns on an idle CPU
(`tools/benchmarks/replay.py`). A narrow network is the same network with fewer
channels in every layer, trained without pruning. A dash says that a number was
not measured.

## In short

![Accuracy against training FLOPs and against time](accuracy.svg)
"""

_TRAININGS = """\
## All recorded trainings

"Steps of the run" is the time of all steps of the run, "last step" that of a
step of its last architecture, both as fractions of the steps of the dense
network.
"""


def main(words):
    if words:
        sys.exit(f"{__doc__}\nIt takes no arguments.")
    try:
        texts = {
            PAGE: page(FOLDER),
            PICTURE: results_picture.picture(pictured(FOLDER)),
            README: readme(FOLDER),
        }
        _write(texts)
    except (ValueError, OSError) as error:
        sys.exit(f"{error}\nNothing was written.")
    for path in texts:
        print(f"Wrote {path}.")


def _write(texts):
    """Writes files that are whole, or leaves the old ones."""
    scratch = {path.with_suffix(".new"): path for path in texts}
    try:
        for new, path in scratch.items():
            new.write_text(texts[path])
        for new, path in scratch.items():
            new.replace(path)
    finally:
        for new in scratch:
            new.unlink(missing_ok=True)


def readme(folder):
    """Returns the README with the rows that it shows, from the records.

    Args:
        folder: Path of the folder with the records, `*.json`.

    Raises:
        ValueError: As `page`, or if a row that the README shows has no record.
    """
    tables, replays = _tables(folder)
    lines = []
    for training, names in _EXCERPT.items():
        rows = next((x for x in tables if _trained(x) == training), {})
        missing = [name for name in names if name not in rows]
        if missing:
            raise ValueError(
                f"'{folder}' has no record of the README's {missing[0]}, "
                f"{training}."
            )
        lines.append(_short(training, {x: rows[x] for x in names}, replays))
    before, rest = README.read_text().split(_BEGIN)
    _, after = rest.split(_END)
    return "\n".join([before + _BEGIN, *lines, _END + after])


def pictured(folder):
    """Returns what the picture shows of the README's trainings.

    Args:
        folder: Path of the folder with the records, `*.json`.

    Returns:
        Dict from what was trained to its `results_picture.points`.

    Raises:
        ValueError: As `page`.
    """
    tables, replays = _tables(folder)
    return {
        _trained(rows): results_picture.points(_current(rows), replays)
        for rows in tables
        if _trained(rows) in _EXCERPT
    }


def page(folder):
    """Returns the text of the page.

    Args:
        folder: Path of the folder with the records, `*.json`.

    Raises:
        ValueError: If a record lacks something or holds what cannot be shown,
            if two records are of one training, or if there is none.
    """
    tables, replays = _tables(folder)
    runs = [run for rows in tables for found in rows.values() for run in found]
    papers, made, of_all = papers_section.section(runs, replays, folder)
    beside_dense = [
        (_trained(rows), _current(rows)) for rows in tables if "dense" in rows
    ]
    summary = [_short(*table, replays) for table in beside_dense]
    summary.append(
        f'The section "Beside the papers" has {of_all} rows with a command. '
        f"{made} of them have been run.\n"
    )
    parts = [
        *(_INTRODUCTION, *summary),
        *(time_to_accuracy.section(beside_dense, replays), papers),
        *(peers_section.section(folder), _TRAININGS),
        *(_section(rows, replays) for rows in tables),
    ]
    return "\n".join(filter(None, parts))


def _tables(folder):
    """Returns the rows of each table, and the replays by the runs' names."""
    runs, replays = _read(folder)
    if not runs:
        raise ValueError(f"'{folder}' has no record of a training.")
    settings = collections.defaultdict(list)
    for run in runs:
        settings[setting(run.recipe)].append(run)
    _move_shortened(settings)
    tables = [_rows(x) for _, x in sorted(settings.items(), key=str)]
    return tables, replays


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


def _read(folder):
    """Returns the runs, and the replays by the names of their runs.

    Records of other measurements lie in the folder as well.
    """
    runs, replays = {}, {}
    for path in sorted(folder.glob("*.json")):
        record = records.parsed(records.text_of(path), path)
        records.checked(record, _ANY, path)
        if record.keys() & _OF_RUNS and "peer" not in record:
            runs[path.stem] = _checked(run_records.read(path))
        elif record.keys() & _OF_REPLAYS:
            records.checked(record, _REPLAY, path)
            replays[record["run"], record.get("image_size")] = record, path
    for record, path in replays.values():
        _check_replay(record, runs.get(record["run"]), path)
    own = {
        name: replays.get((name, run.recipe.get("image_size")))
        or replays.get((name, None))
        for name, run in runs.items()
    }
    own = {name: found[0] for name, found in own.items() if found}
    runs = [*runs.values()]
    return runs, own | _of_narrow(runs, own)


def _check_replay(record, run, path):
    """Raises a `ValueError` if the replay in `path` is none of `run`."""
    if run is None:
        raise ValueError(
            f"'{path}' times a run of which there is no record: expected "
            f"'{path.parent / record['run']}.json', of tools/record_run.py."
        )
    epochs = sum(row["epochs"] for row in record["architectures"])
    if epochs != run.result["epochs"]:
        raise ValueError(
            f"'{path}' times {epochs} epochs of '{run.path}', which has "
            f"{run.result['epochs']}: time the run anew with "
            "tools/benchmarks/replay.py."
        )


def _is_timed(value):
    return isinstance(value, dict) and records.NUMBER.fits(
        value.get("time_ratio")
    )


def _are_timed(value):
    return (
        isinstance(value, list)
        and value
        and all(map(_is_timed, value))
        and all(records.COUNT.fits(row.get("epochs")) for row in value)
    )


def _is_machine(value):
    return isinstance(value, dict) and (
        records.COUNT.fits(value.get("cores"))
        and records.TEXT.fits(value.get("cpu"))
    )


# No other measurement has one of these keys.
_OF_RUNS = {"metrics", "recipe", "val_accuracy"}
_OF_REPLAYS = {"training_time_ratio", "architectures"}
_ANY = records.Record({}, ())
_KINDS_OF_RUNS = {
    **dict.fromkeys(("command", "commit", "date"), records.TEXT),
    **dict.fromkeys(("seed", "epochs"), records.COUNT),
    **dict.fromkeys(
        ("val_accuracy", "forward_flops", "total_training_flops"),
        records.NUMBER,
    ),
    "machine": records.Kind("an object with 'cores' and 'cpu'", _is_machine),
}
_RUN = records.Record(_KINDS_OF_RUNS, (*_KINDS_OF_RUNS, "recipe"))
_REPLAY = records.Record(
    {
        "run": records.TEXT,
        "command": records.TEXT,
        "training_time_ratio": records.NUMBER,
        "architectures": records.Kind(
            "a list of objects with numbers 'time_ratio' and 'epochs'",
            _are_timed,
        ),
        "narrow": records.Kind(
            "an object with a number 'time_ratio'", _is_timed
        ),
    },
    ("run", "training_time_ratio", "architectures"),
)


def _of_narrow(runs, replays):
    """Returns the times of narrow networks that took turns in a replay."""
    times = {}
    for run in runs:
        record = replays.get(run.path.stem, {})
        width = re.search(r"--narrow_width=(\d+)", record.get("command", ""))
        if width and "narrow" in record:
            row = record["narrow"]
            times |= {
                x.path.stem: {
                    "training_time_ratio": row["time_ratio"],
                    "architectures": [row | {"epochs": x.result["epochs"]}],
                }
                for x in runs
                if setting(x.recipe) == setting(run.recipe)
                and _width(x) == int(width[1])
            }
    return times


def _width(run):
    """Returns the width of a run that did not prune; `None` of another."""
    if run.recipe["method"] == "narrow":
        return run.result.get("width")
    return value(run.recipe, "width") if run.is_dense else None


def _checked(run):
    """Returns `run`; raises a `ValueError` if it is not all there."""
    records.checked(run.result, _RUN, run.path)
    if len(run.metrics) != run.result["epochs"]:
        raise ValueError(
            f"'{run.path}' has {len(run.metrics)} of its "
            f"{run.result['epochs']} epochs: the run was not finished."
        )
    for name in ("val_accuracy", "training_flops"):
        if not all(name in row for row in run.metrics):
            raise ValueError(
                f"'{run.path}' has an epoch without '{name}': record the run "
                "anew with tools/record_run.py."
            )
    missing = [
        name
        for name, default in DEFAULTS.items()
        if default is dataclasses.MISSING and name not in run.recipe
    ]
    try:
        if missing:
            raise KeyError(missing[0])
        _title(run.recipe)
        label(run.recipe, False)
        hash(setting(run.recipe))
        shortens(run.recipe, run.recipe)
    except KeyError as error:
        raise ValueError(
            f"The recipe in '{run.path}' has no {error}: record the run anew "
            "with tools/record_run.py."
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"The recipe in '{run.path}' holds what no run writes ({error}): "
            "record the run anew with tools/record_run.py."
        ) from error
    return run


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


def _current(rows):
    """Returns the rows without those that are older than the code."""
    return {k: v for k, v in rows.items() if EXPONENT not in v[0].recipe}


def _short(training, rows, replays):
    """Returns a table of few columns."""
    dense = rows["dense"]
    lines = [
        f"{training}:\n",
        "| | accuracy | seeds | inference FLOPs | training FLOPs "
        "| training time |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, runs in _current(rows).items():
        inference, trained = (
            f"{mean(runs, kind) / mean(dense, kind):.0%}"
            for kind in ("inference", "training")
        )
        time = "100%" if runs is dense else _times(runs, replays)[0]
        cells = [name, _accuracy(runs), str(len(runs))]
        cells += [inference, trained, time]
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
    whole, last = _times(runs, replays)
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
        training,
        whole,
        last,
    ]
    return f"| {' | '.join(cells)} |"


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


def _title(recipe):
    drops = ", ".join(map(str, value(recipe, "learning_rate_drops")))
    optimizer = value(recipe, "optimizer")
    return (
        f"{_training(recipe)}, {optimizer} at "
        f"{recipe['learning_rate']:g}, divided by 10 at {drops}, "
        f"{recipe['dtype_policy']}"
    )


def _trained(rows):
    """Returns what the dense rows of a table train; `None` without any."""
    return _training(rows["dense"][0].recipe) if "dense" in rows else None


def _training(recipe):
    return f"{_name(recipe)}, {recipe['epochs']} epochs"


def _name(recipe):
    size = value(recipe, "image_size")
    pixels = f" of {size}x{size} pixels" if size else ""
    return f"{recipe['network']} on {recipe['dataset']}{pixels}"


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


if __name__ == "__main__":
    main(sys.argv[1:])
