"""Grouped convolutions that do not wait for a compiler."""

import functools

import keras
import tensorflow as tf
from keras.src.backend.tensorflow import nn


def split_grouped_convolutions():
    """Lets grouped convolutions outside of functions be computed by group.

    On a CPU, Keras has XLA compile a grouped convolution, and outside of a
    function it does so anew at each call: a quarter of a second each, which
    was most of the time of the tests that call such models eagerly. Functions,
    and with them `fit`, go on with Keras's own operation.
    """
    whole = nn.conv

    @functools.wraps(whole)
    def conv(inputs, kernel, *args, **kwargs):
        groups = inputs.shape[-1] // kernel.shape[-2]
        is_last = "channels_first" not in (*args, *kwargs.values())
        if groups == 1 or not is_last or not tf.executing_eagerly():
            return whole(inputs, kernel, *args, **kwargs)
        kernel = keras.ops.convert_to_tensor(kernel)
        groups = zip(
            tf.split(inputs, groups, axis=-1),
            tf.split(kernel, groups, axis=-1),
            strict=True,
        )
        return tf.concat(
            [whole(x, k, *args, **kwargs) for x, k in groups], axis=-1
        )

    nn.conv = conv
