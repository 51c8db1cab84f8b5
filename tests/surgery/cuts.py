"""A small model around any layer, one of whose channels is cut behind it."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_prunetrain import reconfigure

DEAD = 2

# What Keras itself sets on a layer, and writes into no config.
SETTINGS = (
    *("autocast", "supports_jit", "_allow_non_tensor_positional_args"),
    *("_convert_input_args", "_remat_mode", "_supports_masking"),
)


def around(layer, x, after=None):
    """Returns a compiled model that calls `layer` first, on inputs like `x`.

    Its layer "a" has a dead channel. There is no bias, so that the weights of
    a dead channel have no gradient and stay zero.

    Args:
        layer: A function of a tensor.
        x: Array of inputs.
        after: Function that makes something of shape `(batch, channels)` of
            the output of `layer`. By default, flattens it.
    """
    dtype = "string" if x.dtype.kind == "U" else x.dtype
    inputs = keras.Input(x.shape[1:], dtype=dtype)
    h = (after or layers.Flatten())(layer(inputs))
    h = layers.Dense(6, use_bias=False, name="a")(h)
    h = layers.Dense(4, use_bias=False, name="b")(h)
    return compiled(keras.Model(inputs, layers.Dense(3, name="logits")(h)))


def compiled(model):
    """Compiles `model` and kills channel `DEAD` between "a" and "b"."""
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9), "mse", run_eagerly=True
    )
    kill(model)
    return model


def kill(model):
    for name, axis in (("a", -1), ("b", -2)):
        kernel = np.moveaxis(model.get_layer(name).kernel.numpy(), axis, 0)
        kernel[DEAD] = 0.0
        model.get_layer(name).kernel.assign(np.moveaxis(kernel, 0, axis))


def outputs(model, x):
    y = np.asarray(model(tf.constant(x)))
    assert np.ptp(y, axis=0).max() > 1e-3, "the output hardly depends on x"
    return y


def cut(model, x, steps=2):
    """Returns `model` without its dead channel, which is the same function.

    Checked are the outputs, and those after further training of both: also the
    gradients, the slots and what is drawn at random are the same.
    """
    smaller = reconfigure(model)
    assert smaller.get_layer("a").units == 5
    np.testing.assert_allclose(outputs(smaller, x), outputs(model, x), 1e-9)
    y = np.random.default_rng(0).normal(size=(len(x), 3))
    for _ in range(steps):
        for m in (model, smaller):
            m.train_on_batch(tf.constant(x), y)
    np.testing.assert_allclose(outputs(smaller, x), outputs(model, x), 1e-7)
    return smaller


def loaded(model, folder):
    """Returns `model`, saved and loaded."""
    model.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")
