"""The section of docs/results.md on other packages, from their records."""

import json
import re

_INTRODUCTION = """\
## Other packages

The same network, images, augmentation, batch size, weight decay and number of
epochs in all, from scratch, each package by its own recipe; the program of the
command says which. So few epochs are short for a recipe that prunes a trained
network. FLOPs are fractions of those of dense training. The rows of this
package with the same network, images and number of epochs are in the tables
below.
"""
_COLUMNS = ("accuracy", "seed", "inference FLOPs", "training FLOPs", "command")
# What a record of `tools/benchmarks/peer_*.py` must have.
_NEEDED = (
    *("recipe", "dataset", "network", "image_size", "epochs", "seed"),
    *("val_accuracy", "dense_forward_flops", "forward_flops", "by_epoch"),
    *("dense_training_flops", "total_training_flops", "command"),
)


def section(folder):
    """Returns the text of the section, without a record an empty one.

    Args:
        folder: Path of the folder with the records, `*.json`.

    Raises:
        ValueError: If a record of another package is not complete.
    """
    rows = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        if "peer" in record:
            rows.append(_shown(_checked(record, path), path))
    if not rows:
        return ""
    lines = [
        _INTRODUCTION,
        f"| | {' | '.join(_COLUMNS)} |",
        f"| --- |{' ---: |' * 4} --- |",
        *rows,
        "",
    ]
    return "\n".join(lines)


def _checked(record, path):
    missing = [name for name in _NEEDED if name not in record]
    if missing:
        raise ValueError(
            f"'{path}' has no {', '.join(missing)}: measure it anew with the "
            "program in tools/benchmarks that wrote it."
        )
    if not isinstance(record["by_epoch"], list):
        raise ValueError(f"'{path}': 'by_epoch' is no list of epochs.")
    if len(record["by_epoch"]) != record["epochs"]:
        raise ValueError(
            f"'{path}' has {len(record['by_epoch'])} of its "
            f"{record['epochs']} epochs: the run was not finished."
        )
    return record


def _shown(record, path):
    try:
        return _row(record)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(
            f"'{path}' holds what cannot be shown: {error}."
        ) from error


def _row(record):
    size = record["image_size"]
    images = f"{record['dataset']} of {size}x{size} pixels"
    inference, training = (
        record[part] / record[whole]
        for part, whole in (
            ("forward_flops", "dense_forward_flops"),
            ("total_training_flops", "dense_training_flops"),
        )
    )
    name = (
        f"{record['peer']}, {record['recipe']}: {record['network']} on "
        f"{images}, {record['epochs']} epochs"
    )
    command = re.sub(r" --output=\S+", "", record["command"])
    cells = [
        *(name, f"{record['val_accuracy']:.2%}", str(record["seed"])),
        *(f"{inference:.1%}", f"{training:.1%}", f"`{command}`"),
    ]
    return f"| {' | '.join(cells)} |"
