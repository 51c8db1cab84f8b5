"""The proximal step of the group lasso.

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

from keras import ops

from keras_prunetrain.keras_internals import StepSize, precise
from keras_prunetrain.lasso.group_lasso import sum_over


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
    kernel = precise(kernel)
    factor, rate = (ops.cast(x, kernel.dtype) for x in (factor, size.rate))
    rank = len(kernel.shape)
    # First over the axes that all norms sum over: the pixels of a convolution.
    pixels = [axis for axis in range(rank) if axis not in axes]
    squares = sum_over(ops.square(kernel), pixels)
    steps = None
    if size.squares is not None:
        steps = sum_over(precise(size.squares), pixels)
    weights = 1
    for n in kernel.shape:
        weights *= n
    scale = 1.0
    for axis in axes:
        others = [other for other in axes if other != axis]
        in_group = weights // kernel.shape[axis]
        mean = None if steps is None else sum_over(steps, others) / in_group
        threshold = thresholds(factor, in_group, rate, mean, size.epsilon)
        ratio = soft_ratio(ops.sqrt(sum_over(squares, others)), threshold)
        squares = squares * ops.square(ratio)
        scale = scale * ratio
    return kernel * scale


def thresholds(
    factor: Any, in_group: Any, rate: Any, squares: Any, epsilon: Any
) -> Any:
    """Returns by how much a step shortens groups.

    Args:
        factor: Tensor, at least 0. The factor of each group's norm.
        in_group: Int or tensor. The number of the weights in each group.
        rate: Tensor. That of a `StepSize`.
        squares: Tensor. The mean of the `squares` of a `StepSize` in each
            group; `None` if it has none.
        epsilon: Float or tensor. That of a `StepSize`.

    Returns:
        Tensor, broadcast from the arguments.
    """
    if squares is None:
        return rate * factor
    # Where the task has no gradient, that of the penalty is the only one, and
    # its mean square in a group is this: it divides the step as the gradient of
    # the task does elsewhere, so no step is longer than one of the optimizer.
    least = ops.square(factor) / in_group
    root = ops.sqrt(ops.maximum(squares, least))
    # A tensor, in Adam, of the dtype of the whole program.
    return rate * factor / (root + ops.cast(epsilon, root.dtype))


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
