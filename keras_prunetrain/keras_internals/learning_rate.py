"""The learning rate of a step: read from a schedule, and scaled."""

from collections.abc import Callable
from typing import Any

import keras
from keras.optimizers import Optimizer

from keras_prunetrain.keras_internals.optimizer import leaf_optimizers
from keras_prunetrain.keras_internals.step_hooks import (
    add_step_hook,
    remove_step_hook,
)

_NAME = "learning rate"


def scale_learning_rate(
    optimizer: Optimizer, ratio: float, count: Callable[[Any], Any]
) -> None:
    """Lets `optimizer` train with its learning rate times `ratio`.

    Schedules, callbacks and users read `Optimizer.learning_rate`, change it and
    write it back, so a ratio in it would be multiplied again and again. The
    ratio therefore acts only inside `Optimizer.apply`, where a step reads the
    rate for the update and for decoupled weight decay.
    `restore_learning_rate` removes the ratio.

    Args:
        optimizer: An optimizer; those that it wraps are scaled, too.
        ratio: Float above 0.
        count: Function of `update_count` (a tensor) that returns the step at
            which a `LearningRateSchedule` is read.
    """
    for leaf in leaf_optimizers(optimizer):
        rate = _ScaledRate(leaf, ratio, count)
        add_step_hook(leaf, _NAME, rate.step)
        # The private method by which a step and weight decay read the rate.
        vars(leaf)["_get_current_learning_rate"] = rate.current


def restore_learning_rate(optimizer: Optimizer) -> None:
    """Undoes `scale_learning_rate`; does nothing if it was not called."""
    for leaf in leaf_optimizers(optimizer):
        remove_step_hook(leaf, _NAME)
        vars(leaf).pop("_get_current_learning_rate", None)


class _ScaledRate:
    """The learning rate of one optimizer, times a ratio while it steps."""

    def __init__(self, optimizer, ratio, count):
        self._optimizer = optimizer
        self._ratio = ratio
        self._count = count
        # A list, because replicas are threads that synchronize within a step:
        # one thread may have left the step while another is still in it.
        self._steps = []

    def step(self, step, gradients, variables):
        """Runs the step with the scaled rate: a hook for `add_step_hook`."""
        self._steps.append(True)
        try:
            return step(gradients, variables)
        finally:
            self._steps.pop()

    def current(self):
        """Returns the learning rate, scaled while a step runs."""
        optimizer = self._optimizer
        rate = optimizer._learning_rate
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            # As in Keras, steps that only accumulate gradients count as well.
            rate = rate(self._count(optimizer._iterations))
        else:
            rate = type(optimizer)._get_current_learning_rate(optimizer)
        return rate * self._ratio if self._steps else rate


def update_count(optimizer: Optimizer) -> int:
    """Returns the step at which `optimizer` reads a schedule, an integer.

    `Optimizer.iterations` leaves out the steps that only accumulate gradients.
    """
    return int(keras.ops.convert_to_numpy(_first(optimizer)._iterations))


def scheduled_rate(optimizer: Optimizer | None, steps: int = 0) -> float | None:
    """Returns the rate of a later step by a schedule; `None` without one.

    The public `learning_rate` does not tell whether there is a schedule.

    Args:
        optimizer: An optimizer, or `None`.
        steps: Integer, how many steps later; 0 for the next step.
    """
    if optimizer is None:
        return None
    rate = getattr(_first(optimizer), "_learning_rate", None)
    is_schedule = isinstance(
        rate, keras.optimizers.schedules.LearningRateSchedule
    )
    if len(leaf_optimizers(optimizer)) > 1 or not is_schedule:
        return None
    return float(rate(update_count(optimizer) + steps))


def shown_rate(optimizer: Optimizer | None) -> float | None:
    """Returns `Optimizer.learning_rate`, a float; `None` if there is none.

    A `MultiOptimizer` has no learning rate of its own.
    """
    rate = getattr(optimizer, "learning_rate", None)
    return None if rate is None else float(keras.ops.convert_to_numpy(rate))


def _first(optimizer):
    return leaf_optimizers(optimizer)[0]
