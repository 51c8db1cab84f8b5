"""Metric learning: a functional model of a class with its own `train_step`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from tests.programs.watched import descend, images, kinds, outputs, trained


@keras.saving.register_keras_serializable("programs")
class Embedding(keras.Model):
    """Trains on pairs: each anchor is to be nearest to its own partner."""

    def train_step(self, data):
        anchors, partners = data[:, 0], data[:, 1]
        with tf.GradientTape() as tape:
            near = ops.matmul(
                self(anchors, training=True),
                ops.transpose(self(partners, training=True)),
            )
            labels = ops.arange(ops.shape(near)[0])
            loss = self.compute_loss(y=labels, y_pred=near / 0.2)
        descend(tape, loss, self.trainable_weights, self.optimizer)
        return self.compute_metrics(anchors, labels, near) | {"loss": loss}


def embedding():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, 2, activation="relu", name="a")(image)
    x = layers.BatchNormalization()(x)
    x = layers.Conv2D(12, 2, activation="relu", name="b")(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(6, use_bias=False, name="vector")(x)
    return Embedding(image, layers.UnitNormalization()(x))


@pytest.mark.long
@kinds(threshold=0.4)
def test_an_embedding_by_pairs_shrinks(callback, float64, tmp_path):
    model = embedding()
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        run_eagerly=True,
    )
    pairs = images(32, 2, 8, 8, 3)
    trained(callback, model, lambda x: [x], pairs)
    assert isinstance(model, Embedding)
    assert model.output_shape == (None, 6)

    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(again, Embedding)
    (vectors,) = outputs(again)
    np.testing.assert_allclose(vectors, outputs(model)[0], rtol=0, atol=1e-12)
    loss = again.fit(pairs, verbose=0).history["loss"][0]
    assert np.isfinite(loss)
