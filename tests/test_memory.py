"""The memory that a training iteration takes, counted by hand."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_prunetrain import model_cost, training_bytes


def model_of(optimizer, size=8):
    image = keras.Input((size, size, 3))
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


def test_images_of_any_size_take_what_those_that_are_given_do():
    fixed, free = model_of("sgd"), model_of("sgd", size=None)
    for size in (0, np.int64(10)):
        expected = training_bytes(fixed, size)
        assert training_bytes(free, size, (8, 8, 3)) == expected
        assert type(expected) is int  # As records are written.
    with pytest.raises(ValueError, match="can only count with known sizes"):
        training_bytes(free, 10)


@pytest.mark.parametrize("strategy", ["default", "mirrored"], indirect=True)
@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.Adam(use_ema=True),
        lambda: keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(momentum=0.9)
        ),
    ],
)
def test_slots_count_before_the_first_step_makes_them(strategy, make):
    with strategy.scope():
        model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
        model.compile(make(), "mse")
    before = training_bytes(model, 10)
    assert not model.optimizer.built
    with strategy.scope():
        model.optimizer.build(model.trainable_variables)
    assert training_bytes(model, 10) == before > 4 * (3 * 8 + 10 * 3)


def test_a_model_that_is_not_compiled_is_refused():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    with pytest.raises(ValueError, match=r"call `model\.compile\(\.\.\.\)`"):
        training_bytes(model, 10)


@pytest.mark.parametrize("size", [-1, 2.5, None, True, float("inf")])
def test_impossible_batches_are_refused(size):
    with pytest.raises(ValueError, match="`batch_size` must be an integer"):
        training_bytes(model_of("sgd"), size)
