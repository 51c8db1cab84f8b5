"""Reconfigures every model of `keras.applications` and checks the result.

    python tools/coverage.py                     # all, into docs/coverage.md
    python tools/coverage.py MobileNetV2 VGG16   # these, to the terminal
    python tools/coverage.py --only time         # the times again, alone
    python tools/coverage.py --only nested       # as backbones, alone
    python tools/coverage.py --only nested --missing  # those without a result

Each model gets random weights that carry a signal: kernels of unit gain, batch
statistics of a forward pass, all of it shaken, logits instead of a softmax.
Then a random half of its removable channels is made dead on both sides, and in
float64 the smaller model must be the same function as the one with the zeros:
outputs, gradients, the next step of SGD with momentum, and a `.keras` file of
it that is loaded again. That the comparison can fail is a column: how far the
output moves when a single living channel is cut as well (the most of five: some
lie behind a ReLU that none of the images opens). The same is checked of each
model as a nested backbone that takes images of any size.
"""

import json
import os
import pathlib
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Neither `apps` and `tests` nor `tools` are part of the installed package.
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from application_check import check, measure  # noqa: E402
from applications import TOO_LARGE, names  # noqa: E402
from coverage_page import page_of, table  # noqa: E402
from masked_trial import SEED, TOLERANCE  # noqa: E402
from nested_check import nested  # noqa: E402

from apps.environment import environment  # noqa: E402

TASKS = {"check": check, "time": measure, "nested": nested}


def in_a_process(task, name):
    """Returns what `task` finds out about a model, a dict.

    In a process of its own: memory, and the names of layers, start afresh.
    """
    process = subprocess.run(
        [sys.executable, __file__, task, name],
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        error = process.stderr.strip().splitlines()
        key = "error" if task == "check" else f"{task}_error"
        return {key: error[-1] if error else f"rc {process.returncode}"}
    return json.loads(process.stdout.splitlines()[-1])


def renew(row, tasks, leave_out):
    """Puts what the `tasks` find out into a row; nothing older of them stays.

    Args:
        row: Dict of what is known of a model.
        tasks: List of names in `TASKS`.
        leave_out: Dict from the names of models to why they are timed only.
    """
    of_other_tasks = {"seconds": "time", "time_error": "time"}
    of_other_tasks |= {"nested": "nested", "nested_error": "nested"}
    for key in row.keys() - {"model"}:
        if of_other_tasks.get(key, "check") in tasks:
            del row[key]
    name = row["model"]
    for task in tasks:
        if task != "time" and name in leave_out:
            row["error"] = leave_out[name]
        else:
            row.update(in_a_process(task, name))


def main(tasks, chosen, only_missing=False):
    results = ROOT / "tools" / "results" / "coverage.json"
    rows = {name: {"model": name} for name in chosen or names()}
    record = {"tolerance": TOLERANCE}
    if not chosen and results.exists():
        record = json.loads(results.read_text())
        for row in record["models"]:  # What is not run now stays as it was.
            rows[row["model"]] = row
    where = {task: environment([SEED]) for task in tasks}
    # Small models first: what ends early has most of them.
    for row in sorted(rows.values(), key=lambda row: row.get("parameters", 0)):
        if only_missing and "nested" in row:
            continue
        renew(row, tasks, leave_out={} if chosen else TOO_LARGE)
        print(table([row]).splitlines()[-1], flush=True)
        if chosen:
            continue
        record |= where
        record["models"] = list(rows.values())
        results.write_text(json.dumps(record, indent=1) + "\n")
        page = ROOT / "docs" / "coverage.md"
        page.write_text(page_of(rows.values(), page.read_text()))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--only", "nested", "--missing"]:
            main(["nested"], [], only_missing=True)
        case ["--only", task, *chosen]:
            main([task], chosen)
        case [task, name] if task in TASKS:
            print(json.dumps(TASKS[task](name)))
        case chosen:
            main(list(TASKS), chosen)
