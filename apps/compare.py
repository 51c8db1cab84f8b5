"""Prints finished runs side by side, each number with its ratio to the first.

python apps/compare.py runs/quickstart/dense runs/quickstart/targetprune \
    runs/quickstart/narrow
"""

import pathlib
import sys

# For `python apps/compare.py`.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from apps import records  # noqa: E402

_ROWS = [  # Key in result.json, title, format, divisor.
    ("val_accuracy", "validation accuracy", "{:.2%}", 1),
    ("parameters", "parameters", "{:,.0f}", 1),
    ("forward_flops", "inference MFLOP per image", "{:,.2f}", 1e6),
    ("total_training_flops", "training TFLOP", "{:,.3f}", 1e12),
    ("total_emulated_flops", "  left out by n:m hardware", "{:,.3f}", 1e12),
    ("seconds", "training seconds", "{:,.1f}", 1),
    ("reconfiguration_seconds", "  of them reconfiguring", "{:,.1f}", 1),
    ("pruned_after_epochs", "pruned after epochs", "{:,.0f}", 1),
]
# Of some methods only: others have no row of it, and it is compared with none.
_OF_SOME = {"pruned_after_epochs", "total_emulated_flops"}


def rows(results, reference):
    """Returns a row of each figure: its title, and a cell for each run.

    Args:
        results: List of the contents of `result.json` files, dicts; a cell is
            "-" where one of them has no such figure.
        reference: The one that the others are related to; `None` for none.
    """
    reference = reference or {}
    table = []
    for key, title, form, unit in _ROWS:
        if key in _OF_SOME and not any(result.get(key) for result in results):
            continue
        cells = [title]
        for result in results:
            if result.get(key) is None:
                cells.append("-")
                continue
            cell = form.format(result[key] / unit)
            is_related = key in reference and key not in _OF_SOME
            if is_related and result is not reference:
                cell += f"  ({_relation(key, result, reference)})"
            cells.append(cell)
        table.append(cells)
    return table


def table(results):
    """Returns a text table of runs; the first is what the others relate to.

    Args:
        results: List of the contents of `result.json` files, dicts.
    """
    methods = [result["method"] for result in results]
    lines = [["", *methods], *rows(results, results[0])]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _relation(key, result, reference):
    if key == "val_accuracy":
        points = 100 * (result[key] - reference[key])
        return f"{points:+.2f} points"
    return f"{result[key] / reference[key]:.0%}" if reference[key] else "-"


def main(folders):
    """Prints the table of the runs in `folders`; exits if one is not there.

    Args:
        folders: Paths of run directories, strings.
    """
    if not folders:
        sys.exit(f"{__doc__}\nExpected: one or more run directories.")
    try:
        results = [records.result(folder) for folder in folders]
    except records.RecordError as error:
        sys.exit(str(error))
    print(table(results))


if __name__ == "__main__":
    main(sys.argv[1:])
