"""How far an optimizer moves a weight, per unit of the gradient.

A gradient `g` that stays the same moves a weight by `rate / (1 - momentum) * g`
in a step of SGD. An adaptive optimizer divides by the size that gradients had:
its step is `rate * g / root`, where `root` is the root of a mean of squared
gradients. The table in this module says so for each class. The slots of the
optimizers are private attributes of Keras.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import keras
from keras import ops
from keras.optimizers import Optimizer

from keras_prunetrain.keras_internals.variables import precise


class StepSize(NamedTuple):
    """The size of an optimizer's step for one weight.

    A gradient of size `g` that stays the same moves the weight by
    `rate * g / (sqrt(squares) + epsilon)`; `rate * g` if `squares` is `None`.

    Attributes:
        rate: Scalar tensor, at least 0.
        squares: Tensor of the weight's shape, or `None`.
        epsilon: Float or scalar tensor, at least 0.
    """

    rate: Any
    squares: Any
    epsilon: float


class OptimizerKind(NamedTuple):
    """How a group lasso acts under a class of optimizers.

    Attributes:
        name: Name of the class in `keras.optimizers`; subclasses are meant too.
        solver: `"subgradient"` if a penalty in the loss is the better choice,
            or the only one; `"proximal"` if weights would not come to rest.
        step_size: Function of `optimizer, variable, rate` that returns the
            `StepSize` of the update that was just done; `None` if the
            optimizer would undo a change of the weights.
        reason: String, why there is no step size; empty if there is one.
    """

    name: str
    solver: Literal["subgradient", "proximal"]
    step_size: Callable[[Optimizer, keras.Variable, Any], StepSize] | None
    reason: str = ""


def optimizer_kind(optimizer: Optimizer) -> OptimizerKind | None:
    """Returns the row of `optimizer`'s class; `None` for an unknown class."""
    for kind in _KINDS:
        if isinstance(optimizer, getattr(keras.optimizers, kind.name)):
            return kind
    return None


def _slot(optimizer, name, variable):
    """Returns the slot of `variable` as a tensor; `None` if it has none."""
    slot = getattr(optimizer, name)[optimizer._get_variable_index(variable)]
    return None if slot is None else precise(slot)


def _of_sgd(optimizer, variable, rate):
    return StepSize(rate / (1.0 - optimizer.momentum), None, 0.0)


def _of_adam(optimizer, variable, rate):
    name = "_velocities"
    if getattr(optimizer, "amsgrad", False):
        name = "_velocity_hats"
    slot = _slot(optimizer, name, variable)
    return _as_in_adam(rate, slot, optimizer, optimizer.beta_2)


def _as_in_adam(rate, slot, optimizer, decay):
    # The epsilon is added before the slot's beginning at 0 is made up for.
    known = _known_part(optimizer, decay, slot.dtype)
    return StepSize(rate, slot / known, optimizer.epsilon / ops.sqrt(known))


def _unbiased(optimizer, slot, decay):
    """Returns the mean that `slot`, which began at 0, stands for."""
    return slot / _known_part(optimizer, decay, slot.dtype)


def _known_part(optimizer, decay, dtype):
    """Returns how much of a running mean is no longer its beginning, 0."""
    updates = ops.cast(optimizer.iterations + 1, dtype)
    return 1.0 - ops.power(ops.cast(decay, dtype), updates)


def _of_adamax(optimizer, variable, rate):
    squares = ops.square(_slot(optimizer, "_u", variable))
    return StepSize(rate, squares, optimizer.epsilon)


def _of_rmsprop(optimizer, variable, rate):
    squares = _slot(optimizer, "_velocities", variable)
    if optimizer.centered:
        mean = _slot(optimizer, "_average_gradients", variable)
        squares = ops.maximum(squares - ops.square(mean), 0.0)
    squares = squares + optimizer.epsilon
    return StepSize(rate / (1.0 - optimizer.momentum), squares, 0.0)


def _of_adagrad(optimizer, variable, rate):
    slot = _slot(optimizer, "_accumulators", variable)
    return StepSize(rate, slot + optimizer.epsilon, 0.0)


def _of_adadelta(optimizer, variable, rate):
    slot = _slot(optimizer, "_accumulated_grads", variable)
    moved = _slot(optimizer, "_accumulated_delta_vars", variable)
    # The steps of one weight are as long as its steps have been.
    length = ops.sqrt(ops.mean(moved) + optimizer.epsilon)
    rate = ops.cast(rate, length.dtype)
    return StepSize(rate * length, slot + optimizer.epsilon, 0.0)


def _of_lion(optimizer, variable, rate):
    # The step is the sign of `beta_1 * momentum + (1 - beta_1) * gradient`.
    # For gradients that are mostly noise, the factor turns the mean square of
    # the momentum into that of this sum, and the mean of a sign is the mean of
    # the sum, over its deviation, times the root of 2 / pi.
    beta_1, beta_2 = optimizer.beta_1, optimizer.beta_2
    ratio = beta_1**2 + (1 - beta_1) ** 2 * (1 + beta_2) / (1 - beta_2)
    ratio = ratio * math.pi / 2
    momentum = _slot(optimizer, "_momentums", variable)
    return StepSize(rate, ratio * ops.square(momentum), 0.0)


def _of_nadam(optimizer, variable, rate):
    slot = _slot(optimizer, "_velocities", variable)
    squares = _unbiased(optimizer, slot, optimizer.beta_2)
    return StepSize(rate, squares, optimizer.epsilon)


def _of_lamb(optimizer, variable, rate):
    slot = _slot(optimizer, "_velocities", variable)
    squares = _unbiased(optimizer, slot, optimizer.beta_2)
    momentum = _slot(optimizer, "_momentums", variable)
    mean = _unbiased(optimizer, momentum, optimizer.beta_1)
    step = _norm(mean / (ops.sqrt(squares) + optimizer.epsilon))
    # After the update, as long within a rate.
    length = _norm(precise(variable))
    trust = ops.where(
        ops.logical_and(length > 0, step > 0),
        length / ops.where(step > 0, step, 1.0),
        1.0,
    )
    rate = ops.cast(rate, trust.dtype)
    return StepSize(rate * trust, squares, optimizer.epsilon)


def _norm(x):
    return ops.sqrt(ops.sum(ops.square(x)))


def _of_muon(optimizer, variable, rate):
    velocity = _slot(optimizer, "adam_velocities", variable)
    if velocity is not None:  # Only matrices are trained by Muon itself.
        rate = rate * optimizer.adam_lr_ratio
        return _as_in_adam(rate, velocity, optimizer, optimizer.adam_beta_2)
    # The singular values of a step are about 1, so its mean square is about
    # 1 / longest; a gradient that stays is 1 - momentum of the momentum.
    rows, columns = variable.shape
    length = max(rows, columns) ** -0.5
    if optimizer.rms_rate is not None:
        length = optimizer.rms_rate
    momentum = _slot(optimizer, "momentums", variable)
    squares = ops.square((1.0 - optimizer.momentum) * momentum)
    return StepSize(rate * length, squares, 0.0)


_KINDS = (
    # The step is the gradient times the rate: it shrinks with the gradient.
    OptimizerKind("SGD", "subgradient", _of_sgd),
    # The step of each weight is about as long as the rate, whatever the
    # gradient is: weights swing around zero by the rate.
    OptimizerKind("Adam", "proximal", _of_adam),  # AdamW is a subclass.
    OptimizerKind("Nadam", "proximal", _of_nadam),
    OptimizerKind("Adamax", "proximal", _of_adamax),
    OptimizerKind("RMSprop", "proximal", _of_rmsprop),
    OptimizerKind("Lion", "proximal", _of_lion),
    # The same, times the norm of the whole weight.
    OptimizerKind("Lamb", "proximal", _of_lamb),
    # A step whose singular values are all about the rate.
    OptimizerKind("Muon", "proximal", _of_muon),
    # The step is divided by the root of a sum or mean of squared gradients,
    # and that of the penalty would be the largest of them.
    OptimizerKind("Adagrad", "proximal", _of_adagrad),
    OptimizerKind("Adadelta", "proximal", _of_adadelta),
    OptimizerKind(
        *("ScheduleFreeAdamW", "subgradient", None),
        "it computes the weights anew from two averages in every step",
    ),
    OptimizerKind(
        *("Ftrl", "subgradient", None),
        "it computes the weights anew from a sum of gradients in every step",
    ),
    OptimizerKind(
        *("Adafactor", "subgradient", None),
        "its slots are means over whole axes",
    ),
)
