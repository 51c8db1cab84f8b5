"""Small networks whose gradients NumPy and a dense model can check."""

import keras
import numpy as np
import tensorflow as tf


def one_layer(layer, shape):
    """A model of nothing but `layer`, whose weights are drawn."""
    image = keras.Input(shape)
    model = keras.Model(image, layer(image))
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape))
    return model


def gradients(model, x, upstream, training=True):
    """The gradients of sum(upstream * model(x)): of x, and of each weight."""
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = model(x, training=training)
        total = tf.reduce_sum(tf.cast(upstream, y.dtype) * y)
    values = [v.value for v in model.trainable_variables]
    found = tape.gradient(total, [x, *values])
    return found if not tf.executing_eagerly() else list(map(np.asarray, found))
