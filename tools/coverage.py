"""Reconfigures every model of `keras.applications` and checks the result.

    python tools/coverage.py                     # all, into docs/coverage.md
    python tools/coverage.py MobileNetV2 VGG16   # these, to the terminal
    python tools/coverage.py --only time         # the times again, alone

Each model gets random weights that carry a signal: kernels of unit gain, batch
statistics of a forward pass, all of it shaken, logits instead of a softmax.
Then a random half of its removable channels is made dead on both sides, and in
float64 the smaller model must be the same function as the one with the zeros:
outputs, gradients, the next step of SGD with momentum, and a `.keras` file of
it that is loaded again. That the comparison can fail is a column: how far the
output moves when a single living channel is cut as well (the most of five: some
lie behind a ReLU that none of the images opens).
"""

import gc
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

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
TOO_LARGE = {
    "ConvNeXtXLarge": "not run to its end: it takes more than 18 GiB",
}


def names():
    """Returns the names of all functions of `keras.applications`."""
    return sorted(
        name
        for name, value in vars(keras.applications).items()
        if callable(value) and name[0].isupper()
    )


def build(name):
    size = SIZES.get(name, 32)
    return getattr(keras.applications, name)(
        weights=None,
        input_shape=(size, size, 3),
        classes=10,
        classifier_activation=None,
    )


def measure(name):
    """Returns the seconds that `reconfigure` takes: the median of three.

    In float32, with the slots of SGD with momentum.
    """
    keras.utils.set_random_seed(SEED)
    model = build(name)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    model.optimizer.build(model.trainable_variables)
    numbering = number_channels(model)
    silence(numbering, some_alive(numbering, np.random.default_rng(SEED)))
    seconds = []
    for _ in range(3):
        gc.collect()  # What the last one made is a cycle, and in the way.
        started = time.perf_counter()
        kpt.reconfigure(model)
        seconds.append(time.perf_counter() - started)
    return {"seconds": statistics.median(seconds)}


class Trial(NamedTuple):
    """A model whose channels are going to die, and what it is asked.

    Attributes:
        model: The model, compiled.
        run: The model as a function. It is traced once; its weights may change.
        numbering: The `Numbering` of its channels.
        alive: Boolean for each channel.
        images: Shape `(count, size, size, 3)`.
        labels: Shape `(count,)`.
        rng: The generator of all that is drawn.
    """

    model: keras.Model
    run: Callable
    numbering: Any
    alive: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    rng: np.random.Generator


def check(name):
    """Returns how the reconfigured model compares with the masked one."""
    keras.config.set_floatx("float64")
    keras.utils.set_random_seed(SEED)
    trial = prepare(name)
    one_sided = check_one_sided(trial)
    smaller, expected = cut(trial)
    return {
        "parameters": trial.model.count_params(),
        "parameters_after": smaller.count_params(),
        "layers": len(trial.model.operations),
        "output_difference": difference(smaller(trial.images), expected),
        **one_sided,
        "signal": float(np.ptp(expected, axis=0).max() / expected.std()),
        "flops_agree": flops_by_hand(smaller)
        == kpt.model_cost(smaller).forward_flops,
        "loaded_difference": difference(
            loaded(smaller)(trial.images), expected
        ),
        "gradient_difference": gradient_difference(trial, smaller),
        # The same step for both; then they are still the same function.
        "next_step_difference": next_step_difference(trial, smaller),
        "living_channel_difference": living_channel_difference(trial),
    }


def prepare(name):
    """Builds a model with weights that carry a signal; returns the `Trial`."""
    rng = np.random.default_rng(SEED)
    model = build(name)
    size = SIZES.get(name, 32)
    # In training, batch normalization of a few values, hundreds of times in a
    # row, makes large differences of rounding errors.
    count = 16 if normalizations(model) else 4
    images = rng.uniform(0.0, 255.0, (count, size, size, 3))
    labels = rng.integers(0, 10, count)
    draw_weights(model, rng)
    model.compile(
        keras.optimizers.SGD(1e-3, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=True,
    )
    numbering = number_channels(model)
    alive = some_alive(numbering, rng)
    run = tf.function(model)
    return Trial(model, run, numbering, alive, images, labels, rng)


def check_one_sided(trial):
    """Compares where channels are dead where they are written only.

    What reads them holds them, unless they are folded. The weights are put back
    afterwards.
    """
    model, images = trial.model, trial.images
    weights = model.get_weights()
    silence(trial.numbering, trial.alive, sides=("out",))
    awaken(model, images, trial.rng)
    expected = trial.run(images).numpy()
    row = {
        "one_sided_difference": difference(
            kpt.reconfigure(model)(images), expected
        )
    }
    folded = kpt.reconfigure(model, fold=True)
    row["parameters_folded"] = folded.count_params()
    row["fold_difference"] = difference(folded(images), expected)
    model.set_weights(weights)
    return row


def cut(trial):
    """Returns the smaller model, and what the masked one computes."""
    model = trial.model
    model.optimizer.build(model.trainable_variables)
    for slot in model.optimizer.variables[2:]:
        slot.assign(trial.rng.normal(size=slot.shape) * 1e-3)
    silence(trial.numbering, trial.alive)
    awaken(model, trial.images, trial.rng)
    return kpt.reconfigure(model), trial.run(trial.images).numpy()


def loaded(model):
    """Returns the model that a file of `model` holds."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        model.save(path)
        return keras.saving.load_model(path, compile=False)


def next_step_difference(trial, smaller):
    """Compares the two models after a step of training."""
    tf.random.set_seed(SEED)
    trial.model.train_on_batch(trial.images, trial.labels)
    # Weight decay and momentum move dead weights.
    silence(trial.numbering, trial.alive)
    smaller.train_on_batch(trial.images, trial.labels)
    expected = trial.run(trial.images).numpy()
    return difference(smaller(trial.images), expected)


def living_channel_difference(trial):
    """Returns how far the output moves without a living channel."""
    frozen = list(trial.numbering.frozen)
    living = np.setdiff1d(np.flatnonzero(trial.alive), frozen)
    before = trial.run(trial.images).numpy()
    return max(
        difference(
            without(number, trial.numbering, trial.run, trial.images), before
        )
        for number in trial.rng.choice(living, 5, replace=False)
    )


def draw_weights(model, rng):
    """Draws all weights so that outputs depend on inputs.

    Preprocessing is adapted, as in a model with pretrained weights.
    """
    for layer in leaves(model):
        # Fewer channels would draw other masks: no randomness in the check.
        for name in ("rate", "drop_path_rate"):
            if hasattr(layer, name):
                setattr(layer, name, 1e-12)
        if isinstance(layer, keras.layers.Normalization):
            # Its weights are the mean and the variance of what it has seen.
            if layer.input_mean is None:
                shape = [size or 32 for size in layer.input.shape[1:]]
                layer.adapt(rng.uniform(0.2, 0.9, (8, *shape)))
            continue
        for weight in layer.weights:
            value = rng.normal(size=weight.shape)
            if "kernel" in weight.name:
                fan_in = np.prod(weight.shape[:-1])
                if isinstance(layer, keras.layers.DepthwiseConv2D) or (
                    weight.name == "depthwise_kernel"
                ):
                    fan_in = np.prod(weight.shape[:-2])
                value *= np.sqrt(2.0 / fan_in)
            elif weight.name.startswith(
                ("gamma", "moving_variance", "variable")
            ):
                value = rng.uniform(0.5, 1.5, weight.shape)
            else:
                value *= 0.2
            if "int" not in weight.dtype:  # The state of a seed generator.
                weight.assign(value)


def normalizations(model):
    return [
        layer
        for layer in leaves(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]


def awaken(model, images, rng):
    """Gives BN the statistics of `images`, shaken.

    Those of more channels than live would drown what an image says.
    """
    norms = normalizations(model)
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
            variance * rng.uniform(1.0, 1.6, variance.shape)
        )


def without(number, numbering, run, images):
    """Returns what `run` computes without the channel `number`."""
    cut = {}
    for label in numbering.labels:
        if label.is_kernel and number in label.numbers:
            kernel = label.weight.numpy()
            cut.setdefault(id(label.weight), (label.weight, kernel.copy()))
            np.moveaxis(kernel, label.axis, 0)[label.numbers == number] = 0.0
            label.weight.assign(kernel)
    outputs = run(images)
    for weight, kernel in cut.values():
        weight.assign(kernel)
    return outputs


def difference(found, expected):
    """Largest difference, in standard deviations of what is expected."""
    expected = np.asarray(expected)
    return float(np.abs(np.asarray(found) - expected).max() / expected.std())


def gradient_difference(trial, smaller):
    """Compares the gradients of all weights, at the channels that are left.

    Relative to the norm of the weight's own gradient, where that is not next to
    nothing: a bias in front of batch normalization has none but rounding.
    """
    errors, norms = [], []
    for _, found, expected in gradient_pairs(
        trial.model,
        smaller,
        *(trial.numbering, trial.alive, trial.images, trial.labels),
        training=False,
    ):
        errors.append(np.abs(found - expected).max())
        norms.append(np.linalg.norm(expected))
    floor = 1e-3 * np.linalg.norm(norms)
    return float(np.max(errors / np.maximum(norms, floor)))


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
        all(  # A NaN is not.
            row[k] < TOLERANCE
            for k in row
            if k.endswith("difference") and "living" not in k
        )
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
        seconds = f"{row['seconds']:.1f}" if "seconds" in row else "-"
        if "parameters" not in row:
            reason = row.get("error", "not run")
            lines.append(f"| {row['model']} {'| ' * 8}| {seconds} | {reason} |")
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
            f"{seconds} | "
            f"{'' if is_right(row) else 'misses'} |"
        )
    return "\n".join(lines) + "\n"


def in_a_process(task, name):
    """Returns what `task` finds out about a model, a dict.

    In a process of its own: memory, and the names of layers, start afresh.
    """
    process = subprocess.run(
        [sys.executable, __file__, task, name],
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        error = process.stderr.strip().splitlines()
        key = "error" if task == "check" else f"{task}_error"
        return {key: error[-1] if error else f"rc {process.returncode}"}
    return json.loads(process.stdout.splitlines()[-1])


def main(tasks, chosen):
    results = ROOT / "tools" / "results" / "coverage.json"
    rows = {name: {"model": name} for name in chosen or names()}
    record = {"tolerance": TOLERANCE}
    if not chosen and results.exists():
        record = json.loads(results.read_text())
        for row in record["models"]:  # What is not run now stays as it was.
            rows[row["model"]] = row
    for name, row in rows.items():
        if "check" in tasks:  # Nothing of an older check stays.
            for key in row.keys() - {"model", "seconds"}:
                del row[key]
        for task in tasks:
            if task == "check" and name in TOO_LARGE and not chosen:
                row["error"] = TOO_LARGE[name]
            else:
                row.update(in_a_process(task, name))
        print(table([row]).splitlines()[-1], flush=True)
        if chosen:
            continue
        record |= {task: environment([SEED]) for task in tasks}
        record["models"] = list(rows.values())
        results.write_text(json.dumps(record, indent=1) + "\n")
        page = ROOT / "docs" / "coverage.md"
        # The section of `tools/program_table.py` stays.
        _, heading, programs = page.read_text().partition("\n## Programs\n")
        text = _INTRODUCTION + table(rows.values())
        page.write_text(text + heading + programs)


_INTRODUCTION = """\
# What `reconfigure` was checked on

`make coverage` checks every function of `keras.applications` in float64. A
model gets random weights that carry a signal. A random half of its removable
channels is set to zero, both where these channels are computed and where they
are read. The smaller model that `reconfigure` returns is compared with this
model:

* "after": the share of the parameters that is left;
* "outputs", "next step", "loaded": the largest difference of the outputs, in
  standard deviations of the outputs, at once, after one more step of SGD with
  momentum, and after saving and loading;
* "gradients": the largest difference of the gradients, relative to the norm of
  each weight's gradient;
* "a living channel": how far the output moves if one channel that is not zero
  is cut as well (the most of five), which shows that the comparison can fail;
* "folding": the share of the parameters that `fold=True` leaves if the same
  channels are zero only where they are computed (without `fold`, all stay);
* "seconds": the time of `reconfigure` in float32, with the slots of SGD with
  momentum.

The raw numbers are in `tools/results/coverage.json`.

"""


TASKS = {"check": check, "time": measure}

if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--only", task, *chosen]:
            main([task], chosen)
        case [task, name] if task in TASKS:
            print(json.dumps(TASKS[task](name)))
        case chosen:
            main(list(TASKS), chosen)
