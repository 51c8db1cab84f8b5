"""Compares channel union with channel gating, on the network of a run.

    python tools/benchmarks/channel_gating.py runs/DENSE runs/PRUNED

Layers that meet at a shortcut share their channels. Channel union, which this
package cuts by, keeps a channel that any of them needs. Channel gating (paper,
section 4.2, figure 5b) lets each convolution compute its own channels only: it
selects them from the tensor that it reads, and scatters what it computes into
the channels that the shortcut has. That takes fewer FLOPs (figure 6), and moves
data (figure 7). Both train the network of a finished run in turns.
"""

import pathlib
import statistics
import sys

import inference
import keras
import numpy as np
import record_file
from absl import app, flags
from architectures import SEED
from keras import ops
from turns import in_turns

import keras_prunetrain as kpt

# `apps` is not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from apps.environment import environment  # noqa: E402


def define(values):
    """Defines the flags of this program in `values`."""
    flags.DEFINE_float(
        *("threshold", 1e-4, "Channels below it are dead."), flag_values=values
    )
    flags.DEFINE_integer(
        *("turns", 20, "Turns of each network.", 1), flag_values=values
    )
    flags.DEFINE_string(
        *("output", None, "Default: tools/results/channel_gating_RUN.json."),
        flag_values=values,
    )


def main(argv, values=flags.FLAGS):
    name, dense, union = inference.networks(argv[1:])
    gated = gate(union, values.threshold)
    gated_layers = len(gates(union, values.threshold))  # Before they train.
    dense_flops, union_flops, gated_flops = (
        kpt.model_cost(model).forward_flops for model in (dense, union, gated)
    )
    for model in (union, gated):
        model.compile(
            keras.optimizers.SGD(0.01, 0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
    pairs = zip(*in_turns([union, gated], values.turns, SEED), strict=True)
    record = environment([SEED]) | {
        "run": name,
        "union_flops_ratio": union_flops / dense_flops,
        "gated_flops_ratio": gated_flops / dense_flops,
        "gated_layers": gated_layers,
        "turns": values.turns,
        "step_time_ratio_median": statistics.median(b / a for a, b in pairs),
    }
    record_file.write(record, f"channel_gating_{name}", values.output)


def gates(model, threshold):
    """Returns the channels that each convolution needs, where not all.

    Args:
        model: A functional model.
        threshold: Smallest magnitude of a weight that is alive.

    Returns:
        Dict from the name of a `Conv2D` to two integer arrays: the channels
        that it reads, and those that it computes. At least one of each.
    """
    found = {}
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D) and layer.groups == 1:
            kernel, *bias = map(np.abs, layer.get_weights())
            read = _alive(kernel.max(axis=(0, 1, 3)), threshold)
            largest = np.max([kernel.max(axis=(0, 1, 2)), *bias], axis=0)
            written = _alive(largest, threshold)
            if (len(read), len(written)) != kernel.shape[2:]:
                found[layer.name] = read, written
    return found


def _alive(largest, threshold):
    alive = largest >= threshold
    alive[np.argmax(largest)] = True
    return np.flatnonzero(alive)


def gate(model, threshold):
    """Returns a model whose convolutions compute their own channels only.

    Its outputs are those of `model` with zeros in the place of the slices of
    kernels, and of biases, that are below the threshold.

    Args:
        model: A functional model. It stays as it is.
        threshold: Smallest magnitude of a weight that is alive.
    """
    needed = gates(model, threshold)

    def clone(layer):
        config = layer.get_config()
        if layer.name in needed:
            config["filters"] = len(needed[layer.name][1])
        return layer.__class__.from_config(config)

    def call(layer, *args, **kwargs):
        if layer.name not in needed:
            return layer(*args, **kwargs)
        read, written = needed[layer.name]
        small = layer(ops.take(args[0], read, axis=-1))
        # Behind the last of them lies a channel of zeros, for all others.
        places = np.full(model.get_layer(layer.name).filters, len(written))
        places[written] = np.arange(len(written))
        padded = ops.pad(small, [[0, 0], [0, 0], [0, 0], [0, 1]])
        return ops.take(padded, places, axis=-1)

    gated = keras.models.clone_model(
        model, clone_function=clone, call_function=call
    )
    for layer in model.layers:
        weights = layer.get_weights()
        if layer.name in needed:
            read, written = needed[layer.name]
            weights[0] = weights[0][:, :, read][..., written]
            weights[1:] = [bias[written] for bias in weights[1:]]
        if weights:  # The clone of an input has another name.
            gated.get_layer(layer.name).set_weights(weights)
    return gated


if __name__ == "__main__":
    define(flags.FLAGS)
    app.run(main)
