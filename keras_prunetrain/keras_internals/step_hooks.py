"""Hooks around an optimizer's step, inside the train step.

Keras has no public hook between the gradients of a step and the update, or
after the update. Here an optimizer object gets an `apply` of its own, which
runs an ordered list of hooks around the `apply` of its class.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras.optimizers import Optimizer

# Takes the gradients and the variables, and does the rest of the step.
Step = Callable[[list[Any], list[keras.Variable]], Any]
StepHook = Callable[[Step, list[Any], list[keras.Variable]], Any]


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
    hooked = vars(optimizer).get("apply")
    if hooked is None:
        hooked = vars(optimizer)["apply"] = _HookedApply(optimizer)
    hooked.hooks[name] = hook


def remove_step_hook(optimizer: Optimizer, name: str) -> None:
    """Removes the hook `name`; does nothing if there is none."""
    hooked = vars(optimizer).get("apply")
    if hooked is not None:
        hooked.hooks.pop(name, None)
        if not hooked.hooks:
            del vars(optimizer)["apply"]


class _HookedApply:
    """Replaces `Optimizer.apply` in one object.

    Attributes:
        hooks: Dict from names to hooks, the outermost first.
    """

    def __init__(self, optimizer):
        self.hooks = {}
        self._optimizer = optimizer

    def __call__(self, grads, trainable_variables=None):
        # As in Keras, `None` stands for all variables.
        if trainable_variables is None:
            trainable_variables = self._optimizer._trainable_variables
        step = functools.partial(type(self._optimizer).apply, self._optimizer)
        for hook in reversed(self.hooks.values()):
            step = functools.partial(hook, step)
        return step(list(grads), list(trainable_variables))
