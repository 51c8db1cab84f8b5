"""Reconfigures every model of `keras.applications` and checks the result.

    python tools/coverage.py                     # all, into docs/coverage.md
    python tools/coverage.py MobileNetV2 VGG16   # these, to the terminal
    python tools/coverage.py --only time         # the times again, alone

Each model gets random weights that carry a signal: kernels of unit gain, batch
statistics of a forward pass, all of it shaken, logits instead of a softmax.
Then a random half of its removable channels is made dead on both sides, and in
float64 the smaller model must be the same function as the one with the zeros:
outputs, gradients, the next step of SGD with momentum, and a `.keras` file of
it that is loaded again. That the comparison can fail is a column: how far the
output moves when a single living channel is cut as well (the most of five: some
lie behind a ReLU that none of the images opens).
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

from apps.environment import environment  # noqa: E402

TASKS = {"check": check, "time": measure}


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


def main(tasks, chosen):
    results = ROOT / "tools" / "results" / "coverage.json"
    rows = {name: {"model": name} for name in chosen or names()}
    record = {"tolerance": TOLERANCE}
    if not chosen and results.exists():
        record = json.loads(results.read_text())
        for row in record["models"]:  # What is not run now stays as it was.
            rows[row["model"]] = row
    for name, row in rows.items():
        if "check" in tasks:  # Nothing of an older check stays.
            for key in row.keys() - {"model", "seconds"}:
                del row[key]
        for task in tasks:
            if task == "check" and name in TOO_LARGE and not chosen:
                row["error"] = TOO_LARGE[name]
            else:
                row.update(in_a_process(task, name))
        print(table([row]).splitlines()[-1], flush=True)
        if chosen:
            continue
        record |= {task: environment([SEED]) for task in tasks}
        record["models"] = list(rows.values())
        results.write_text(json.dumps(record, indent=1) + "\n")
        page = ROOT / "docs" / "coverage.md"
        page.write_text(page_of(rows.values(), page.read_text()))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--only", task, *chosen]:
            main([task], chosen)
        case [task, name] if task in TASKS:
            print(json.dumps(TASKS[task](name)))
        case chosen:
            main(list(TASKS), chosen)
