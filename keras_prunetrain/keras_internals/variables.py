"""Names of variables, and faster ways to read and to make variables."""

import re
from typing import Any

import keras
import numpy as np


def weight_name(weight: keras.Variable) -> str:
    """Returns the name that a layer gave to `weight`; "variable" if none.

    Keras numbers the variables without a name, across all layers of a process.
    """
    return re.sub(r"^variable_\d+$", "variable", weight.name)


def values_of(variable: keras.Variable) -> np.ndarray:
    """Returns the values of `variable` as an array.

    `convert_to_numpy` copies a tensor of TensorFlow twice and a variable three
    times, which is slow for a large model; this function copies once.
    """
    tensor = keras.ops.convert_to_tensor(variable)
    if keras.config.backend() == "tensorflow":
        return np.asarray(tensor)
    return keras.ops.convert_to_numpy(tensor)


class Unfilled(keras.initializers.Zeros):
    """Allocates memory for a variable whose values will be assigned later.

    In a large model, writing zeros takes as long as writing the values.
    """

    def __call__(self, shape, dtype=None):
        if keras.config.backend() != "tensorflow":
            return super().__call__(shape, dtype)
        import tensorflow as tf

        # TensorFlow takes three times as long with a tuple.
        shape = np.array(shape, "int32")
        dtype = tf.as_dtype(keras.backend.standardize_dtype(dtype))
        return tf.raw_ops.Empty(shape=shape, dtype=dtype)


def precise(value: Any) -> Any:
    """Returns a variable or an array as a tensor, in float32 or better."""
    value = keras.ops.convert_to_tensor(value)
    if keras.backend.standardize_dtype(value.dtype) == "float64":
        return value
    return keras.ops.cast(value, "float32")
