"""The section of docs/results.md on what it takes to reach an accuracy."""

import statistics

import numpy as np
from recorded_recipes import is_plain, mean

# How many points the accuracies lie below that of the dense network.
_POINTS = (5, 3, 2)

_INTRODUCTION = """\
## Until an accuracy is reached

The accuracies are 5, 3 and 2 points below that of the dense network at the end,
the mean over its seeds. A training reaches an accuracy in the first epoch whose
validation accuracy is at least as high. Time and FLOPs are those of all epochs
up to this one, as fractions of the whole dense training, and the mean over the
seeds. "- (1 of 3)" says that one of three seeds reached the accuracy, so there
is no mean. Trainings that start from trained weights are left out.

The time is that of the steps: each epoch counts with the ratio that its
architecture has in the replay of the run, and reconfigurations are left out.
Where some seeds have no replay, the time is the mean over those that have one.
A shorter training of the dense network needs none, because its epochs take as
long as those of the whole training.

The learning rate is divided by 10 at fixed epochs, and most accuracies are
reached within a few epochs after such a drop.
"""


def section(tables, replays):
    """Returns the text of the section, without a table an empty one.

    Args:
        tables: List of pairs: the text above a table, and a dict from the name
            of a row to its `Run`s. One row is `"dense"`.
        replays: Dict from the name of a run to the record of its replay.
    """
    if not tables:
        return ""
    shown = (_table(text, rows, replays) for text, rows in tables)
    return "\n".join([_INTRODUCTION, *shown])


def accuracies(dense):
    """Returns the accuracies of a table in percent, from its dense `Run`s."""
    last = 100 * mean(dense, "accuracy")
    return [round(last - points, 2) for points in _POINTS]


def epochs_until(run, accuracy):
    """Returns how many epochs a run takes to an accuracy; `None` if it fails.

    Args:
        run: A `Run`.
        accuracy: Number, in percent. Both sides are compared as the page shows
            them, to a hundredth of a percent.
    """
    reached = np.round(100 * run.column("val_accuracy"), 2) >= accuracy
    return int(reached.argmax()) + 1 if reached.any() else None


def times(run, dense, replays):
    """Returns the time of each epoch, as a fraction of the dense training.

    Args:
        run: A `Run`.
        dense: List of the dense `Run`s beside it.
        replays: Dict from the name of a run to the record of its replay.

    Returns:
        Array of shape `(epochs,)`; `None` if the run was not timed.
    """
    whole = dense[0].result["epochs"]
    is_narrow = run.result["forward_flops"] < dense[0].result["forward_flops"]
    if is_plain(run) and not is_narrow:
        return np.full(len(run.metrics), 1 / whole)
    if run.path.stem not in replays:
        return None
    rows = replays[run.path.stem]["architectures"]
    ratios = [row["time_ratio"] for row in rows]
    return np.repeat(ratios, [row["epochs"] for row in rows]) / whole


def _table(text, rows, replays):
    dense = rows["dense"]
    levels = accuracies(dense)
    shown = {
        name: runs
        for name, runs in rows.items()
        if not runs[0].recipe.get("initial_run")
    }
    costs = {
        name: {
            "time": [times(run, dense, replays) for run in runs],
            "FLOPs": [_flops(run, dense) for run in runs],
        }
        for name, runs in shown.items()
    }
    # That of the dense network alone would say nothing.
    with_time = any(
        _timed(of_row["time"]) for x, of_row in costs.items() if x != "dense"
    )
    kinds = ["time", "FLOPs"] if with_time else ["FLOPs"]
    titles = [f"{kind} to {x:.2f}%" for x in levels for kind in kinds]
    lines = [
        f"{text}:\n",
        f"| | seeds | {' | '.join(titles)} |",
        f"| --- |{' ---: |' * (1 + len(titles))}",
        *(_row(x, shown[x], costs[x], levels, kinds) for x in shown),
    ]
    return "\n".join([*lines, ""])


def _flops(run, dense):
    return run.training_flops / mean(dense, "training")


def _timed(costs):
    """Returns of how many runs the time is known."""
    return sum(cost is not None for cost in costs)


def _row(name, runs, costs, levels, kinds):
    seeds = str(len(runs))
    if "time" in kinds and 0 < _timed(costs["time"]) < len(runs):
        seeds += f", {_timed(costs['time'])} timed"
    cells = [name, seeds]
    for level in levels:
        ends = [epochs_until(run, level) for run in runs]
        cells += [_share(costs[kind], ends) for kind in kinds]
    return f"| {' | '.join(cells)} |"


def _share(costs, ends):
    """Returns the mean cost of the epochs up to those in `ends`, as a text."""
    known = [x for x in zip(costs, ends, strict=True) if x[0] is not None]
    if not known:
        return "-"
    if None in ends:
        return f"- ({len(ends) - ends.count(None)} of {len(ends)})"
    return f"{statistics.mean(cost[:end].sum() for cost, end in known):.0%}"
