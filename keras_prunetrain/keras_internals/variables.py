"""What Keras does to variables, and a faster way to do it."""

import re

import keras
import numpy as np


def weight_name(weight: keras.Variable) -> str:
    """Returns the name that a layer gave to `weight`; "variable" if none.

    Keras tells those without a name apart by a number, in all layers of a
    process together.
    """
    return re.sub(r"^variable_\d+$", "variable", weight.name)


def values_of(variable: keras.Variable) -> np.ndarray:
    """Returns the values of `variable` as an array.

    `convert_to_numpy` copies a tensor of TensorFlow twice and a variable three
    times, which takes a large model as long as all the rest; this once.
    """
    tensor = keras.ops.convert_to_tensor(variable)
    if keras.config.backend() == "tensorflow":
        return np.asarray(tensor)
    return keras.ops.convert_to_numpy(tensor)


class Unfilled(keras.initializers.Zeros):
    """Takes memory for a variable that is going to be assigned, not more.

    Writing zeros into it takes a large model as long as its values.
    """

    def __call__(self, shape, dtype=None):
        if keras.config.backend() != "tensorflow":
            return super().__call__(shape, dtype)
        import tensorflow as tf

        # As an array: a tuple takes TensorFlow three times as long.
        shape = np.array(shape, "int32")
        dtype = tf.as_dtype(keras.backend.standardize_dtype(dtype))
        return tf.raw_ops.Empty(shape=shape, dtype=dtype)
