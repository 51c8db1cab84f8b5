"""The numbers of the papers (tools/papers.json) beside what was recorded here.

A row of trainings names the command that makes them: the runs of that recipe
are found among the records. A row of a figure names the records that its number
is computed from.
"""

import json
import pathlib
import statistics

from recorded_recipes import dense_of, made_by, mean

PAPERS = pathlib.Path(__file__).parent / "papers.json"
NOT_RUN = "not run"

_INTRODUCTION = """\
## Beside the papers

The papers' numbers are those of `tools/papers.json`. Accuracy and FLOPs are
relative to the dense training of the same recipe; a dense row has the accuracy
itself. Where the paper has no number, there is a dash, or no column. The
commands below a table make its rows; a row that says "not run" has no record
yet. `tools/record_run.py` makes a record of a run, and `make results` writes
its numbers here.
"""


def section(runs, replays, folder):
    """Returns the text, and how many rows have a number, of how many.

    Args:
        runs: List of the recorded `Run`s.
        replays: Dict from the name of a run to the record of its replay.
        folder: Path of the records.

    Raises:
        ValueError: If a command would be refused, or if a record is missing.
    """
    lines, made, of_all = [_INTRODUCTION], 0, 0
    for paper in json.loads(PAPERS.read_text())["papers"]:
        for table in paper["tables"]:
            where = f", {table['where']}" * bool(table["where"])
            source = f"[{paper['by']}]({paper['url']}){where}."
            lines.append(f"### {paper['title']}. {table['title']}\n")
            lines.append(f"{source} {table['note']}".strip() + "\n")
            if "rows" in table:
                text, cells = _trainings(table, runs, replays)
            else:
                text, cells = _figures(table, folder)
            lines.append(text)
            of_all += len(cells)
            made += sum(cell != NOT_RUN for cell in cells)
    return "\n".join(lines), made, of_all


def _trainings(table, runs, replays):
    """Returns the text of a table, and what its rows with a command say."""
    metrics = table["metrics"]
    rows = [_trained(row, metrics, runs, replays) for row in table["rows"]]
    head = ["", *(f"paper: {x}" for x in metrics)]
    if all({*row["paper"]} == {"-"} for row in table["rows"]):
        head = [""]
        rows = [([cells[0], cells[-1]], *others) for cells, *others in rows]
    text = _table(
        [*head, f"here: {', '.join(metrics)}"], [cells for cells, *_ in rows]
    )
    found = {run.name: run for *_, found in rows for run in found}
    if found:
        text += f"\nRecords: {', '.join(map(_record, found.values()))}.\n"
    commands = [row["command"] for row in table["rows"]]
    said = [cells[-1] for cells, command, _ in rows if command]
    return f"{text}\n{_commands(commands)}", said


def _record(run):
    machine = run.result["machine"]
    cores = f"{machine['cores']} core{'s' * (machine['cores'] > 1)}"
    date = run.result["date"][:10]
    return f"`{run.name}` ({date}, {cores}, {machine['cpu']})"


def _figures(table, folder):
    """Returns the text of a table, and what its rows with a record say."""
    cells = [
        [row["what"], row["paper"], _computed(row, folder)]
        for row in table["claims"]
    ]
    commands = [row["command"] for row in table["claims"]]
    said = [
        ours
        for (*_, ours), row in zip(cells, table["claims"], strict=True)
        if row["here"]
    ]
    text = _table(["", "paper", "here"], cells)
    return f"{text}\n{_commands(commands)}", said


def _table(head, rows):
    marks = ["---"] * len(head)
    return (
        "\n".join(f"| {' | '.join(x)} |" for x in (head, marks, *rows)) + "\n"
    )


def _commands(commands):
    known = dict.fromkeys(x for x in commands if x)
    return "\n".join(["```", *known, "```", ""])


def _trained(row, metrics, runs, replays):
    """Returns the cells of a row, its command, and the runs that it makes."""
    command = row["command"]
    ours, found = "-", []
    if command:
        found, recipe = made_by(command, runs)
        dense = dense_of(recipe, runs)
        ours = NOT_RUN
        if found:
            cells = [_METRICS[name](found, dense, replays) for name in metrics]
            ours = f"{', '.join(cells)} ({_seeds(found)})"
    return [row["what"], *row["paper"], ours], command, found


def _seeds(runs):
    seeds = sorted(run.result["seed"] for run in runs)
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _accuracy(runs, dense, replays):
    accuracies = [100 * run.result["val_accuracy"] for run in runs]
    spread = ""
    if len(runs) > 1:
        spread = f" ± {statistics.stdev(accuracies):.2f}"
    if dense and {x.path for x in dense} != {x.path for x in runs}:
        beside = statistics.mean(accuracies) - 100 * mean(dense, "accuracy")
        return f"{beside:+.2f}{spread} points"
    return f"{statistics.mean(accuracies):.2f}%{spread}"


def _fraction(kind):
    def cell(runs, dense, replays):
        return f"{mean(runs, kind) / mean(dense, kind):.0%}" if dense else "-"

    return cell


def _time(runs, dense, replays):
    if {x.path for x in dense} == {x.path for x in runs}:
        return "100%"
    timed = [
        replays[run.path.stem]["training_time_ratio"]
        for run in runs
        if run.path.stem in replays
    ]
    return f"{statistics.mean(timed):.0%}" if timed else "-"


def _removed(runs, dense, replays):
    counts = [
        sum(len(report["removed_layers"]) for report in run.reconfigurations)
        for run in runs
    ]
    return f"{statistics.mean(counts):g}"


_METRICS = {
    "accuracy": _accuracy,
    "training FLOPs": _fraction("training"),
    "inference FLOPs": _fraction("inference"),
    "time": _time,
    "removed layers": _removed,
}


def _computed(row, folder):
    """Returns what the records say of a row."""
    ours = NOT_RUN
    here = row["here"]
    if here:
        paths = [folder / f"{name}.json" for name in here["records"]]
        missing = [x for x in paths if not x.exists()]
        if missing and not here.get("optional"):
            raise ValueError(
                f"'{missing[0]}' is missing, from which '{row['what']}' is "
                f"computed. Make it again: {row['command']}"
            )
        if not missing:
            found = [text for path in paths for text in _found(here, path)]
            names = ", ".join(f"`{name}`" for name in here["records"])
            ours = f"{'; '.join(found)} ({names})"
    return ours


def _found(here, path):
    """Returns the texts that are computed from one record, a list."""
    try:
        return list(_COMPUTED[here["of"]](_read(path)))
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(
            f"'{path}' does not hold that from which '{here['of']}' is "
            f"computed: {type(error).__name__}, {error}."
        ) from error


def _read(path):
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"'{path}' is no record: {error}.") from error


def _early_share(record):
    flops = [row["training_flops"] for row in record["metrics"]]
    half = flops[len(flops) // 2]
    yield f"{(flops[0] - half) / (flops[0] - flops[-1]):.0%}"


def _one_time(record):
    flops = [row["training_flops"] for row in record["metrics"]]
    # Dense until an epoch, then what PruneTrain had arrived at by then.
    once = min(
        epoch * flops[0] + (len(flops) - epoch) * flops[epoch]
        for epoch in range(1, len(flops))
    )
    yield f"{once / sum(flops) - 1:+.0%}"


def _normalization(record):
    reports = record["reconfigurations"]
    begins = [0, *(report["epoch"] + 1 for report in reports)]
    ends = [*begins[1:], record["epochs"]]
    costs = [reports[0]["cost_before"], *(x["cost_after"] for x in reports)]
    moved = sum(
        (end - begin) * cost["normalization_bytes"]
        for begin, end, cost in zip(begins, ends, costs, strict=True)
    )
    dense = record["epochs"] * costs[0]["normalization_bytes"]
    yield f"{1 - moved / dense:.0%}"


def _batches(record):
    sizes = [row["batch_size"] for row in record["metrics"]]
    grown = [
        f"{after} after {epoch}"
        for epoch, (before, after) in enumerate(
            zip(sizes, sizes[1:], strict=False), start=1
        )
        if after != before
    ]
    yield f"{sizes[0]}, then {', '.join(grown)}"


def _bytes_saved(record):
    for run in record["runs"]:
        saved = {k: 1 - v for k, v in run["ratio_to_dense"].items()}
        yield (
            f"`{run['run']}`: {saved['fixed']:.0%}, growing by 32 "
            f"{saved['granularity 32']:.0%}, by 8 {saved['granularity 8']:.0%}"
        )


def _emulated_step(record):
    ratios = record["emulation"].items()
    times = (f"{mode} {x['ratio_median']:.2f}" for mode, x in ratios)
    yield f"in emulation on a CPU, times dense: {', '.join(times)}"


def _revived(record):
    found = record["channels"]
    height = f", up to {found['highest']:.1e}" if found["rose"] else ""
    yield f"{found['rose']} of {found['fell']} that fell below it{height}"


def _near_zero(record):
    yield f"{record['weights']['share']:.0%}"


def _inference(record):
    for row in record["batches"]:
        yield (
            f"{row['speedup_median']:.2f} times in batches of "
            f"{row['batch_size']}"
        )


def _union(record):
    more = record["union_flops_ratio"] - record["gated_flops_ratio"]
    yield f"{more:.1%}"


def _gating_time(record):
    yield f"{record['step_time_ratio_median']:.2f} times"


_COMPUTED = {
    "early_share": _early_share,
    "one_time": _one_time,
    "normalization": _normalization,
    "batches": _batches,
    "bytes_saved": _bytes_saved,
    "emulated_step": _emulated_step,
    "inference": _inference,
    "revived": _revived,
    "near_zero": _near_zero,
    "union": _union,
    "gating_time": _gating_time,
}
