"""A variational autoencoder: two parts, one optimizer, a step of its own."""

import keras
import tensorflow as tf
from keras import layers, ops

from keras_prunetrain import keras_internals
from tests.programs.watched import descend, images, kinds, trained


@keras.saving.register_keras_serializable("programs")
class Sampling(layers.Layer):
    """Draws a code from its mean and the logarithm of its variance."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, mean, log_variance):
        noise = keras.random.normal(ops.shape(mean), seed=self.seeds)
        return mean + ops.exp(log_variance / 2) * noise


class VAE(keras.Model):
    """Trains an encoder and a decoder by the evidence lower bound."""

    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.mean_loss = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.mean_loss]

    def train_step(self, images):
        with tf.GradientTape() as tape:
            mean, log_variance, code = self.encoder(images, training=True)
            errors = ops.square(images - self.decoder(code, training=True))
            spread = ops.exp(log_variance) + mean**2 - 1.0 - log_variance
            loss = ops.mean(ops.sum(errors, axis=(1, 2, 3)))
            loss += ops.mean(ops.sum(spread, axis=1)) / 2
        descend(tape, loss, self.trainable_weights, self.optimizer)
        self.mean_loss.update_state(loss)
        return {"loss": self.mean_loss.result()}


def encoder():
    image = keras.Input((8, 8, 1))
    x = layers.Conv2D(8, 3, 2, "same", activation="relu")(image)
    x = layers.BatchNormalization()(x)
    x = layers.Dense(12, activation="relu")(layers.Flatten()(x))
    mean, log_variance = layers.Dense(2)(x), layers.Dense(2)(x)
    code = Sampling()(mean, log_variance)
    return keras.Model(image, [mean, log_variance, code], name="encoder")


def decoder():
    return keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(4 * 4 * 6, activation="relu"),
            layers.Reshape((4, 4, 6)),
            layers.Conv2DTranspose(8, 3, 2, "same", activation="relu"),
            layers.Conv2DTranspose(1, 3, padding="same"),
        ],
        name="decoder",
    )


@kinds()
def test_a_variational_autoencoder_shrinks(callback, float64):
    model = VAE(encoder(), decoder())
    model.compile(keras.optimizers.Adam(1e-3), run_eagerly=True)
    trained(
        callback, model, lambda x: [x.encoder, x.decoder], images(32, 8, 8, 1)
    )
    # Keras finalizes an average of the weights (`use_ema`) by position.
    updated = keras_internals.optimizer_variables(model.optimizer)[0]
    pairs = zip(updated, model.trainable_variables, strict=True)
    assert all(one is other for one, other in pairs)
