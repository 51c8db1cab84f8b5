"""Reads the records that docs/results.md shows, and checks what they hold."""

import dataclasses
import pathlib
import re
import sys

import run_records
from recorded_recipes import DEFAULTS, setting, shortens, value
from run_labels import label, title

# `apps` is not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from apps import records  # noqa: E402


def read(folder):
    """Returns the runs, and the replays by the names of their runs.

    Records of other measurements lie in the folder as well.

    Args:
        folder: Path of the folder with the records, `*.json`.

    Raises:
        ValueError: If a record lacks something or holds what cannot be shown.
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
        title(run.recipe)
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
