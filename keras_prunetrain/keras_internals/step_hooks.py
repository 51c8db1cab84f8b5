"""Hooks around an optimizer's step, inside the train step.

Keras has no public place to act between the gradients of a step and its update,
or behind the update. Here an optimizer object gets an `apply` of its own, which
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

    A step that is traced already does not change: make the train function anew.

    Args:
        optimizer: An optimizer that wraps no other (`leaf_optimizers`).
        name: String. A hook of the same name is replaced and keeps its place
            in the order; a new one acts inside of those that are there.
        hook: Function of `step, gradients, variables` that calls
            `step(gradients, variables)` once, which does the rest: the inner
            hooks and the update. `gradients` and `variables` are lists of equal
            length. The hook may change the gradients before, and assign
            variables afterwards. Replicas run it in threads of their own.
    """
    hooked = vars(optimizer).get("apply")
    if hooked is None:
        hooked = vars(optimizer)["apply"] = _HookedApply(optimizer)
    hooked.hooks[name] = hook


def remove_step_hook(optimizer: Optimizer, name: str) -> None:
    """Takes the hook `name` off again; does nothing if there is none."""
    hooked = vars(optimizer).get("apply")
    if hooked is not None:
        hooked.hooks.pop(name, None)
        if not hooked.hooks:
            del vars(optimizer)["apply"]


class _HookedApply:
    """Takes the place of `Optimizer.apply` in one object.

    Attributes:
        hooks: Dict from names to hooks, the outermost first.
    """

    def __init__(self, optimizer):
        self.hooks = {}
        self._optimizer = optimizer

    def __call__(self, grads, trainable_variables=None):
        # As in Keras, which calls this an update of all variables.
        if trainable_variables is None:
            trainable_variables = self._optimizer._trainable_variables
        step = functools.partial(type(self._optimizer).apply, self._optimizer)
        for hook in reversed(self.hooks.values()):
            step = functools.partial(hook, step)
        return step(list(grads), list(trainable_variables))
