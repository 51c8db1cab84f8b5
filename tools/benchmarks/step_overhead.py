"""Measures what a method adds to a step before anything is removed.

    python tools/benchmarks/step_overhead.py
    python tools/benchmarks/step_overhead.py --method=targetprune

Two models of the same architecture train in turns, dense and with the
callback. The median of the ratios, turn by turn, is the result. It should stay
below 1.05 with the lasso, and below 1.03 while channels are scored and shrink
to a target.
"""

import json
import pathlib
import statistics
import sys

from absl import app, flags
from architectures import SEED, USUAL, first_architecture
from turns import BATCH_SIZE, WARM_UP, in_turns

import keras_prunetrain as kpt
from keras_prunetrain import models

# `apps` is not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from apps import command_line  # noqa: E402
from apps.environment import ROOT, environment  # noqa: E402

_NETWORK = flags.DEFINE_enum(
    "network", "resnet20", sorted(models.__all__), "Network."
)
_METHOD = flags.DEFINE_enum(
    "method", "prunetrain", ["prunetrain", "targetprune"], "Method."
)
_TURNS = flags.DEFINE_integer("turns", 30, "Turns of each model.")
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "File to write the result to. Without it: one of tools/results/.",
)


def main(argv):
    command_line.refuse_words(argv)
    recipe = USUAL | {"network": _NETWORK.value}
    dense, sparsified = in_turns(
        [first_architecture(recipe) for _ in range(2)],
        *(_TURNS.value, SEED, [[], [pruning()]]),
    )
    ratios = [b / a for a, b in zip(dense, sparsified, strict=True)]
    record = environment([SEED]) | {
        "method": _METHOD.value,
        "network": _NETWORK.value,
        "batch_size": BATCH_SIZE,
        "dense_step_seconds": statistics.median(dense),
        "sparsified_step_seconds": statistics.median(sparsified),
        "ratio_median": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4),
        "turns": len(ratios),
    }
    name = {
        "prunetrain": "step_overhead.json",
        "targetprune": "step_overhead_targetprune.json",
    }[_METHOD.value]
    output = pathlib.Path(_OUTPUT.value or ROOT / "tools" / "results" / name)
    output.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def pruning():
    """Returns a callback that acts in every step and cuts nothing."""
    if _METHOD.value == "targetprune":
        # The whole `fit` but its last epoch is one round.
        epochs = WARM_UP + _TURNS.value + 1
        return kpt.TargetPruneCallback(
            flops=0.5, warmup=0, decay=epochs - 1, rounds=1
        )
    return kpt.PruneTrainCallback(interval=10**6)


if __name__ == "__main__":
    app.run(main)
