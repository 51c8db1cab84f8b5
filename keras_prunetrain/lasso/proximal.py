"""The proximal step of the group lasso, behind each update of an optimizer.

A proximal step moves weights to where they minimize

    factor * (sum of the groups' norms) + distance ** 2 / (2 * step size)

For groups that do not overlap this is the soft threshold: each group becomes
shorter by `threshold = step size * factor`, and exactly zero if it is no longer
than that. The groups of a kernel's two sides overlap. The two soft thresholds
are done one after the other, first for the channels that the kernel reads, then
for those that it writes. This is not the exact proximal step of the sum of both
penalties, but to first order in the threshold it is, and it leaves a group that
is zero at zero.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_prunetrain import keras_internals
from keras_prunetrain.keras_internals import StepSize
from keras_prunetrain.lasso.group_lasso import BesideLasso

_NAME = "group lasso"


def unfit_optimizer(optimizer: keras.optimizers.Optimizer) -> str:
    """Returns why a proximal step cannot follow the updates of `optimizer`.

    Returns:
        A string, empty if it can.
    """
    for leaf in keras_internals.leaf_optimizers(optimizer):
        kind, name = keras_internals.optimizer_kind(leaf), type(leaf).__name__
        if kind is None:
            return f"the size of the steps of {name} is not known"
        if kind.step_size is None:
            return f"{name} is none that it can follow: {kind.reason}"
    return ""


def check_proximal(model: keras.Model) -> None:
    """Raises a `ValueError` if a proximal step cannot follow its optimizer.

    Args:
        model: A compiled model, before its first step; not modified.
    """
    optimizer = model.optimizer
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        return  # Refused later, by its own message.
    if not optimizer.built:  # Only then are all of its members known.
        optimizer = keras_internals.copy_optimizer(optimizer)
        optimizer.build(model.trainable_variables)
    reason = unfit_optimizer(optimizer)
    if reason:
        raise ValueError(
            "solver='proximal' lets a step of the lasso follow each update of "
            f"the optimizer, but {reason}. Pass solver='subgradient', or "
            "compile with another optimizer, such as Adam or SGD."
        )


def prefers_proximal(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether a penalty in the loss would not bring weights to rest at zero.

    Of several optimizers in one, one that prefers it decides, if all allow it.
    """
    kinds = map(
        keras_internals.optimizer_kind,
        keras_internals.leaf_optimizers(optimizer),
    )
    return not unfit_optimizer(optimizer) and any(
        kind.solver == "proximal" for kind in kinds
    )


def accumulates(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether the first step of `optimizer` may have no update."""
    return any(
        leaf.gradient_accumulation_steps
        for leaf in keras_internals.leaf_optimizers(optimizer)
    )


class ProximalSteps:
    """Lets a proximal step follow each update of an optimizer.

    The steps act on the kernels that carry a `BesideLasso` which is not in the
    loss, with its factor.

    Args:
        optimizer: A built optimizer that `unfit_optimizer` finds fit.

    Attributes:
        were_done: Boolean. Whether an update of such a kernel was followed by a
            step, or was traced with one. May be set.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer):
        self.were_done = False
        self._leaves = keras_internals.leaf_optimizers(optimizer)

    def begin(self) -> None:
        """Lets the steps follow the updates from now on."""
        for leaf in self._leaves:
            hook = _Hook(self, leaf)
            keras_internals.add_update_hook(leaf, _NAME, hook)

    def end(self) -> None:
        """Leaves the optimizer as it was."""
        for leaf in self._leaves:
            keras_internals.remove_update_hook(leaf, _NAME)


class _Hook:
    """The proximal steps behind the updates of one optimizer."""

    def __init__(self, steps, optimizer):
        self._steps = steps
        self._optimizer = optimizer
        self._kind = keras_internals.optimizer_kind(optimizer)

    def __call__(self, update, gradients, variables, rate):
        update(gradients, variables, rate)
        kernels = [v for v in variables if _is_proximal(v.regularizer)]
        values = []
        for kernel in kernels:
            now = ops.convert_to_tensor(rate)
            size = self._kind.step_size(self._optimizer, kernel, now)
            lasso = kernel.regularizer.lasso
            axes = [axis % len(kernel.shape) for axis in lasso.axes]
            value = shrunk(kernel, sorted(axes), lasso.scale, size)
            values.append(ops.cast(value, kernel.dtype))
        keras_internals.update_in_step(
            self._optimizer, kernels, lambda _, value: value, values
        )
        if kernels:
            self._steps.were_done = True


def _is_proximal(regularizer):
    return isinstance(regularizer, BesideLasso) and not regularizer.in_loss


def shrunk(
    kernel: Any, axes: Sequence[int], factor: Any, size: StepSize
) -> Any:
    """Returns a kernel after the proximal step of its group lasso.

    Args:
        kernel: Float tensor or variable.
        axes: List of ints, at least 0: the axes along which the channels lie,
            in the order of their soft thresholds.
        factor: Scalar, at least 0. The factor of the lasso.
        size: The `StepSize` of the optimizer. Where the size differs between
            the weights of a group, the root of the mean square counts: the step
            is the exact one for an optimizer that scales the whole group by it.

    Returns:
        Tensor like `kernel`, in float32 or better.
    """
    kernel = _precise(kernel)
    factor, rate = (ops.cast(x, kernel.dtype) for x in (factor, size.rate))
    rank = len(kernel.shape)
    # First over the axes that all norms sum over: the pixels of a convolution.
    pixels = [axis for axis in range(rank) if axis not in axes]
    squares = _sum(ops.square(kernel), pixels)
    steps = None
    if size.squares is not None:
        steps = _sum(_precise(size.squares), pixels)
    weights = 1
    for n in kernel.shape:
        weights *= n
    scale = 1.0
    for axis in axes:
        others = [other for other in axes if other != axis]
        in_group = weights // kernel.shape[axis]
        mean = None if steps is None else _sum(steps, others) / in_group
        threshold = thresholds(factor, in_group, rate, mean, size.epsilon)
        ratio = soft_ratio(ops.sqrt(_sum(squares, others)), threshold)
        squares = squares * ops.square(ratio)
        scale = scale * ratio
    return kernel * scale


def thresholds(
    factor: Any, in_group: Any, rate: Any, squares: Any, epsilon: float
) -> Any:
    """Returns by how much a step shortens groups.

    Args:
        factor: Tensor, at least 0. The factor of each group's norm.
        in_group: Int or tensor. The number of the weights in each group.
        rate: Tensor. That of a `StepSize`.
        squares: Tensor. The mean of the `squares` of a `StepSize` in each
            group; `None` if it has none.
        epsilon: Float. That of a `StepSize`.

    Returns:
        Tensor, broadcast from the arguments.
    """
    if squares is None:
        return rate * factor
    # Where the task has no gradient, that of the penalty is the only one, and
    # its mean square in a group is this: it divides the step as the gradient of
    # the task does elsewhere, so no step is longer than one of the optimizer.
    least = ops.square(factor) / in_group
    return rate * factor / (ops.sqrt(ops.maximum(squares, least)) + epsilon)


def soft_ratio(norms: Any, thresholds: Any) -> Any:
    """Returns by what to multiply groups, so that they lose `thresholds`.

    Args:
        norms: Tensor, at least 0. The length of each group.
        thresholds: Tensor, at least 0.

    Returns:
        Tensor in [0, 1]; exactly 0 where a group is no longer than that.
    """
    stays = norms > thresholds
    return ops.where(
        stays, 1.0 - thresholds / ops.where(stays, norms, 1.0), 0.0
    )


def _precise(x):
    x = ops.convert_to_tensor(x)
    if keras.backend.standardize_dtype(x.dtype) == "float64":
        return x
    return ops.cast(x, "float32")


def _sum(x, axes):
    return ops.sum(x, axis=axes, keepdims=True) if axes else x
