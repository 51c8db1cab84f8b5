"""Writes docs/results.md, and the README's excerpt, from tools/results/*.json.

A summary, what it takes to reach an accuracy, the numbers of tools/papers.json
beside ours, and all trainings.
Trainings of one network with one recipe stand in one table. Runs that differ in
nothing but the seed are one row, the mean over the seeds.

    python tools/results_page.py
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Neither `apps` nor `tools` is part of the installed package.
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import papers_section  # noqa: E402
import peers_section  # noqa: E402
import results_picture  # noqa: E402
import time_to_accuracy  # noqa: E402
from results_tables import (  # noqa: E402
    current,
    read_tables,
    short,
    trained,
    whole,
)

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
    "resnet20 of width 32 on cifar10 of 16x16 pixels, 20 epochs": (
        "dense",
        "dense, 11 epochs",
        "narrow, 50% of the FLOPs",
        "`TargetPruneCallback(training_flops=0.5)`",
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
sum over all epochs. Pruned data gradients (`SDGPCallback`) are an emulation,
which computes all products and takes longer than dense training; what hardware
for n:m sparsity would compute stands in brackets. The training time is that of
all steps, beside the steps of the dense network, timed in turns on an idle CPU
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
    tables, replays = read_tables(folder)
    lines = []
    for training, names in _EXCERPT.items():
        rows = next((x for x in tables if trained(x) == training), {})
        missing = [name for name in names if name not in rows]
        if missing:
            raise ValueError(
                f"'{folder}' has no record of the README's {missing[0]}, "
                f"{training}."
            )
        lines.append(short(training, {x: rows[x] for x in names}, replays))
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
    tables, replays = read_tables(folder)
    return {
        trained(rows): results_picture.points(current(rows), replays)
        for rows in tables
        if trained(rows) in _EXCERPT
    }


def page(folder):
    """Returns the text of the page.

    Args:
        folder: Path of the folder with the records, `*.json`.

    Raises:
        ValueError: If a record lacks something or holds what cannot be shown,
            if two records are of one training, or if there is none.
    """
    tables, replays = read_tables(folder)
    runs = [run for rows in tables for found in rows.values() for run in found]
    papers, made, of_all = papers_section.section(runs, replays, folder)
    beside_dense = [
        (trained(rows), current(rows)) for rows in tables if "dense" in rows
    ]
    summary = [short(*table, replays) for table in beside_dense]
    summary.append(
        f'The section "Beside the papers" has {of_all} rows with a command. '
        f"{made} of them have been run.\n"
    )
    parts = [
        *(_INTRODUCTION, *summary),
        *(time_to_accuracy.section(beside_dense, replays), papers),
        *(peers_section.section(folder), _TRAININGS),
        *(whole(rows, replays) for rows in tables),
    ]
    return "\n".join(filter(None, parts))


if __name__ == "__main__":
    main(sys.argv[1:])
