"""Contrastive learning: an encoder that two more parts read, two optimizers."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.programs.watched import PruneTrain, descend, images, trained


class Contrastive(keras.Model):
    """Trains an encoder on pairs of views, and a probe on its features."""

    def __init__(self):
        super().__init__()
        self.augmenter = keras.Sequential(
            [layers.RandomFlip("horizontal", seed=1)], name="augmenter"
        )
        self.encoder = encoder()
        self.head = dense("head", 12, 6)
        self.probe = dense("probe", 5)

    def compile(self, contrastive_optimizer, probe_optimizer, **kwargs):
        super().compile(**kwargs)
        self.contrastive_optimizer = contrastive_optimizer
        self.probe_optimizer = probe_optimizer
        self.judge = keras.losses.SparseCategoricalCrossentropy(True)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            views = [
                ops.normalize(self.head(self.encoder(self.augmenter(x))))
                for _ in range(2)
            ]
            alike = ops.matmul(views[0], ops.transpose(views[1])) / 0.1
            loss = self.judge(ops.arange(ops.shape(x)[0]), alike)
        weights = [
            *self.encoder.trainable_weights,
            *self.head.trainable_weights,
        ]
        descend(tape, loss, weights, self.contrastive_optimizer)
        with tf.GradientTape() as tape:
            probe_loss = self.judge(y, self.probe(self.encoder(x)))
        weights = self.probe.trainable_weights
        descend(tape, probe_loss, weights, self.probe_optimizer)
        return {"loss": loss, "p_loss": probe_loss}

    def test_step(self, data):
        x, y = data
        return {"p_loss": self.judge(y, self.probe(self.encoder(x)))}


def encoder():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, 2, activation="relu"),
            layers.Conv2D(12, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
        ],
        name="encoder",
    )


def dense(name, *widths):
    layers_of = [layers.Dense(n, activation="relu") for n in widths[:-1]]
    layers_of.append(layers.Dense(widths[-1]))
    return keras.Sequential([keras.Input((16,)), *layers_of], name=name)


def test_encoder_and_head_shrink_between_what_they_exchange(float64):
    model = Contrastive()
    optimizers = [keras.optimizers.Adam(1e-3), keras.optimizers.SGD(0.01, 0.9)]
    model.compile(*optimizers, run_eagerly=True)
    data = images(32, 8, 8, 3), np.arange(32) % 5
    history = trained(
        *(
            PruneTrain(interval=2, threshold=0.44),
            model,
            lambda x: [x.encoder, x.head],
            *data,
        ),
        optimizers=optimizers,
        validation_data=data,
    )
    assert len(history["val_p_loss"]) == 3
    # The probe has no channel that may go; what it reads is held.
    assert model.encoder.output_shape == (None, 16)
    assert model.probe.count_params() == 16 * 5 + 5
