"""The memory that a training iteration takes, counted by hand."""

import keras
import numpy as np
from keras import layers

from keras_prunetrain import model_cost, training_bytes


def model_of(optimizer):
    image = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.Conv2D(16, 3)(image))
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(2)(x))
    model.compile(optimizer, "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def test_training_bytes_are_activations_weights_gradients_and_slots():
    model = model_of(keras.optimizers.Adam())
    weights = 4 * (3 * 3 * 3 * 16 + 16 + 16 * 2 + 2)
    # What the convolution reads, what the ReLU writes, what the Dense reads.
    kept = 4 * (8 * 8 * 3 + 6 * 6 * 16 + 16)
    singles = sum(
        np.dtype(v.dtype).itemsize
        for v in model.optimizer.variables
        if v.shape == ()
    )
    assert training_bytes(model, 10) == 4 * weights + singles + 10 * kept
    assert model_cost(model).activation_bytes == kept
