"""Hooks around an optimizer's step, inside the train step.

Keras has no public hook between the gradients of a step and the update, or
after the update. Here an optimizer object gets a method of its own in the place
of one of its class, which runs an ordered list of hooks around that method:

* `Optimizer.apply` for hooks around a step: all that the optimizer does with
  the gradients of a batch;
* `Optimizer._backend_update_step` for hooks around an update. Keras calls it
  with gradients that are accumulated and clipped, once weights have decayed,
  and before it averages weights (`use_ema`). A step that only accumulates
  gradients has no update.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras.optimizers import Optimizer

# Takes the gradients and the variables, and does the rest of the step.
Step = Callable[[list[Any], list[keras.Variable]], Any]
StepHook = Callable[[Step, list[Any], list[keras.Variable]], Any]
# Takes the gradients, the variables and the learning rate.
Update = Callable[[list[Any], list[keras.Variable], Any], Any]
UpdateHook = Callable[[Update, list[Any], list[keras.Variable], Any], Any]

_STEP, _UPDATE = "apply", "_backend_update_step"


def add_step_hook(optimizer: Optimizer, name: str, hook: StepHook) -> None:
    """Lets `hook` act around every step of `optimizer`, traced or eager.

    A train function that is traced already does not change; make it anew.

    Args:
        optimizer: An optimizer that wraps no other (`leaf_optimizers`).
        name: String. A hook of the same name is replaced and keeps its place
            in the order; a new hook acts inside of the existing ones.
        hook: Function of `step, gradients, variables`. It calls
            `step(gradients, variables)` once, which runs the inner hooks and
            the update. `gradients` and `variables` are lists of equal length.
            The hook may change the gradients before this call, and assign
            variables after it. Each replica runs the hook in its own thread.
    """
    _hooked(optimizer, _STEP, _HookedApply).hooks[name] = hook


def remove_step_hook(optimizer: Optimizer, name: str) -> None:
    """Removes the hook `name`; does nothing if there is none."""
    _remove(optimizer, _STEP, name)


def add_update_hook(optimizer: Optimizer, name: str, hook: UpdateHook) -> None:
    """Lets `hook` act around every update of `optimizer`, traced or eager.

    Args:
        optimizer: As of `add_step_hook`.
        name: As of `add_step_hook`.
        hook: Function of `update, gradients, variables, rate`. It calls
            `update(gradients, variables, rate)` once. `rate` is the learning
            rate of this update, a scalar: that of a schedule, and scaled with
            the batch. The hook assigns variables by `update_in_step`.
    """
    _hooked(optimizer, _UPDATE, _HookedUpdate).hooks[name] = hook


def remove_update_hook(optimizer: Optimizer, name: str) -> None:
    """Removes the hook `name`; does nothing if there is none."""
    _remove(optimizer, _UPDATE, name)


def _hooked(optimizer, method, kind):
    if method not in vars(optimizer):
        vars(optimizer)[method] = kind(optimizer)
    return vars(optimizer)[method]


def _remove(optimizer, method, name):
    hooked = vars(optimizer).get(method)
    if hooked is not None:
        hooked.hooks.pop(name, None)
        if not hooked.hooks:
            del vars(optimizer)[method]


class _Hooked:
    """Replaces a method in one optimizer.

    Attributes:
        hooks: Dict from names to hooks, the outermost first.
    """

    def __init__(self, optimizer):
        self.hooks = {}
        self._optimizer = optimizer

    def _around(self, method):
        of_class = getattr(type(self._optimizer), method)
        step = functools.partial(of_class, self._optimizer)
        for hook in reversed(self.hooks.values()):
            step = functools.partial(hook, step)
        return step


class _HookedApply(_Hooked):
    """Replaces `Optimizer.apply`."""

    def __call__(self, grads, trainable_variables=None):
        # As in Keras, `None` stands for all variables.
        if trainable_variables is None:
            trainable_variables = self._optimizer._trainable_variables
        return self._around(_STEP)(list(grads), list(trainable_variables))


class _HookedUpdate(_Hooked):
    """Replaces `Optimizer._backend_update_step`."""

    def __call__(self, grads, trainable_variables, learning_rate):
        return self._around(_UPDATE)(
            list(grads), list(trainable_variables), learning_rate
        )
