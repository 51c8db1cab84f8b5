"""A model with dead channels, and the smaller one that must be its equal."""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from applications import awaken, normalizations

import keras_prunetrain as kpt
from tests.masked import gradient_pairs, silence

SEED = 0
TOLERANCE = 1e-6  # Of the outputs' standard deviation.


class Trial(NamedTuple):
    """A model whose channels are going to die, and what it is asked.

    Attributes:
        model: The model, compiled.
        run: The model as a function; its weights may change.
        numbering: The `Numbering` of its channels.
        alive: Boolean for each channel.
        images: Shape `(count, height, width, 3)`.
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


def examples(model, sizes, rng):
    """Returns images of `sizes`, (height, width), and labels for `model`."""
    # In training, batch normalization of a few values, hundreds of times in a
    # row, makes large differences of rounding errors.
    count = 16 if normalizations(model) else 4
    images = rng.uniform(0.0, 255.0, (count, *sizes, 3))
    return images, rng.integers(0, 10, count)


def compile_anew(model):
    model.compile(
        keras.optimizers.SGD(1e-3, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=True,
    )


def cut(trial):
    """Returns the smaller model, and what the masked one computes."""
    model = trial.model
    model.optimizer.build(model.trainable_variables)
    for slot in model.optimizer.variables[2:]:
        slot.assign(trial.rng.normal(size=slot.shape) * 1e-3)
    silence(trial.numbering, trial.alive)
    awaken(model, trial.images, trial.rng)
    return kpt.reconfigure(model), trial.run(trial.images).numpy()


def compared(trial, smaller, expected):
    """Returns how `smaller` differs from the masked model, a dict.

    Both models train for a step; then they are still the same function.

    Args:
        trial: The `Trial`, whose channels are dead.
        smaller: The model without these channels.
        expected: What the masked model computes of `trial.images`.
    """
    return {
        "parameters": trial.model.count_params(),
        "parameters_after": smaller.count_params(),
        "output_difference": difference(smaller(trial.images), expected),
        "loaded_difference": difference(
            loaded(smaller)(trial.images), expected
        ),
        "gradient_difference": gradient_difference(trial, smaller),
        "next_step_difference": next_step_difference(trial, smaller),
        "living_channel_difference": living_channel_difference(trial),
    }


def misses(row):
    """Returns the keys of `row` that are not as claimed."""
    claims = {
        key: value < TOLERANCE  # A NaN is not.
        for key, value in row.items()
        if key.endswith("difference")
    }
    claims["living_channel_difference"] = (
        row["living_channel_difference"] > 1000 * TOLERANCE
    )
    claims["parameters_after"] = (
        row["parameters_after"] <= 0.7 * row["parameters"]
    )
    return [key for key, holds in claims.items() if not holds]


def loaded(model):
    """Returns the model that a file of `model` holds."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        model.save(path)
        return keras.saving.load_model(path, compile=False)


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
