"""Measures which channel counts a device computes fast.

    python tools/benchmarks/channel_counts.py
    python tools/benchmarks/channel_counts.py --policies=float32

Blocks of a 3x3 convolution, batch normalization and ReLU, as many channels in
as out, take a training step in short turns, one after the other: 128 images of
32x32, 16x16 and 8x8 pixels, float32 and bfloat16, 4 to 64 channels in steps of
4 and up to 256 in steps of 8. The program prints, for each count,

* the seconds per FLOP, relative to those of the multiples of 16 next to it,
  between which they are interpolated: 1.2 means 20% of the time lost;
* the seconds, relative to those of the next multiple of 16: 1.0 means that the
  channels between the two cost nothing.

A CPU without AVX-512 emulates bfloat16, many times as slowly as it computes
float32: leave bfloat16 out there. `reconfigure(channel_multiple="auto")`
chooses by such numbers. A large block on large images takes seconds for a step;
those above `--most_gflop` are left out.
"""

import collections
import json
import os
import pathlib
import statistics
import sys
import time
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from absl import app, flags  # noqa: E402

import keras_prunetrain as kpt  # noqa: E402

# `apps` is not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from apps import command_line  # noqa: E402
from apps.environment import ROOT, environment  # noqa: E402

SEED = 0
BATCH_SIZE = 128
SIZES = (32, 16, 8)  # Pixels of a side.
POLICIES = ("float32", "mixed_bfloat16")
WIDTHS = (*range(4, 64, 4), *range(64, 257, 8))
# A turn of a block is so much work, but 1 to 10 steps.
FLOPS_OF_TURN = 2e9
LEAST_TURNS = 3
# Of channels: the limits between which "auto" has one multiple on a CPU.
RANGES = ((4, 48), (48, 128), (128, 257))


class Place(NamedTuple):
    """What is the same for all blocks that are compared with each other.

    Attributes:
        policy: Name of a dtype policy of Keras.
        size: Pixels of a side of the images.
    """

    policy: str
    size: int


class Block:
    """A convolution, batch normalization and ReLU that take training steps.

    Args:
        place: A `Place`.
        width: Integer. Channels that the block reads and writes.
    """

    def __init__(self, place, width):
        self.place = place
        self.width = width
        self._layers = [
            keras.layers.Conv2D(
                width, 3, padding="same", use_bias=False, dtype=place.policy
            ),
            keras.layers.BatchNormalization(dtype=place.policy),
            keras.layers.ReLU(dtype=place.policy),
        ]
        shape = (place.size, place.size, width)
        model = keras.Sequential([keras.Input(shape), *self._layers])
        self.flops = BATCH_SIZE * kpt.model_cost(model).training_flops
        self._variables = model.trainable_variables
        self._optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
        self._optimizer.build(self._variables)
        self._step = tf.function(self._trained)
        steps = round(FLOPS_OF_TURN / self.flops)
        self._steps = min(max(steps, 1), 10)

    def _trained(self, images, gradient):
        """Takes a step, for a given gradient of the outputs."""
        weights = [variable.value for variable in self._variables]
        with tf.GradientTape() as tape:
            tape.watch(images)
            x = images
            for layer in self._layers:
                x = layer(x, training=True)
        # The images stand for the outputs of a layer below.
        of_images, *others = tape.gradient(
            x, [images, *weights], output_gradients=gradient
        )
        self._optimizer.apply(others, self._variables)
        # Else TensorFlow would not compute the gradient of the images.
        return tf.reduce_max(of_images)

    def seconds(self, values):
        """Returns the seconds of a step, their mean over a turn.

        Args:
            values: Tensor `(batch, size, size, channels)` of at least `width`
                channels: the images, and the gradient of the outputs.
        """
        images = values[..., : self.width]
        started = time.perf_counter()
        for _ in range(self._steps):
            # A device that computes behind Python's back is waited for.
            self._step(images, images).numpy()
        return (time.perf_counter() - started) / self._steps


def define(values):
    """Defines the flags of this program in `values`."""
    flags.DEFINE_multi_enum(
        *("policies", POLICIES, POLICIES, "What the layers compute in."),
        flag_values=values,
    )
    flags.DEFINE_integer(
        *("seconds", 200, "No further turn is begun that would end later."),
        flag_values=values,
    )
    flags.DEFINE_float(
        *("most_gflop", 40, "Of a training step. Larger blocks are left out."),
        lower_bound=2,  # 16 channels take less, even on the largest images.
        flag_values=values,
    )
    flags.DEFINE_string(
        "output",
        str(ROOT / "tools" / "results" / "channel_counts.json"),
        "File to write the result to.",
        flag_values=values,
    )


def main(argv, values=flags.FLAGS):
    command_line.refuse_words(argv)
    started = time.perf_counter()
    keras.utils.set_random_seed(SEED)
    blocks = [
        Block(Place(policy, size), width)
        for policy in values.policies
        for size in SIZES
        for width in WIDTHS
        if flops(size, width) <= 1e9 * values.most_gflop
    ]
    turns = in_turns(blocks, started + values.seconds)
    rows = [
        row
        for place, columns in by_place(blocks).items()
        for row in rows_of(place, columns, turns)
    ]
    record = environment([SEED]) | {
        "devices": keras.distribution.list_devices(),
        "batch_size": BATCH_SIZE,
        "turns": len(turns),
        "counts": rows,
        "summary": summary(rows),
    }
    pathlib.Path(values.output).write_text(json.dumps(record, indent=1) + "\n")
    show(record)
    print(f"{time.perf_counter() - started:.0f} s")


def flops(size, width):
    """Returns those of a training step, as `Block.flops`."""
    return 3 * 2 * 9 * width**2 * size**2 * BATCH_SIZE


def in_turns(blocks, deadline):
    """Trains the blocks in turns.

    Args:
        blocks: List of `Block`s.
        deadline: `time.perf_counter()` at which the last turn should be over.

    Returns:
        List, for each turn, of the seconds per step of each block. The first
        turn, in which the steps are traced, is left out.
    """
    values = {
        place: _values(place, max(block.width for _, block in columns))
        for place, columns in by_place(blocks).items()
    }
    turns = []
    seconds = 0.0
    while len(turns) <= LEAST_TURNS or time.perf_counter() + seconds < deadline:
        began = time.perf_counter()
        turns.append([block.seconds(values[block.place]) for block in blocks])
        seconds = time.perf_counter() - began
    return turns[1:]


def _values(place, channels):
    values = tf.random.normal((BATCH_SIZE, place.size, place.size, channels))
    return tf.cast(values, keras.DTypePolicy(place.policy).compute_dtype)


def by_place(blocks):
    """Returns a dict from each `Place` to its blocks, each with its position.

    The position is that among all blocks.
    """
    found = collections.defaultdict(list)
    for position, block in enumerate(blocks):
        found[block.place].append((position, block))
    return found


def rows_of(place, columns, turns):
    """Yields the record of each count of channels at a `Place`.

    Args:
        place: The `Place`.
        columns: Its blocks with their positions, as of `by_place`.
        turns: As of `in_turns`.
    """
    widths = [block.width for _, block in columns]
    seconds = [
        {block.width: turn[position] for position, block in columns}
        for turn in turns
    ]
    work = {block.width: block.flops for _, block in columns}
    # Compared within each turn: whatever else the machine does hits all alike.
    costs = [
        relative_costs({w: turn[w] / work[w] for w in widths})
        for turn in seconds
    ]
    times = [relative_times(turn) for turn in seconds]
    for width in widths:
        of_cost = [turn[width] for turn in costs]
        of_time = [turn[width] for turn in times if width in turn]
        yield {
            **place._asdict(),
            "channels": width,
            "step_seconds": statistics.median(turn[width] for turn in seconds),
            "training_flops": work[width],
            "relative_cost": statistics.median(of_cost),
            "relative_cost_quartiles": statistics.quantiles(of_cost, n=4),
            "time_of_next_16": statistics.median(of_time) if of_time else None,
        }


def relative_costs(costs):
    """Returns each cost, relative to the multiples of 16 around it.

    Args:
        costs: Dict from counts of channels to seconds per FLOP. A count below
            the first multiple of 16, or above the last, is related to that one.
    """
    known = sorted(width for width in costs if width % 16 == 0)
    expected = [costs[width] for width in known]
    return {
        width: float(cost / np.interp(width, known, expected))
        for width, cost in costs.items()
    }


def relative_times(seconds):
    """Returns each time, relative to that of the next multiple of 16.

    Args:
        seconds: Dict from counts of channels to seconds. Counts whose next
            multiple of 16 is not among them are left out.
    """
    return {
        width: value / seconds[-(-width // 16) * 16]
        for width, value in seconds.items()
        if -(-width // 16) * 16 in seconds
    }


def summary(rows):
    """Returns the medians of `rows` for each kind of count, a list of dicts.

    A kind are the multiples of 8 and not of 16, or of 4 and not of 8, in one of
    `RANGES`.
    """
    kinds = collections.defaultdict(list)
    for row in rows:
        width = row["channels"]
        if width % 16 == 0:
            continue
        multiple = 8 if width % 8 == 0 else 4
        (limits,) = [x for x in RANGES if x[0] <= width < x[1]]
        kinds[row["policy"], row["size"], limits, multiple].append(row)
    return [
        {
            "policy": policy,
            "size": size,
            "channels": [least, most - 1],
            "multiple": multiple,
            "counts": len(members),
            "relative_cost": _median(members, "relative_cost"),
            "time_of_next_16": _median(members, "time_of_next_16"),
        }
        for (policy, size, (least, most), multiple), members in kinds.items()
    ]


def _median(rows, key):
    values = [row[key] for row in rows if row[key] is not None]
    return statistics.median(values) if values else None


def show(record):
    """Prints a line for each count, and the medians."""
    for row in record["counts"]:
        print(
            f"{row['policy']:14}  {row['size']:2} pixels  "
            f"{row['channels']:3} channels  "
            f"{1e3 * row['step_seconds']:8.2f} ms  "
            f"{row['relative_cost']:5.2f} per FLOP  "
            f"{row['time_of_next_16'] or float('nan'):5.2f} of the next 16"
        )
    print(f"Medians of {record['turns']} turns. Of each kind of count:")
    for row in record["summary"]:
        least, most = row["channels"]
        print(
            f"{row['policy']:14}  {row['size']:2} pixels  "
            f"{least:3} to {most:3}  multiples of {row['multiple']:2}  "
            f"{row['relative_cost']:5.2f} per FLOP  "
            f"{row['time_of_next_16'] or float('nan'):5.2f} of the next 16"
        )


if __name__ == "__main__":
    define(flags.FLAGS)
    app.run(main)
