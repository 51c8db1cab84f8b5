"""A siamese network: one embedding, called three times inside of the part."""

import keras
import tensorflow as tf
from keras import layers, ops

from tests.programs.watched import descend, images, kinds, trained


@keras.saving.register_keras_serializable("programs")
class Distances(layers.Layer):
    """The squared distances of an anchor from a like and an unlike example."""

    def call(self, anchor, like, unlike):
        return [
            ops.sum(ops.square(anchor - other), axis=-1)
            for other in (like, unlike)
        ]


class Siamese(keras.Model):
    """Trains by the triplet loss."""

    def __init__(self, triplets):
        super().__init__()
        self.triplets = triplets

    def call(self, x):
        return self.triplets(x)

    def train_step(self, data):
        with tf.GradientTape() as tape:
            near, far = self.triplets(*data)
            loss = ops.mean(ops.relu(near - far + 0.5))
        weights = self.triplets.trainable_weights
        descend(tape, loss, weights, self.optimizer)
        return {"loss": loss}


def embedding():
    image = keras.Input((8, 8, 1))
    x = layers.Conv2D(8, 3, 2, activation="relu")(image)
    x = layers.Dense(16, activation="relu")(layers.Flatten()(x))
    return keras.Model(image, layers.Dense(4)(x), name="embedding")


def triplets(embed):
    inputs = [keras.Input((8, 8, 1), name=x) for x in ("anchor", "p", "n")]
    distances = Distances()(*map(embed, inputs))
    return keras.Model(inputs, distances, name="triplets")


@kinds()
def test_the_embedding_in_a_siamese_network_shrinks(callback, float64):
    embed = embedding()
    model = Siamese(triplets(embed))
    model.compile(keras.optimizers.Adam(1e-3), run_eagerly=True)
    data = [images(32, 8, 8, 1, seed=i) for i in range(3)]
    first = embed.count_params()
    trained(callback, model, lambda x: [x.triplets], data)
    assert model.triplets.get_layer("embedding") is embed
    assert embed.count_params() < first
