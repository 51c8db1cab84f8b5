"""A generative adversarial network: two parts that two optimizers train."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import keras_prunetrain as kpt
from tests.programs.watched import descend, images, kinds, trained


class GAN(keras.Model):
    """Trains a generator against a discriminator, each in its own step."""

    def __init__(self, discriminator, generator):
        super().__init__()
        self.discriminator, self.generator = discriminator, generator
        self.seeds = keras.random.SeedGenerator(1)

    def compile(self, d_optimizer, g_optimizer):
        super().compile()
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer
        self.judge = keras.losses.BinaryCrossentropy(from_logits=True)

    def train_step(self, images):
        count = ops.shape(images)[0]
        noise = keras.random.normal((count, 4), seed=self.seeds)
        with tf.GradientTape() as tape:
            both = ops.concatenate([self.generator(noise), images])
            is_real = ops.repeat(ops.array([[0.0], [1.0]]), count, axis=0)
            d_loss = self.judge(is_real, self.discriminator(both))
        weights = self.discriminator.trainable_weights
        descend(tape, d_loss, weights, self.d_optimizer)
        with tf.GradientTape() as tape:
            verdict = self.discriminator(self.generator(noise))
            g_loss = self.judge(ops.ones((count, 1)), verdict)
        weights = self.generator.trainable_weights
        descend(tape, g_loss, weights, self.g_optimizer)
        return {"d_loss": d_loss, "g_loss": g_loss}


def discriminator():
    image = keras.Input((8, 8, 1))
    x = layers.Conv2D(8, 3, 2, "same")(image)
    x = layers.LeakyReLU(negative_slope=0.2)(x)
    x = layers.Conv2D(12, 3, 2, "same")(x)
    x = layers.LeakyReLU(negative_slope=0.2)(x)
    x = layers.GlobalMaxPooling2D()(x)
    return keras.Model(image, layers.Dense(1)(x), name="discriminator")


def generator():
    noise = keras.Input((4,))
    x = layers.Reshape((4, 4, 6))(layers.Dense(96, name="project")(noise))
    x = layers.Conv2DTranspose(8, 4, 2, "same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(1, 5, padding="same", activation="sigmoid")(x)
    return keras.Model(noise, x, name="generator")


@kinds(factor=1e-3)
def test_both_parts_of_an_adversarial_network_shrink(callback, float64):
    model = GAN(discriminator(), generator())
    optimizers = [keras.optimizers.Adam(1e-3), keras.optimizers.RMSprop(1e-3)]
    model.compile(*optimizers)
    history = trained(
        *(callback, model, lambda x: [x.discriminator, x.generator]),
        images(32, 8, 8, 1),
        optimizers=optimizers,
    )
    assert len(history["g_loss"]) == 3
    assert [int(x.iterations) for x in optimizers] == [6, 6]


class Break(keras.callbacks.Callback):
    """Ends `fit` with an exception in the middle of the third epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (2, 0):
            raise RuntimeError("killed")


def run(folder, *callbacks):
    """The program, which may be started again."""
    keras.utils.clear_session(free_memory=False)  # As in a new process.
    keras.utils.set_random_seed(0)
    model = GAN(discriminator(), generator())
    model.compile(keras.optimizers.Adam(1e-3), keras.optimizers.RMSprop(1e-3))
    model.run_eagerly = True
    pruning = kpt.PruneTrainCallback(
        *(0.25, 2, 0.25, None, {"skip": "project"}),
        factor=1e-3,
        log_dir=folder / "log",
    )
    backup = kpt.BackupAndRestore(folder / "backups", save_freq=1)
    history = model.fit(
        *(images(24, 8, 8, 1).astype("float32"), None, 8, 4),
        callbacks=[pruning, backup, *callbacks],
        verbose=0,
        shuffle=False,
    ).history
    optimizers = [model.d_optimizer, model.g_optimizer]
    kept = [*model.variables, *(v for x in optimizers for v in x.variables)]
    return history, [x.keep for x in pruning.reports], [v.numpy() for v in kept]


@pytest.mark.long
def test_an_interrupted_one_goes_on_as_if_it_had_not_been(tmp_path):
    history, keeps, values = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "pieces", Break())
    again, same_keeps, same_values = run(tmp_path / "pieces")
    assert keeps and keeps == same_keeps
    for name in ("d_loss", "g_loss", "density"):
        assert history[name] == again[name]
    for one, other in zip(values, same_values, strict=True):
        np.testing.assert_array_equal(one, other)
    logs = [tmp_path / x / "log/density_log.json" for x in ("whole", "pieces")]
    assert logs[0].read_text() == logs[1].read_text()
