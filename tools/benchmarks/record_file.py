"""The file of a measurement."""

import json
import pathlib

RESULTS = pathlib.Path(__file__).resolve().parents[1] / "results"


def write(record, name, output=None):
    """Writes a measurement as JSON, and prints it.

    Args:
        record: Dict that JSON can hold.
        name: Name of the file in tools/results, without `.json`.
        output: Path of another file. Defaults to `None`.
    """
    text = json.dumps(record, indent=2) + "\n"
    pathlib.Path(output or RESULTS / f"{name}.json").write_text(text)
    print(text)
