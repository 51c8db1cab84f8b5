"""What TensorFlow keeps of operations on variables goes when it should."""

import keras
import numpy as np
import pytest

from keras_prunetrain import keras_internals
from tests.resident import resident_bytes

COUNT = 40


def use_variables(size):
    """Makes, writes and reads variables of shapes that nobody else has."""
    for i in range(COUNT):
        variable = keras.Variable(np.zeros((size, 1, i + 1), "float32"))
        variable.assign(np.ones(variable.shape))
        np.testing.assert_array_equal(variable, np.ones(variable.shape))


def growth(sizes, between):
    use_variables(min(sizes) - 1)
    between()
    before = resident_bytes()
    for size in sizes:
        use_variables(size)
        between()
    return resident_bytes() - before


def test_tensorflow_keeps_what_it_prepared_for_each_shape():
    # The reason for `release_kernels`. If this fails, it can go.
    grown = growth(range(1002, 1006), lambda: None)
    assert grown > 4 * COUNT * 30_000


def test_what_was_prepared_for_former_shapes_is_forgotten():
    grown = growth(range(1102, 1106), keras_internals.release_kernels)
    assert grown < 4 * COUNT * 10_000


@pytest.mark.parametrize("strategy", ["default", "mirrored"], indirect=True)
def test_variables_work_on_afterwards(strategy):
    with strategy.scope():
        old = keras.Variable([1.0, 2.0])
        keras_internals.release_kernels()
        keras_internals.release_kernels()  # Nothing is left to forget.
        new = keras.Variable(old)
    old.assign(old + 1.0)
    np.testing.assert_array_equal(old, [2.0, 3.0])
    np.testing.assert_array_equal(new, [1.0, 2.0])
