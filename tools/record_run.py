"""Keeps the records of a finished run, as one file under tools/results/.

    python tools/record_run.py runs/resnet20 cifar10_resnet20_ratio25

The file has the keys of the run's `result.json` at the top level, and beside
them `metrics` and `reconfigurations`, the lines of the other two records.
"""

import json
import pathlib
import sys

RESULTS = pathlib.Path(__file__).resolve().parent / "results"


def main(folder, name):
    folder = pathlib.Path(folder)
    if not (folder / "result.json").exists():
        sys.exit(f"No finished run in {folder}: it has no result.json.")
    record = json.loads((folder / "result.json").read_text())
    for key in ("metrics", "reconfigurations"):
        lines = (folder / f"{key}.jsonl").read_text().splitlines()
        record[key] = [json.loads(line) for line in lines]
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"Wrote {path}.")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
