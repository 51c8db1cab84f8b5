"""Runs as the training programs write them, without the training."""

import json
import pathlib
import sys

import numpy as np

# What `python tools/report.py` has on its path.
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tools"))

EPOCHS = 4
# Layer -> channels -> the first epoch without it.
GONE = {"a": {1: 2, 3: 2}, "b": {0: 3}, "c": {}}
WIDTHS = {"a": 4, "b": 3, "c": 2}
DISTANCES = [0.5, 0.75, float("nan"), float("nan")]  # Pruned after two.
COST = {"training_flops": 3e6}


def write_run(folder, method="prunetrain", finished=True):
    """Writes the records of a run of four epochs, as the apps would."""
    folder.mkdir(parents=True)
    shrinks = method not in ("dense", "narrow")
    rows = [
        {
            "epoch": epoch,
            "val_accuracy": 0.5 + 0.1 * epoch,
            "seconds": 60.0 / (1 + shrinks * epoch),
            "training_flops": 1e12 / (1 + shrinks * epoch),
            "batch_size": 128 * (1 + shrinks * (epoch > 1)),
            "learning_rate": 0.1 / (1 + epoch),
            "parameters": 1000 - 100 * shrinks * epoch,
            "density": 1.0 - 0.1 * shrinks * epoch,
            "memory_bytes": 2e6,
            "gradient_bytes": 4000 - 400 * shrinks * epoch,
            "updates": 10,
        }
        for epoch in range(EPOCHS)
    ]
    if method == "earlycrop":
        for row, distance in zip(rows, DISTANCES, strict=True):
            row["weight_distance"] = distance
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines)
    arrays = {}
    for layer, width in WIDTHS.items():
        arrays[layer] = np.full((EPOCHS, width), 0.1, "float32")
        for channel, epoch in GONE[layer].items() if shrinks else ():
            arrays[layer][epoch:, channel] = np.nan
    np.savez(folder / "channels.npz", **arrays)
    reports = [
        {
            "epoch": 1,
            "channels_before": WIDTHS,
            "channels_after": WIDTHS | {"a": 2},
            "cost_before": COST,
            "cost_after": {"training_flops": 2e6},
            "batch_size": 128,
            "batch_size_after": 256,
            "learning_rate": 0.05,
            "seconds": 1.5,
            "first_step_seconds": 2.0,
            "removed_layers": ["<block>"],
        }
    ]
    (folder / "reconfigurations.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in reports[:shrinks])
    )
    recipe = {"method": method, "threshold": 1e-3}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    if finished:
        result = {
            "method": method,
            "val_accuracy": 0.8 - 0.01 * shrinks,
            "parameters": 1000 - 300 * shrinks,
            "forward_flops": 1e6,
            "total_training_flops": 4e12 / (1 + shrinks),
            "seconds": 240.0,
            "reconfiguration_seconds": 3.5 * shrinks,
            "reconfigurations": int(shrinks),
            "recipe": recipe,
        }
        if method == "earlycrop":
            result["pruned_after_epochs"] = 2
        (folder / "result.json").write_text(json.dumps(result))
    return folder
