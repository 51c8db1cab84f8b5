"""Measures what the emulation of pruned data gradients adds to a step.

    python tools/benchmarks/sdgp_step.py
    python tools/benchmarks/sdgp_step.py --sdgp=1:8 --modes=magnitude,mvue

Models of the same architecture train in turns, one dense and one for each mode
of SDGP. The median of the ratios, turn by turn, is the result. The emulation
computes all products with zeros, so a step can only take longer than a dense
one: it should stay below 1.25 times.
"""

import json
import pathlib
import statistics
import sys

from absl import app, flags
from architectures import SEED, USUAL, first_architecture
from turns import BATCH_SIZE, in_turns

import keras_prunetrain as kpt
from keras_prunetrain import models

# `apps` is not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from apps import command_line, sdgp_flags  # noqa: E402
from apps.environment import ROOT, environment  # noqa: E402

_NETWORK = flags.DEFINE_enum(
    "network", "resnet20", sorted(models.__all__), "Network."
)
_SDGP = flags.DEFINE_string("sdgp", "2:4", "n:m.")
flags.register_validator("sdgp", sdgp_flags.is_pattern, "must be n:m.")
_MODES = flags.DEFINE_list(
    "modes", ["rescaled", "magnitude", "mvue", "random"], "Modes."
)
# Of fewer there are no quartiles.
_TURNS = flags.DEFINE_integer("turns", 30, "Turns of each model.", 2)
_OUTPUT = flags.DEFINE_string(
    "output",
    str(ROOT / "tools" / "results" / "sdgp_step.json"),
    "File to write the result to.",
)


def main(argv):
    command_line.refuse_words(argv)
    n, m = map(int, _SDGP.value.split(":"))
    callbacks = [
        [kpt.SDGPCallback(n, m, mode, seed=SEED)] for mode in _MODES.value
    ]
    recipe = USUAL | {"network": _NETWORK.value}
    dense, *sparse = in_turns(
        [first_architecture(recipe) for _ in range(1 + len(callbacks))],
        *(_TURNS.value, SEED, [[], *callbacks]),
    )
    record = environment([SEED]) | {
        "sdgp": _SDGP.value,
        "network": _NETWORK.value,
        "batch_size": BATCH_SIZE,
        "dense_step_seconds": statistics.median(dense),
        "turns": len(dense),
        "emulation": {
            mode: ratios_of(seconds, dense)
            for mode, seconds in zip(_MODES.value, sparse, strict=True)
        },
    }
    text = json.dumps(record, indent=2)
    pathlib.Path(_OUTPUT.value).write_text(text + "\n")
    print(text)


def ratios_of(seconds, dense):
    """Returns what the steps of a mode took, in relation to dense steps."""
    ratios = [b / a for a, b in zip(dense, seconds, strict=True)]
    return {
        "ratio_median": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4),
    }


if __name__ == "__main__":
    app.run(main)
