"""How much each channel number matters: one score, whatever shares the number.

A score function takes a `Numbering` and returns a float array of shape
`(numbering.size,)`: the score of each channel number, finite and at least 0.
Channels that score less are removed first.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.labels import Label, Numbering

NumberScore = Callable[[Numbering], np.ndarray]

# Scored by gradients, and by no function of the weights.
TAYLOR = "taylor"
# Measured on batches of data; `gradient_flow.py` explains these names.
ON_DATA = ("gradient_flow", "snip", "grasp", "synflow")


def magnitude(numbering: Numbering) -> np.ndarray:
    """Scores channel numbers by their weights in all kernels that share them.

    The squared norm of a channel's slice of a kernel is measured in the mean
    over the channels on this side of the kernel, because kernels differ in
    scale and in size. The score of a number is the mean over all kernel sides
    that hold the number.

    Args:
        numbering: A `Numbering`.

    Returns:
        Float array, shape `(numbering.size,)`; 1 is the score of an average
        channel.
    """
    total, count = np.zeros((2, numbering.size))
    for label in numbering.kernels():
        squares = _squares(label)
        mean = squares.mean()
        if mean != 0.0:  # NaN makes the scores NaN.
            np.add.at(total, label.numbers, squares / mean)
        np.add.at(count, label.numbers, 1.0)
    return total / np.maximum(count, 1.0)


def random(numbering: Numbering, seed: int = 0) -> np.ndarray:
    """Draws the scores, as a control for the other ones.

    Args:
        numbering: A `Numbering`.
        seed: Integer, at least 0. Equal seeds give equal scores.

    Returns:
        Float array, shape `(numbering.size,)`, in [0, 1).
    """
    return np.random.default_rng(seed).random(numbering.size)


SCORES = {
    TAYLOR: None,
    "magnitude": magnitude,
    **dict.fromkeys(ON_DATA),
    "random": random,
}


def number_score(score: Any) -> NumberScore | None:
    """Returns the score function that `score` names.

    Args:
        score: `"taylor"`, `"magnitude"`, `"random"`, a name in `ON_DATA`, or a
            function of a `Numbering`.

    Returns:
        The function; `None` for the names that need gradients.

    Raises:
        ValueError: If `score` is neither a known name nor a function.
    """
    if isinstance(score, str) and score in SCORES:
        return SCORES[score]
    if callable(score):
        return functools.partial(_checked, score)
    raise ValueError(
        f"`score` must be one of {', '.join(map(repr, SCORES))}, or a function "
        "of a `Numbering` that returns a number for each channel number. "
        f"Received: score={score!r}"
    )


def readers(numbering: Numbering) -> list[Label]:
    """Returns the labels of the kernels that read channels and that train."""
    return [x for x in numbering.kernels("in") if x.weight.trainable]


def gate_gradients(
    reading: list[Label],
    gradients: dict[int, Any],
    size: int,
    factors: dict[int, Any] | None = None,
) -> Any:
    """Returns the gradient of the loss by a gate on each channel number.

    A gate is a factor, 1 in training, on all reads of a channel: the number's
    part of the loss, to first order. Its gradient is the sum of weight times
    gradient over the kernels' slices that read the number. The slices that
    write the number would not do: behind them, a batch normalization makes
    this sum zero.

    Args:
        reading: List of `Label`s, of `readers`.
        gradients: Dict from the `id` of a weight to its gradient, a tensor.
            Labels of other weights do not count.
        size: Integer, the number of channel numbers.
        factors: Dict from the `id` of a weight to what its gradient is
            multiplied with. Defaults to `None`, the weight itself.

    Returns:
        Float32 tensor, shape `(size,)`.
    """
    sums, numbers = [], []
    for label in reading:
        gradient = gradients.get(id(label.weight))
        if gradient is None:
            continue
        others = [i for i in range(len(gradient.shape)) if i != label.axis]
        factor = label.weight if factors is None else factors[id(label.weight)]
        product = ops.cast(factor, "float32") * ops.cast(gradient, "float32")
        sums.append(ops.sum(product, axis=others))
        numbers.append(label.numbers)
    if not sums:
        return ops.zeros((size,), "float32")
    # One operation for all: many small ones would take longer than the step.
    return ops.segment_sum(ops.concatenate(sums), np.concatenate(numbers), size)


def _squares(label):
    weight = keras_internals.values_of(label.weight).astype("float64")
    others = tuple(i for i in range(weight.ndim) if i != label.axis)
    return np.square(weight).sum(axis=others)


def _checked(score, numbering):
    """Returns `score(numbering)` as an array, if it is one score per number."""
    try:
        values = score(numbering)
    except Exception as error:
        raise ValueError(
            f"`score` fails: {error!r}. It is called with one `Numbering`."
        ) from error
    try:
        scores = np.asarray(values).astype("float64", casting="same_kind")
    except (TypeError, ValueError, OverflowError):
        scores = np.empty(0)
    if scores.shape != (numbering.size,):
        raise ValueError(
            "`score` must return one number for each of the "
            f"{numbering.size} channel numbers. Received: {values!r}"
        )
    fits = np.isfinite(scores) & (scores >= 0.0)
    if not fits.all():
        raise ValueError(
            "`score` must return finite numbers of at least 0. Received: "
            f"{scores[~fits][0]} for channel number {np.argmin(fits)}"
        )
    return scores
