import keras
import numpy as np
import pytest
import tensorflow as tf


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_grouped_convolution_by_group_is_that_of_keras(strides, padding):
    layer = keras.layers.Conv2D(
        6, 3, strides, padding, groups=2, dilation_rate=3 - strides
    )
    x = tf.constant(np.random.default_rng(0).normal(size=(2, 7, 7, 4)))
    layer.build(x.shape)

    def result():
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_sum(y**3)
        return y, *tape.gradient(loss, [x, layer.kernel.value])

    whole = tf.function(result)()
    for found, expected in zip(result(), whole, strict=True):
        assert np.ptp(expected) > 0.1
        np.testing.assert_allclose(found, expected, atol=1e-12)
