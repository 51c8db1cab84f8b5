"""Reconfigures every model of `keras.applications` and checks the result.

    python tools/coverage.py                     # all, into docs/coverage.md
    python tools/coverage.py MobileNetV2 VGG16   # these, to the terminal

Each model gets random weights that carry a signal: kernels of unit gain, batch
statistics of a forward pass, all of it shaken, logits instead of a softmax.
Then a random half of its removable channels is made dead on both sides, and in
float64 the smaller model must be the same function as the one with the zeros:
outputs, gradients, the next step of SGD with momentum, and a `.keras` file of
it that is loaded again. That the comparison can fail is a column: how far the
output moves when a single living channel is cut as well.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf

import keras_prunetrain as kpt
from keras_prunetrain.channels.numbering import number_channels

# `apps` and `tests` are not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from apps.environment import ROOT, environment  # noqa: E402
from tests.masked import (  # noqa: E402
    gradient_pairs,
    leaves,
    silence,
    some_alive,
)

SEED = 0
TOLERANCE = 1e-6  # Of the outputs' standard deviation.
# Smallest inputs, in pixels, where they are larger than 32.
SIZES = {"Xception": 71, "InceptionV3": 75, "InceptionResNetV2": 75}


def names():
    """Returns the names of all functions of `keras.applications`."""
    return sorted(
        name
        for name, value in vars(keras.applications).items()
        if callable(value) and name[0].isupper()
    )


def check(name):
    """Returns a row of the table, a dict."""
    keras.config.set_floatx("float64")
    keras.utils.set_random_seed(SEED)
    rng = np.random.default_rng(SEED)
    size = SIZES.get(name, 32)
    model = getattr(keras.applications, name)(
        weights=None,
        input_shape=(size, size, 3),
        classes=10,
        classifier_activation=None,
    )
    images = rng.uniform(0.0, 255.0, (4, size, size, 3))
    labels = rng.integers(0, 10, 4)
    give_signal(model, images, rng)
    model.compile(
        keras.optimizers.SGD(1e-3, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=True,
    )
    model.optimizer.build(model.trainable_variables)
    for slot in model.optimizer.variables[2:]:
        slot.assign(rng.normal(size=slot.shape) * 1e-3)
    numbering = number_channels(model)
    alive = some_alive(numbering, rng)

    # Dead where they are written only: what reads them holds them.
    weights = model.get_weights()
    silence(numbering, alive, sides=("out",))
    expected = model(images).numpy()
    one_sided = difference(kpt.reconfigure(model)(images), expected)
    folded = kpt.reconfigure(model, fold=True)
    parameters_folded = folded.count_params()
    fold_difference = difference(folded(images), expected)
    del folded
    model.set_weights(weights)

    silence(numbering, alive)
    expected = model(images).numpy()
    started = time.perf_counter()
    smaller = kpt.reconfigure(model)
    seconds = time.perf_counter() - started
    outputs = difference(smaller(images), expected)
    row = {
        "model": name,
        "parameters": model.count_params(),
        "parameters_after": smaller.count_params(),
        "layers": len(model.operations),
        "seconds": seconds,
        "output_difference": outputs,
        "one_sided_difference": one_sided,
        "parameters_folded": parameters_folded,
        "fold_difference": fold_difference,
        "signal": float(np.ptp(expected, axis=0).max() / expected.std()),
        "flops_agree": flops_by_hand(smaller)
        == kpt.model_cost(smaller).forward_flops,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        smaller.save(path)
        loaded = keras.saving.load_model(path, compile=False)
    row["loaded_difference"] = difference(loaded(images), expected)
    del loaded
    row["gradient_difference"] = gradient_difference(
        model, smaller, numbering, alive, images, labels
    )
    # The same step for both; then they are still the same function.
    tf.random.set_seed(SEED)
    model.train_on_batch(images, labels)
    silence(numbering, alive)  # Weight decay and momentum move dead weights.
    smaller.train_on_batch(images, labels)
    row["next_step_difference"] = difference(
        smaller(images), model(images).numpy()
    )
    living = np.setdiff1d(np.flatnonzero(alive), list(numbering.frozen))
    before = model(images).numpy()
    alive[rng.choice(living)] = False
    silence(numbering, alive)
    row["living_channel_difference"] = difference(model(images), before)
    return row


def give_signal(model, images, rng):
    """Draws all weights so that outputs depend on inputs, and BN is awake."""
    for layer in leaves(model):
        # Fewer channels would draw other masks: no randomness in the check.
        for name in ("rate", "drop_path_rate"):
            if hasattr(layer, name):
                setattr(layer, name, 1e-12)
        if isinstance(layer, keras.layers.Normalization):
            continue  # Its weights are the mean and variance of the data.
        for weight in layer.weights:
            value = rng.normal(size=weight.shape)
            if "kernel" in weight.name:
                fan_in = np.prod(weight.shape[:-1])
                if isinstance(layer, keras.layers.DepthwiseConv2D) or (
                    weight.name == "depthwise_kernel"
                ):
                    fan_in = np.prod(weight.shape[:-2])
                value *= np.sqrt(2.0 / fan_in)
            elif weight.name in ("gamma", "moving_variance", "variable"):
                value = rng.uniform(0.5, 1.5, weight.shape)
            else:
                value *= 0.2
            if "int" not in weight.dtype:  # The state of a seed generator.
                weight.assign(value)
    norms = [
        layer
        for layer in leaves(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(images, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
        variance = layer.moving_variance.numpy()
        shift = 0.2 * rng.normal(size=variance.shape) * np.sqrt(variance)
        layer.moving_mean.assign_add(shift)
        layer.moving_variance.assign(
            variance * rng.uniform(0.7, 1.4, variance.shape)
        )


def difference(found, expected):
    """Largest difference, in standard deviations of what is expected."""
    expected = np.asarray(expected)
    return float(np.abs(np.asarray(found) - expected).max() / expected.std())


def gradient_difference(model, smaller, numbering, alive, images, labels):
    """Compares the gradients of all weights, at the channels that are left.

    Relative to the norm of the whole gradient.
    """
    pairs = [
        (found, expected)
        for _, found, expected in gradient_pairs(
            model, smaller, numbering, alive, images, labels, training=False
        )
    ]
    scale = np.sqrt(sum((expected**2).sum() for _, expected in pairs))
    return float(max(np.abs(a - b).max() for a, b in pairs) / scale)


def flops_by_hand(model):
    """Counts 2 x multiplications with kernels, from shapes, once more."""
    total = 0
    for layer in leaves(model):
        for weight in layer.weights:
            if "kernel" in weight.name:
                places = int(np.prod(layer.output.shape[1:-1], dtype=int))
                total += 2 * int(np.prod(weight.shape)) * places
    return total


def is_right(row):
    """Whether a row has all that is claimed."""
    return (
        max(
            row[k]
            for k in row
            if k.endswith("difference") and "living" not in k
        )
        < TOLERANCE
        and row["living_channel_difference"] > 1000 * TOLERANCE
        and row["parameters_after"] <= 0.7 * row["parameters"]
        and row["flops_agree"]
    )


def table(rows):
    """Returns the rows as a Markdown table."""
    lines = [
        "| model | parameters | after | outputs | gradients | next step "
        "| loaded | a living channel | folding | seconds | |",
        "| --- " + "| ---: " * 9 + "| --- |",
    ]
    for row in rows:
        if "error" in row:
            lines.append(
                f"| {row['model']} " + "| " * 8 + f"| {row['error']} |"
            )
            continue
        left = row["parameters_after"] / row["parameters"]
        differences = (
            f"{row[f'{name}_difference']:.0e}"
            for name in ("output", "gradient", "next_step", "loaded")
        )
        lines.append(
            f"| {row['model']} | {row['parameters']:,} | {left:.0%} | "
            f"{' | '.join(differences)} | "
            f"{row['living_channel_difference']:.0e} | "
            f"{row['parameters_folded'] / row['parameters']:.0%} | "
            f"{row['seconds']:.1f} | "
            f"{'' if is_right(row) else 'misses'} |"
        )
    return "\n".join(lines) + "\n"


def main(chosen):
    rows = []
    for name in chosen or names():
        # A process each: memory, and the names of layers, start afresh.
        process = subprocess.run(
            [sys.executable, __file__, "--one", name],
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode:
            error = process.stderr.strip().splitlines()
            rows.append({"model": name, "error": error[-1] if error else "?"})
        else:
            rows.append(json.loads(process.stdout.splitlines()[-1]))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    if chosen:
        return
    record = environment([SEED]) | {"tolerance": TOLERANCE, "models": rows}
    results = ROOT / "tools" / "results" / "coverage.json"
    results.write_text(json.dumps(record, indent=1) + "\n")
    (ROOT / "docs" / "coverage.md").write_text(_INTRODUCTION + table(rows))


_INTRODUCTION = """\
# What `reconfigure` was checked on

Every function of `keras.applications`, by `make coverage`: random weights that
carry a signal, a random half of the removable channels dead on both sides, all
in float64. The columns compare the reconfigured model with the one whose dead
weights are zero, in standard deviations of its outputs (gradients: of the norm
of the whole gradient), and say how far the output moves when one living channel
is cut as well. "folding": the parameters that `fold=True` leaves if the same
channels are dead only where they are computed (without it, all stay). Raw
numbers: `tools/results/coverage.json`.

"""


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(check(sys.argv[2])))
    else:
        main(sys.argv[1:])
