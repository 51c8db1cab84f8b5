"""Sums of first and second derivatives, of which Keras has none."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np


def loss_gradients(
    loss: Callable[[Any], Any],
    variables: Sequence[keras.Variable],
    batches: Sequence[Any],
) -> list[np.ndarray]:
    """Returns the gradient of a sum of losses, a list of arrays.

    Args:
        loss: As of `hessian_products`.
        variables: List of variables, likewise.
        batches: List of structures of tensors or arrays.
    """
    gradient = _gradient_of(loss, [variable.value for variable in variables])
    return [x.numpy() for x in _summed(_traced(gradient), batches)]


def hessian_products(
    loss: Callable[[Any], Any],
    variables: Sequence[keras.Variable],
    batches: Sequence[Any],
    masks: Sequence[np.ndarray | None] | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns the gradient of a sum of losses, and the Hessian times it.

    The product is the gradient of `<g, gradient>` with a constant `g`, so the
    Hessian itself is never made.

    Args:
        loss: Function of a batch that returns a scalar tensor.
        variables: List of variables. One that the loss does not depend on has
            zeros.
        batches: List of structures of tensors or arrays.
        masks: For each variable, an array by which the gradient is multiplied
            before the Hessian is, or `None`. Defaults to `None` for all.

    Returns:
        Two lists of arrays, one for each of `variables`.

    Raises:
        LookupError: If an operation has no second derivative.
    """
    import tensorflow as tf

    values = [variable.value for variable in variables]
    gradient = _gradient_of(loss, values)

    def product(batch, direction):
        with tf.GradientTape() as tape:
            inner = gradient(batch)
            flow = sum(
                tf.cast(tf.reduce_sum(a * b), keras.config.floatx())
                for a, b in zip(inner, direction, strict=True)
            )
        return _derivatives(tape, flow, values)

    gradients = _summed(_traced(gradient), batches)
    if masks is not None:
        gradients = [
            g if mask is None else g * tf.cast(mask, g.dtype)
            for g, mask in zip(gradients, masks, strict=True)
        ]
    try:
        products = _summed(_traced(product), batches, gradients)
    except (tf.errors.NotFoundError, tf.errors.UnimplementedError) as error:
        # Of operations whose gradient is found out only as it is computed.
        node = re.search(r"Detected at node (\S+)", str(error))
        raise LookupError(node[1] if node else str(error)) from error
    return [x.numpy() for x in gradients], [x.numpy() for x in products]


def _gradient_of(loss, values):
    import tensorflow as tf

    def gradient(batch):
        with tf.GradientTape() as tape:
            value = loss(batch)
        return _derivatives(tape, value, values)

    return gradient


def _traced(function):
    import tensorflow as tf

    # TensorFlow counts the traces of one piece of code, and warns of loops
    # that make functions anew. A `partial` has no code of its own.
    return tf.function(
        functools.partial(function),
        reduce_retracing=True,
        # As Keras's trainer: layers are converted by Keras, if at all.
        autograph=False,
    )


def _derivatives(tape, target, sources):
    import tensorflow as tf

    found = tape.gradient(target, sources, unconnected_gradients="zero")
    # The gradient of an `Embedding` consists of the rows that were looked up.
    return [tf.convert_to_tensor(x) for x in found]


def _summed(function, batches, *arguments):
    """Returns the sums of the results of a function over all batches."""
    total = None
    for batch in batches:
        found = [
            keras.ops.convert_to_tensor(x) for x in function(batch, *arguments)
        ]
        total = (
            found
            if total is None
            else [a + b for a, b in zip(total, found, strict=True)]
        )
    return total
