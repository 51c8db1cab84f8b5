"""Keeps the records of a finished run, as one file under tools/results/.

    python tools/record_run.py runs/resnet20 cifar10_resnet20_ratio25

The file has the keys of the run's `result.json` at the top level, and beside
them `metrics` and `reconfigurations`, the lines of the other two records.
"""

import json
import pathlib
import re
import sys

import run_records

# `apps` is not part of the installed package; `run_records` has found it.
from apps import records

RESULTS = pathlib.Path(__file__).resolve().parent / "results"


def main(words, results=RESULTS):
    """Keeps a run; exits if it is none, or if its name is another file's.

    Args:
        words: List of strings: the folder of the run, and a name.
        results: Path of the folder to keep it in.
    """
    if len(words) != 2:
        sys.exit(f"{__doc__}\nExpected: the folder of a run, and a name.")
    folder, name = words
    path = results / f"{name}.json"
    if not re.fullmatch(r"\w[\w.-]*", name):
        sys.exit(f"'{name}' is no name of a file, such as resnet20_ratio25.")
    if path.exists() and not run_records.is_kept(path):
        sys.exit(f"{path} is no run that was kept. Choose another name.")
    try:
        record = _record(pathlib.Path(folder))
        _write(path, json.dumps(record, indent=1) + "\n")
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    print(f"Wrote {path}.")


def _write(path, text):
    """Writes a file that is whole, or leaves the old one."""
    scratch = path.with_suffix(".new")
    try:
        scratch.write_text(text)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _record(folder):
    record = records.result(folder)
    run = run_records.read(folder)
    faults = [remark for remark in run.remarks if "breaks off" in remark]
    if not (folder / "reconfigurations.jsonl").exists():
        faults.append("it has no reconfigurations.jsonl")
    if faults:
        raise ValueError(f"The run in {folder} is not whole: {faults[0]}.")
    return record | {
        "metrics": run.metrics,
        "reconfigurations": run.reconfigurations,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
