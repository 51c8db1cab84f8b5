"""How many bytes variables take."""

import math
import re

import keras


def gradient_bytes(model):
    """Returns the bytes of all gradients of `model`, one per trainable weight.

    That is what devices exchange in each update.
    """
    return variable_bytes(model.trainable_variables)


def variable_bytes(variables):
    """Returns the bytes of a list of `keras.Variable`s."""
    return sum(math.prod(v.shape) * item_bytes(v.dtype) for v in variables)


def item_bytes(dtype):
    """Returns the bytes of one number of `dtype`."""
    bits = re.search(r"\d+", keras.backend.standardize_dtype(dtype))
    # "bool" has no number of bits in its name and takes a byte.
    return int(bits[0]) // 8 if bits else 1
