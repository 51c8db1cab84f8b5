"""Low-light enhancement: curves for each pixel, learned without a target."""

import keras
import pytest
import tensorflow as tf
from keras import layers, ops

from tests.programs.watched import descend, images, kinds, trained


class Enhancer(keras.Model):
    """Trains a network of curves by four losses on what they make of images."""

    def __init__(self, curves):
        super().__init__()
        self.curves = curves

    def compile(self, learning_rate, **kwargs):
        super().compile(**kwargs)
        self.optimizer = keras.optimizers.Adam(learning_rate)

    def call(self, x):
        return brightened(x, self.curves(x))

    def losses_of(self, x):
        curves = self.curves(x)
        bright = brightened(x, curves)
        losses = {
            "colour": colour_loss(bright),
            "exposure": exposure_loss(bright),
            "smoothness": smoothness_loss(curves),
            "contrast": contrast_loss(x, bright),
        }
        return {"loss": sum(losses.values())} | losses

    def train_step(self, x):
        with tf.GradientTape() as tape:
            losses = self.losses_of(x)
        weights = self.curves.trainable_weights
        descend(tape, losses["loss"], weights, self.optimizer)
        return losses

    def test_step(self, x):
        return self.losses_of(x)


def brightened(x, curves):
    """Applies two curves, of three colours each, one after the other."""
    for curve in ops.split(curves, 2, axis=-1):
        x = x + curve * (ops.square(x) - x)
    return x


def colour_loss(x):
    """The mean colour of an image is to be grey."""
    r, g, b = ops.unstack(ops.mean(x, axis=(1, 2)), axis=-1)
    return ops.mean(ops.square(r - g) + ops.square(g - b) + ops.square(b - r))


def exposure_loss(x):
    """Each patch is to be neither dark nor bright."""
    patches = ops.average_pool(ops.mean(x, axis=-1, keepdims=True), 4)
    return ops.mean(ops.square(patches - 0.6))


def smoothness_loss(curves):
    """Neighbours are to have like curves."""
    down = ops.square(curves[:, 1:] - curves[:, :-1])
    across = ops.square(curves[:, :, 1:] - curves[:, :, :-1])
    return ops.mean(down) + ops.mean(across)


def contrast_loss(x, bright):
    """Differences between neighbours are to stay what they were."""
    grey, light = ops.mean(x, axis=-1), ops.mean(bright, axis=-1)
    change = (light - grey)[:, :, 1:] - (light - grey)[:, :, :-1]
    return ops.mean(ops.square(change))


def curves():
    """Convolutions that later ones read again, beside what they have made."""
    image = keras.Input((None, None, 3))
    a = layers.Conv2D(8, 3, padding="same", activation="relu")(image)
    b = layers.Conv2D(8, 3, padding="same", activation="relu")(a)
    c = layers.Conv2D(8, 3, padding="same", activation="relu")(b)
    x = layers.Concatenate()([b, c])
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    x = layers.Concatenate()([a, x])
    x = layers.Conv2D(6, 3, padding="same", activation="tanh", name="last")(x)
    return keras.Model(image, x, name="curves")


@pytest.mark.long
@kinds()
def test_curves_that_brighten_images_shrink(callback, float64):
    model = Enhancer(curves())
    model.compile(1e-3, run_eagerly=True)
    data = images(32, 8, 8, 3) / 4.0
    history = trained(
        callback, model, lambda x: [x.curves], data, validation_data=(data,)
    )
    assert len(history["val_exposure"]) == 3
    assert model.predict(data, verbose=0).shape == data.shape
    assert model.curves.get_layer("last").filters == 6
