"""The lasso on a model: where it goes, and how strong it is (paper, 4.1)."""

from collections.abc import Collection

import keras
import numpy as np
from keras import ops

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.labels import Label, Numbering
from keras_prunetrain.lasso.group_lasso import BesideLasso, GroupLasso


def attach_lasso(
    model: keras.Model,
    numbering: Numbering,
    skip: Collection[str] = (),
    in_loss: bool = True,
) -> list[keras.Variable]:
    """Puts a `GroupLasso`, of factor 0, on each kernel with channels to lose.

    The lasso acts on both sides of a kernel, except on a side whose channels
    are all frozen: those of the model's inputs and outputs (paper, section
    4.1), and others where the penalty would cost accuracy and remove nothing. A
    kernel's own regularizer stays in place.

    Args:
        model: A functional model, not inside a traced function.
        numbering: Its `Numbering`.
        skip: Keys of layers that get none.
        in_loss: Boolean. Whether the lasso is a penalty in the loss.

    Returns:
        List of the kernels, `keras.Variable`s, that now carry one.
    """
    axes = {}
    for label in labels_with_lasso(numbering, skip):
        kernel, sides = axes.setdefault(id(label.weight), (label.weight, []))
        sides.append(label.axis - len(kernel.shape))
    lassos = {}
    with keras_internals.strategy_scope(model):
        for kernel, sides in axes.values():
            sides = tuple(sorted(sides))
            if sides not in lassos:
                lassos[sides] = GroupLasso(axes=sides)
            kernel.regularizer = BesideLasso(
                kernel.regularizer, lassos[sides], in_loss
            )
    return [kernel for kernel, _ in axes.values()]


def labels_with_lasso(
    numbering: Numbering, skip: Collection[str] = ()
) -> list[Label]:
    """Returns the `Label`s of the kernels' sides that carry a lasso."""
    return [
        label
        for label in numbering.kernels()
        if label.weight.trainable
        and label.layer not in skip
        and any(int(n) not in numbering.frozen for n in label.numbers)
    ]


def take_out_of_loss(model: keras.Model) -> None:
    """Takes the penalties of the layers' own lassos out of the loss."""
    for lasso, kernel in lassos_of(model):
        if kernel.regularizer is lasso:
            kernel.regularizer = BesideLasso(lasso, lasso, in_loss=False)


def detach_lasso(model: keras.Model) -> None:
    """Undoes `attach_lasso` and `take_out_of_loss`."""
    for weight in model.weights:
        if isinstance(weight.regularizer, BesideLasso):
            weight.regularizer = weight.regularizer.own


def lassos_of(model: keras.Model) -> list[tuple[GroupLasso, keras.Variable]]:
    """Returns a list of `(GroupLasso, kernel)`, attached or the user's own."""
    found = []
    for weight in model.trainable_weights:
        regularizer = weight.regularizer
        if isinstance(regularizer, BesideLasso):
            regularizer = regularizer.lasso
        if isinstance(regularizer, GroupLasso):
            found.append((regularizer, weight))
    return found


def weight_penalties(model: keras.Model) -> float:
    """Returns the sum of the penalties in the loss, a float.

    The lasso is one of them, unless it is not in the loss.
    """
    return _number(
        sum(
            weight.regularizer(weight)
            for weight in model.trainable_weights
            if weight.regularizer is not None
        )
    )


def lasso_penalty(model: keras.Model) -> float:
    """Returns the penalty of the lasso, in the loss or not, a float."""
    return _number(sum(lasso(kernel) for lasso, kernel in lassos_of(model)))


def lasso_norms(model: keras.Model) -> float:
    """Returns what `lasso_penalty` is at factor 1: the sum of all norms."""
    return _number(
        sum(lasso.unscaled(kernel) for lasso, kernel in lassos_of(model))
    )


def all_finite(model: keras.Model) -> bool:
    """Whether no weight of `model` is infinite or NaN."""
    return all(
        np.isfinite(ops.convert_to_numpy(weight)).all()
        for weight in model.weights
    )


def _number(value):
    return float(ops.convert_to_numpy(value))
