"""What TensorFlow keeps of traced functions, and how it lets go of it."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_prunetrain import keras_internals
from keras_prunetrain.keras_internals.gradients import _registry


@ops.custom_gradient
def doubled_slope(x):
    """The identity with a slope of 2."""
    return x + 0.0, lambda *upstream: 2.0 * upstream[0]


def reader(variable):
    """Returns a traced function that multiplies `variable` by a number."""
    function = tf.function(lambda x: doubled_slope(x * variable.value))
    function(tf.constant(1.0))
    return function


def slope(function):
    x = tf.constant(1.0)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
    return float(tape.gradient(y, x))


def number():
    return keras.Variable(3.0)


def handle(variable):
    return weakref.ref(variable.value.handle)


def test_tensorflow_keeps_a_variable_that_a_gone_function_has_read():
    # The reason for `release_gradients`. If this fails, it can go.
    variable = number()
    memory, function = handle(variable), reader(variable)
    del variable, function
    gc.collect()
    assert memory() is not None


def test_variable_and_gradients_leave_with_the_function_that_was_released():
    variable = number()
    before = set(_registry())
    memory, function = handle(variable), reader(variable)
    assert set(_registry()) - before
    keras_internals.release_gradients([variable])
    del variable, function
    gc.collect()
    assert memory() is None
    assert set(_registry()) == before


def test_released_functions_stay_differentiable_as_long_as_they_are_held():
    variable = number()
    function = reader(variable)
    keras_internals.release_gradients([variable])
    keras_internals.release_gradients([variable])  # Twice is as good.
    gc.collect()
    assert slope(function) == 6.0
    outer = tf.function(lambda x: function(x) + 1.0)
    assert slope(outer) == 6.0


def test_a_function_within_outlives_the_one_in_which_it_was_traced():
    # A user's own loss, say, that other functions call as well.
    variables = [number()]
    inner = tf.function(lambda x: doubled_slope(x) + tf.nn.silu(x))
    outer = tf.function(lambda x: inner(x) * variables[0].value)
    before = slope(outer)
    keras_internals.release_gradients(variables)
    memory = handle(variables.pop())
    del outer
    gc.collect()
    assert memory() is None
    again = tf.function(lambda x: inner(x) * 3.0)
    assert slope(again) == before


def test_gradients_of_other_functions_stay_where_they_are():
    mine, other = number(), number()
    function = reader(other)
    entries = {name: entry["type"] for name, entry in _registry().items()}
    release = reader(mine)
    keras_internals.release_gradients([mine])
    for name, gradient in entries.items():
        assert _registry()[name]["type"] is gradient
    assert slope(function) == slope(release) == 6.0


@pytest.mark.parametrize("strategy", ["mirrored"], indirect=True)
def test_all_replicas_let_go(strategy):
    with strategy.scope():
        variables = [number()]

    @tf.function
    def step(x):
        return strategy.run(lambda: doubled_slope(x * variables[0].value))

    step(tf.constant(1.0))
    with strategy.scope():
        keras_internals.release_gradients(variables)
    memories = [weakref.ref(x.handle) for x in variables.pop().value.values]
    del step
    gc.collect()
    assert [memory() for memory in memories] == [None, None]


def test_branches_and_loops_let_go():
    variables = [number()]

    @tf.function
    def step(x):
        for _ in tf.range(2):
            if x < 100.0:
                x = doubled_slope(x * variables[0].value)
        return x

    np.testing.assert_allclose(slope(step), 36.0)
    keras_internals.release_gradients(variables)
    np.testing.assert_allclose(slope(step), 36.0)
    memory = handle(variables.pop())
    del step
    gc.collect()
    assert memory() is None
