"""The steps of the group lasso around each update of an optimizer."""

import functools
from collections.abc import Iterable, Sequence

import keras
from keras import ops
from keras.optimizers import Optimizer

from keras_prunetrain import keras_internals
from keras_prunetrain.lasso.group_lasso import BesideLasso
from keras_prunetrain.lasso.proximal import shrunk
from keras_prunetrain.trainers import optimizers_of, updating_optimizers

_NAME = "group lasso"


def unfit_optimizer(leaves: Iterable[Optimizer]) -> str:
    """Returns why a proximal step cannot follow the updates of optimizers.

    Args:
        leaves: Optimizers that wrap no other, `updating_optimizers`.

    Returns:
        A string, empty if it can follow all of them.
    """
    for leaf in leaves:
        kind, name = keras_internals.optimizer_kind(leaf), type(leaf).__name__
        if kind is None:
            return f"the size of the steps of {name} is not known"
        if kind.step_size is None:
            return f"{name} is none that it can follow: {kind.reason}"
    return ""


def check_proximal(model: keras.Model) -> None:
    """Raises a `ValueError` if a proximal step cannot follow its optimizers.

    Args:
        model: A compiled model, before its first step; not modified.
    """
    leaves = []
    for optimizer in optimizers_of(model):
        if not optimizer.built:  # Only then are all of its members known.
            optimizer = keras_internals.copy_optimizer(optimizer)
            optimizer.build(model.trainable_variables)
        leaves += keras_internals.leaf_optimizers(optimizer)
    reason = unfit_optimizer(leaves)
    if reason:
        raise ValueError(
            "solver='proximal' lets a step of the lasso follow each update of "
            f"the optimizer, but {reason}. Pass solver='subgradient', or "
            "compile with another optimizer, such as Adam or SGD."
        )


def preferred_solver(
    leaves: Sequence[Optimizer], is_trainer: bool = False
) -> str:
    """Returns the solver that `"auto"` stands for.

    Of several optimizers, a single one that needs the proximal solver decides,
    if the steps can follow all of them.

    Args:
        leaves: As of `unfit_optimizer`.
        is_trainer: Boolean. Whether a subclass of `keras.Model` trains models
            that it holds. Few of them have the penalties of these in the loss.
    """
    kinds = map(keras_internals.optimizer_kind, leaves)
    if unfit_optimizer(leaves):
        return "subgradient"
    needed = is_trainer or any(kind.solver == "proximal" for kind in kinds)
    return "proximal" if needed else "subgradient"


def may_skip_updates(model: keras.Model) -> bool:
    """Whether the first step of an optimizer of `model` may have no update.

    Gradients are then accumulated, or overflow with the first loss scale.
    """
    return any(
        isinstance(x, keras.optimizers.LossScaleOptimizer)
        for x in optimizers_of(model)
    ) or any(
        leaf.gradient_accumulation_steps for leaf in updating_optimizers(model)
    )


class LassoSteps:
    """Lets the lasso act around each update of some optimizers.

    It acts on the kernels that carry a `BesideLasso` which is not in the loss,
    with its factor.

    Args:
        leaves: As of `unfit_optimizer`.
        solver: `"proximal"`: a proximal step follows the update, if
            `unfit_optimizer` finds the optimizers fit; `"subgradient"`: the
            gradient of the penalty is added to that of the task.
        replicas: Integer, the number of replicas, which add their gradients.

    Attributes:
        were_done: Boolean. Whether an update of such a kernel had a step, or
            was traced with one.
        groups: The `CoupledGroups` of the model; `None` if each channel of each
            side is a group of its own, which needs the proximal solver. May be
            set; the train function must be made anew then.
    """

    def __init__(
        self,
        leaves: Sequence[Optimizer],
        solver: str = "proximal",
        replicas: int = 1,
    ):
        self.were_done = False
        self.groups = None
        self._solver = solver
        self._replicas = replicas
        self._leaves = leaves

    def begin(self) -> None:
        """Lets the lasso act from now on."""
        for leaf in self._leaves:
            hook = functools.partial(self._update, leaf)
            keras_internals.add_update_hook(leaf, _NAME, hook)

    def end(self) -> None:
        """Leaves the optimizers as they were."""
        self.groups = None
        for leaf in self._leaves:
            keras_internals.remove_update_hook(leaf, _NAME)

    def _update(self, leaf, update, gradients, variables, rate):
        """Runs an update of the optimizer `leaf`: an update hook."""
        kernels = [v for v in variables if _has_steps(v)]
        if not kernels:
            return update(gradients, variables, rate)
        self.were_done = True
        if self._solver == "subgradient":
            gradients = self._with_penalty(kernels, gradients, variables)
            return update(gradients, variables, rate)
        update(gradients, variables, rate)
        values = self._shrunk(leaf, kernels, rate)
        values = [
            ops.cast(value, kernel.dtype)
            for value, kernel in zip(values, kernels, strict=True)
        ]
        keras_internals.update_in_step(
            leaf, kernels, lambda _, value: value, values
        )
        return None

    def _with_penalty(self, kernels, gradients, variables):
        factor = kernels[0].regularizer.lasso.scale / self._replicas
        parts = self.groups.gradients(kernels, factor)
        added = {id(x): part for x, part in zip(kernels, parts, strict=True)}
        return [
            gradient + ops.cast(added[id(v)], gradient.dtype)
            if id(v) in added
            else gradient
            for v, gradient in zip(variables, gradients, strict=True)
        ]

    def _shrunk(self, leaf, kernels, rate):
        """Returns the values of `kernels` after a proximal step."""
        step_size = keras_internals.optimizer_kind(leaf).step_size
        sizes = [step_size(leaf, kernel, rate) for kernel in kernels]
        lassos = [kernel.regularizer.lasso for kernel in kernels]
        if self.groups is not None:
            return self.groups.shrunk(kernels, sizes, lassos[0].scale)
        return [
            shrunk(kernel, _axes(lasso, kernel), lasso.scale, size)
            for kernel, lasso, size in zip(kernels, lassos, sizes, strict=True)
        ]


def _has_steps(variable):
    regularizer = variable.regularizer
    return isinstance(regularizer, BesideLasso) and not regularizer.in_loss


def _axes(lasso, kernel):
    """Returns the axes of `kernel`, the in-side first."""
    return sorted(axis % len(kernel.shape) for axis in lasso.axes)
