"""Image-to-image translation: parts and optimizers in lists and dicts."""

import keras
import pytest
import tensorflow as tf
from keras import layers, ops

from tests.programs.watched import Target, descend, images, trained


class Cycle(keras.Model):
    """Trains two generators and two discriminators on unpaired images."""

    def __init__(self, generators, discriminators, features):
        super().__init__()
        self.generators, self.discriminators = generators, discriminators
        self.features = features

    def compile(self, optimizers, **kwargs):
        super().compile(**kwargs)
        self.optimizers = optimizers

    def train_step(self, data):
        (both,), losses = data, {}
        with tf.GradientTape() as tape:
            fakes = [g(x) for g, x in zip(self.generators, both, strict=True)]
            back = [
                g(x) for g, x in zip(self.generators, fakes[::-1], strict=True)
            ]
            loss = sum(
                ops.mean(ops.square(self.features(x) - self.features(y)))
                for x, y in zip(both[::-1], back, strict=True)
            )
            for key, fake in zip("ab", fakes, strict=True):
                verdict = self.discriminators[key](fake)
                loss += ops.mean(ops.square(verdict - 1.0))
        weights = [w for g in self.generators for w in g.trainable_weights]
        descend(tape, loss, weights, self.optimizers["generators"])
        losses["loss"] = loss
        for key, fake, real in zip("ab", fakes, both[::-1], strict=True):
            with tf.GradientTape() as tape:
                judge = self.discriminators[key]
                loss = ops.mean(ops.square(judge(real) - 1.0))
                loss += ops.mean(ops.square(judge(fake)))
            weights = judge.trainable_weights
            descend(tape, loss, weights, self.optimizers[key])
            losses[key] = loss
        return losses


def generator(name):
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(image)
    y = layers.Conv2D(6, 3, padding="same", activation="relu")(x)
    x = layers.Add()([x, layers.Conv2D(8, 3, padding="same")(y)])
    x = layers.Conv2D(3, 3, padding="same")(x)
    return keras.Model(image, x, name=name)


def discriminator(name):
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, 2, activation="leaky_relu")(image)
    return keras.Model(image, layers.Conv2D(1, 3)(x), name=name)


def features():
    """A network of the loss alone; not trained, and left as it is."""
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(8, 3)], name="features"
    )
    model.trainable = False
    return model


@pytest.mark.long
def test_parts_in_lists_and_dicts_shrink(float64):
    model = Cycle(
        [generator("there"), generator("back")],
        {"a": discriminator("of_a"), "b": discriminator("of_b")},
        features(),
    )
    optimizers = {
        "generators": keras.optimizers.Adam(1e-3),
        "a": keras.optimizers.Adam(1e-3),
        "b": keras.optimizers.SGD(1e-2, momentum=0.9),
    }
    model.compile(optimizers, run_eagerly=True)
    trained(
        *(Target(), model),
        lambda x: [*x.generators, *x.discriminators.values()],
        [images(32, 8, 8, 3), images(32, 8, 8, 3, seed=1)],
        optimizers=list(optimizers.values()),
    )
    assert model.features.count_params() == features().count_params()
