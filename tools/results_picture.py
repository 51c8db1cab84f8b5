"""The picture of docs/results.md: accuracy against what a training costs."""

import io
import json
import statistics

import matplotlib
from matplotlib.figure import Figure
from recorded_recipes import mean

_COLOURS = {
    "dense": "#555555",
    "narrow": "#d55e00",
    "`TargetPruneCallback": "#0072b2",
    "`EarlyCroPCallback": "#009e73",
    "`PruneTrainCallback": "#cc79a7",
}
_MARKERS = "os^Dv<>ph*XP"


def points(rows, replays):
    """Returns what the picture shows of a table.

    Args:
        rows: Dict from the name of a row to its `Run`s; one is `"dense"`.
        replays: Dict from the name of a run to the record of its replay.

    Returns:
        Dict from the name to three numbers: the training FLOPs beside dense in
        percent, the time of the steps beside dense in percent or `None`, and
        the accuracy in percent, each the mean over the seeds.
    """
    dense = rows["dense"]
    found = {}
    for name, runs in rows.items():
        times = [
            replays[run.path.stem]["training_time_ratio"]
            for run in runs
            if run.path.stem in replays
        ]
        time = statistics.mean(times) if times else None
        found[name] = (
            round(100 * mean(runs, "training") / mean(dense, "training"), 1),
            100.0 if runs is dense else time and round(100 * time, 1),
            round(100 * mean(runs, "accuracy"), 2),
        )
    return found


def picture(tables):
    """Returns the picture as the text of an SVG file.

    Args:
        tables: Dict from what was trained to its `points`.
    """
    figure = Figure((12, 3.6 * len(tables)), layout="constrained")
    places = figure.subplots(len(tables), 2, squeeze=False, sharey="row")
    for (training, shown), (flops, time) in zip(
        tables.items(), places, strict=True
    ):
        for number, (name, (x, seconds, accuracy)) in enumerate(shown.items()):
            style = {
                "color": next(
                    (c for k, c in _COLOURS.items() if name.startswith(k)),
                    "#000000",
                ),
                "marker": _MARKERS[number % len(_MARKERS)],
                "linestyle": "",
                "label": name.replace("`", ""),
            }
            flops.plot(x, accuracy, **style)
            if seconds is not None:
                time.plot(seconds, accuracy, **style)
        flops.set_title(training, fontsize=10, loc="left")
        flops.set_xlabel("training FLOPs, % of dense")
        flops.set_ylabel("accuracy, %")
        time.set_xlabel("time, % of dense, where it was measured")
        handles, labels = flops.get_legend_handles_labels()
        time.legend(
            *(handles, labels),
            loc="upper left",
            bbox_to_anchor=(1, 1),
            fontsize=7,
        )
        for place in (flops, time):
            place.margins(0.08)
            place.grid(alpha=0.3)
    text = io.StringIO()
    # The same numbers make the same file.
    with matplotlib.rc_context({"svg.hashsalt": "", "svg.fonttype": "none"}):
        figure.savefig(
            text,
            format="svg",
            metadata={
                **dict.fromkeys(("Creator", "Date")),
                "Description": described(tables),
            },
        )
    return text.getvalue()


def described(tables):
    """Returns the numbers of the picture as the text that is in its file."""
    return json.dumps(tables)
