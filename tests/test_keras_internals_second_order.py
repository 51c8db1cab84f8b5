"""Second derivatives, of functions whose derivatives are known."""

import gc
import logging
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_prunetrain import keras_internals


def cubes(variables):
    """The loss `sum(scale * w ** 3)`: gradient 3 s w^2, Hessian 6 s w."""
    return lambda scale: sum(
        keras.ops.sum(scale * v**3) for v in variables if v.name != "idle"
    )


def test_the_hessian_times_the_gradient_is_summed_over_batches():
    w = keras.Variable([1.0, -2.0])
    gradients, products = keras_internals.hessian_products(
        cubes([w]), [w], [np.float32(1.0), np.float32(0.5)]
    )
    np.testing.assert_allclose(gradients[0], [4.5, 18.0])
    # 6 s w summed over both batches, times the summed gradient.
    np.testing.assert_allclose(products[0], [9.0 * 4.5, -18.0 * 18.0])


def test_one_variable_acts_on_the_product_of_another():
    v, w = keras.Variable(2.0), keras.Variable(3.0)
    gradients, products = keras_internals.hessian_products(
        lambda _: v * w, [v, w], [np.float32(0.0)]
    )
    assert [float(x) for x in gradients] == [3.0, 2.0]
    assert [float(x) for x in products] == [2.0, 3.0]


def test_rows_that_are_looked_up_have_derivatives_of_the_whole_matrix():
    w = keras.Variable([[1.0], [5.0], [-2.0]])
    gradients, products = keras_internals.hessian_products(
        lambda rows: keras.ops.sum(keras.ops.take(w, rows, axis=0) ** 3),
        [w],
        [np.array([0, 0, 2]), np.array([2])],
    )
    np.testing.assert_allclose(gradients[0], [[6.0], [0.0], [24.0]])
    np.testing.assert_allclose(products[0], [[72.0], [0.0], [-24.0 * 24.0]])


def test_a_variable_that_the_loss_does_not_read_has_zeros():
    w, idle = keras.Variable([1.0]), keras.Variable([5.0, 5.0], name="idle")
    gradients, products = keras_internals.hessian_products(
        cubes([w, idle]), [w, idle], [np.float32(1.0)]
    )
    np.testing.assert_array_equal(gradients[1], [0.0, 0.0])
    np.testing.assert_array_equal(products[1], [0.0, 0.0])


def test_batches_may_have_other_sizes():
    w = keras.Variable(1.0)
    gradients, _ = keras_internals.hessian_products(
        lambda x: keras.ops.sum(x * w**2),
        [w],
        [np.ones(n, "float32") for n in (4, 4, 1)],
    )
    assert float(gradients[0]) == 18.0


def test_an_operation_without_a_second_derivative_is_a_lookup_error():
    w = keras.Variable(np.ones((1, 4, 4, 1)))
    with pytest.raises(LookupError, match="ResizeBicubicGrad"):
        keras_internals.hessian_products(
            lambda _: tf.reduce_sum(
                tf.image.resize(w.value, (8, 8), "bicubic") ** 2
            ),
            [w],
            [np.float32(0.0)],
        )


def test_many_calls_are_no_reason_for_a_warning(caplog):
    w = keras.Variable([1.0])
    with caplog.at_level(logging.WARNING):
        for _ in range(8):
            keras_internals.hessian_products(cubes([w]), [w], [np.float32(1)])
    assert "retracing" not in caplog.text


def test_nothing_keeps_the_variables_afterwards():
    w = keras.Variable([1.0])
    memory = weakref.ref(w.value.handle)
    keras_internals.hessian_products(cubes([w]), [w], [np.float32(1.0)])
    del w
    gc.collect()
    assert memory() is None
