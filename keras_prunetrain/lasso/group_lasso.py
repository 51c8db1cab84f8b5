"""The penalty that makes channels removable."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_prunetrain.checks import is_integer, is_number


@keras.saving.register_keras_serializable(package="keras_prunetrain")
class GroupLasso(keras.regularizers.Regularizer):
    """Pushes whole channels of a kernel to zero, so that they can be removed.

    The weights of one channel form a group. The penalty is the sum of the
    groups' L2 norms (paper, Eq. 2):

        penalty(kernel) = factor * sum(norm(group) for group in kernel)

    An L2 penalty pulls less and less on a channel that shrinks. The norm pulls
    equally hard all the way down, so a channel that the task loss does not
    defend arrives at zero as a whole, and `reconfigure` can cut it out.

    `factor` can be assigned during training: the compiled train step reads the
    new value without being traced again.

    Args:
        factor: Float, at least 0. Strength of the penalty, lambda in the paper.
            Defaults to 0: no penalty, until `PruneTrainCallback` sets one.
        axes: Tuple of ints. Kernel axes along which the channels lie. Keras
            kernels end in `(..., in_channels, out_channels)`, so the default
            `(-2, -1)` penalizes both sides. Use `(-1,)` in the layer that reads
            the images and `(-2,)` in the layer that writes the logits: the
            other side of each has to keep its size.

    Call arguments:
        kernel: Float tensor, shape `(..., in_channels, out_channels)`.

    Returns:
        The penalty, a scalar, computed in float32 or better; in Keras's
        `floatx`, as losses are.

    Raises:
        ValueError: If `factor` is no number in `[0, 3.4e38]`, if `axes` holds
            anything but integers, or none, or one twice; in a call, if the
            kernel has no such axis.

    Example:

    >>> lasso = GroupLasso(factor=2.0, axes=(-1,))
    >>> kernel = ops.array([[3.0, 6.0], [4.0, 8.0]])  # column norms: 5, 10
    >>> round(float(lasso(kernel)), 4)
    30.0

    References:
        - [Lym et al., 2019](https://arxiv.org/abs/1901.09290), PruneTrain.
        - [Yuan and Lin, 2006](https://doi.org/10.1111/j.1467-9868.2005.00532.x),
          the group lasso.
    """

    def __init__(self, factor: float = 0.0, axes: Sequence[int] = (-2, -1)):
        self.axes = _checked_axes(axes)
        # Whether the penalty was asked for, and whether its gradient was
        # computed. The training that uses the lasso resets and reads both.
        self.was_called = self.was_differentiated = False
        # A variable, because `tf.function` would freeze a float at trace time.
        self._factor = keras.Variable(
            _checked_factor(factor),
            trainable=False,
            dtype="float32",
            name="group_lasso_factor",
        )

    @property
    def factor(self) -> float:
        # Not `float(self._factor)`, which fails for tf.distribute's variables.
        return float(ops.convert_to_numpy(self._factor))

    @factor.setter
    def factor(self, value: float) -> None:
        self._factor.assign(_checked_factor(value))

    @property
    def scale(self) -> Any:
        """The factor as a tensor, which a compiled step reads each time."""
        return ops.convert_to_tensor(self._factor)

    def __call__(self, kernel):
        self.was_called = True
        penalty = self.unscaled(kernel)
        return ops.cast(self._factor, penalty.dtype) * penalty

    def unscaled(self, kernel: Any) -> Any:
        """Returns the penalty at `factor=1`: the sum of all group norms."""
        axes = _axes_of(kernel, self.axes)
        if keras.backend.standardize_dtype(kernel.dtype) != "float64":
            kernel = ops.cast(kernel, "float32")
        kernel = ops.convert_to_tensor(kernel)
        penalty = _sum_of_norms(kernel, axes, self._note_gradient)
        # Keras adds penalties to losses, and casts neither.
        return ops.cast(penalty, keras.config.floatx())

    def _note_gradient(self):
        self.was_differentiated = True

    def get_config(self):
        return {"factor": self.factor, "axes": list(self.axes)}


class BesideLasso(keras.regularizers.Regularizer):
    """Adds a `GroupLasso` to the regularizer that a kernel has already.

    A Keras variable has one regularizer. A `BesideLasso` is on the variable
    only while `fit` runs, and in no layer's config.

    Args:
        own: The kernel's own regularizer, or `None`.
        lasso: A `GroupLasso`; `own` itself if the kernel has its lasso already.
        in_loss: Boolean. Whether the lasso is a penalty in the loss. If not,
            something else has to act on the kernel for it.
    """

    def __init__(
        self,
        own: Callable[[Any], Any] | None,
        lasso: GroupLasso,
        in_loss: bool = True,
    ):
        self.own = own
        self.lasso = lasso
        self.in_loss = in_loss

    def __call__(self, kernel):
        others = None if self.own in (None, self.lasso) else self.own
        if not self.in_loss:
            self.lasso.was_called = True
            none = ops.zeros((), keras.config.floatx())
            return none if others is None else others(kernel)
        penalty = self.lasso(kernel)
        if others is None:
            return penalty
        return penalty + ops.cast(others(kernel), penalty.dtype)


def _sum_of_norms(kernel, axes, on_gradient):
    """Returns the sum of the L2 norms of all slices along each of `axes`.

    Calls `on_gradient()` whenever its gradient is asked for.
    """
    norms = _norms(kernel, axes)

    # The gradient is written out, because the automatic gradient of the norms
    # creates several tensors of the kernel's size for each axis.
    @ops.custom_gradient
    def sum_of_norms(kernel):
        def gradient(*args, upstream=None):
            on_gradient()
            upstream = args[0] if upstream is None else upstream
            # In this order, only one product has the size of the kernel.
            return kernel * (upstream * sum(1.0 / norm for norm in norms))

        return sum(ops.sum(norm) for norm in norms), gradient

    return sum_of_norms(kernel)


def _norms(kernel, axes):
    """Returns a list, for each of `axes`, of the norms of its slices.

    Their shape is 1 on all other axes.
    """
    # First over the axes that all norms sum over: the pixels of a convolution.
    squares = sum_over(
        ops.square(kernel), set(range(len(kernel.shape))) - set(axes)
    )
    # The authors' 1e-8: without it the slope at 0 is infinite (NaN gradients
    # where removed channels sit), and with it a channel comes to rest below
    # the threshold of 1e-4 instead of jumping to and fro across zero.
    return [
        ops.sqrt(sum_over(squares, set(axes) - {axis}) + 1e-8) for axis in axes
    ]


def sum_over(x: Any, axes: Collection[int]) -> Any:
    """Returns the sum of a tensor over `axes`, which become 1 long."""
    return ops.sum(x, axis=sorted(axes), keepdims=True) if axes else x


def _checked_factor(factor: Any) -> float:
    """Returns `factor` as a float that float32 can hold."""
    largest = float(np.finfo("float32").max)
    if not is_number(factor) or not 0.0 <= factor <= largest:
        raise ValueError(
            "`factor` of GroupLasso must be a number between 0 and "
            f"{largest:.2g}. Received: factor={factor!r}"
        )
    return float(factor)


def _checked_axes(axes: Any) -> tuple[int, ...]:
    """Returns `axes` as ints; raises a `ValueError` if they are no axes."""
    try:
        found = tuple(axes)
    except TypeError:
        found = ()
    are_integers = all(map(is_integer, found))
    if not found or not are_integers or len(set(found)) < len(found):
        raise ValueError(
            "`axes` of GroupLasso must be a tuple of one or more axes of the "
            "kernel, integers, each of them once. "
            f"Received: axes={axes!r}"
        )
    return tuple(map(int, found))


def _axes_of(kernel: Any, axes: tuple[int, ...]) -> list[int]:
    """Returns `axes` of `kernel`, each at least 0."""
    if not hasattr(kernel, "shape"):
        raise ValueError(
            "GroupLasso must be called on a kernel, an array or a tensor. "
            f"Received: kernel={kernel!r}"
        )
    rank = len(kernel.shape)
    found = [axis % rank for axis in axes if -rank <= axis < rank]
    if len(set(found)) < len(axes):
        raise ValueError(
            f"GroupLasso(axes={axes}) was called on a kernel of shape "
            f"{tuple(kernel.shape)}. Expected: axes that the kernel has, and "
            f"each of them once, in [{-rank}, {rank - 1}]."
        )
    return found
