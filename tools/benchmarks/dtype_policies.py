"""Measures the step of a network in each dtype policy of Keras.

    python tools/benchmarks/dtype_policies.py

ResNet-20 on images of 16x16 pixels trains in turns in float32, mixed_bfloat16
and mixed_float16. The median of the ratios to float32, turn by turn, is the
result. A processor that has no instructions for numbers of 16 bits emulates
them, and its steps take many times as long.
"""

import statistics
import sys

import keras
import record_file
from absl import flags
from architectures import SEED, USUAL, first_architecture
from turns import BATCH_SIZE, in_turns

# `apps` is not part of the installed package.
sys.path.insert(0, str(record_file.RESULTS.parents[1]))

from apps import command_line  # noqa: E402
from apps.environment import environment  # noqa: E402

NETWORK, IMAGE_SIZE = "resnet20", 16
POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")

# Their own, so that a test can import several benchmarks.
_FLAGS = flags.FlagValues()
_TURNS = flags.DEFINE_integer(
    "turns", 5, "Turns of each policy.", 1, flag_values=_FLAGS
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Default: tools/results/.", _FLAGS
)


def main(argv):
    command_line.refuse_words(_FLAGS(argv))
    times = dict(
        zip(
            POLICIES,
            in_turns([network(x) for x in POLICIES], _TURNS.value, SEED),
            strict=True,
        )
    )
    record = environment([SEED]) | {
        "network": NETWORK,
        "image_size": IMAGE_SIZE,
        "batch_size": BATCH_SIZE,
        "turns": _TURNS.value,
        "policies": {
            policy: {
                "step_seconds": statistics.median(seconds),
                "time_ratio": ratio(seconds, times["float32"]),
            }
            for policy, seconds in times.items()
        },
    }
    record_file.write(record, "dtype_policies", _OUTPUT.value)


def network(policy):
    """Returns a compiled network that computes in `policy`."""
    keras.config.set_dtype_policy(policy)
    try:
        return first_architecture(
            USUAL | {"network": NETWORK, "image_size": IMAGE_SIZE}
        )
    finally:
        keras.config.set_dtype_policy("float32")


def ratio(seconds, others):
    """Returns the median of the ratios of two lists of times, turn by turn."""
    return statistics.median(
        a / b for a, b in zip(seconds, others, strict=True)
    )


if __name__ == "__main__":
    command_line.run(main, _FLAGS)
