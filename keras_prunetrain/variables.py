"""What a variable is, and its bytes."""

import math
import re

import keras

from keras_prunetrain.checks import check_model

_NOT_KERNELS = (
    *("bias", "alpha", "gamma", "beta", "scale"),
    *("moving_mean", "moving_variance", "mean", "variance", "vector_u"),
)


def gradient_bytes(model: keras.Model) -> int:
    """Returns the bytes of all gradients of `model`, one per trainable weight.

    Devices exchange this many bytes in each update (see `communication_bytes`).

    Args:
        model: A `keras.Model` that is built.

    Returns:
        Integer.

    Raises:
        ValueError: If `model` is no model, or has no weights yet.
    """
    check_model(model)
    if not model.built:
        raise ValueError(
            "`gradient_bytes` needs a model with weights. Build a Sequential "
            "by giving it an `Input`, a subclass of `keras.Model` by calling "
            f"it on data. Received: model={model}"
        )
    return variable_bytes(model.trainable_variables)


def is_kernel(weight: keras.Variable) -> bool:
    """Whether a weight is one of a kernel's kind, of which entries may go.

    It has two axes or more, and none of the names that Keras gives to offsets,
    scales and statistics, which some layers (`GRU`, `MultiHeadAttention`) keep
    in several axes.
    """
    return len(weight.shape) >= 2 and weight.name not in _NOT_KERNELS


def variable_bytes(variables: list[keras.Variable]) -> int:
    """Returns the bytes of a list of `keras.Variable`s."""
    return sum(math.prod(v.shape) * item_bytes(v.dtype) for v in variables)


def item_bytes(dtype: str) -> int:
    """Returns the bytes of one number of `dtype`."""
    bits = re.search(r"\d+", keras.backend.standardize_dtype(dtype))
    # "bool" has no number of bits in its name and takes a byte.
    return int(bits[0]) // 8 if bits else 1
