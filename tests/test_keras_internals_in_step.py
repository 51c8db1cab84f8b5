"""What a hook of the train step does, on one replica and on two."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_prunetrain import keras_internals


class OneStep:
    """One step of SGD with a rate of 0, and a hook around it."""

    def __init__(self, hook, strategy=None):
        self.strategy = strategy or tf.distribute.get_strategy()
        with self.strategy.scope():
            self.weight = keras.Variable([1.0, 2.0])
            self.other = keras.Variable([5.0, 6.0], trainable=False)
            self.optimizer = keras.optimizers.SGD(0.0)
            self.optimizer.build([self.weight])
        keras_internals.add_step_hook(
            self.optimizer,
            "hook",
            lambda step, gradients, variables: (
                hook(self, gradients[0]),
                step(gradients, variables),
            ),
        )

    def run(self, gradients):
        """Takes the step in a graph, each replica with its own gradient."""
        per_replica = (
            self.strategy.experimental_distribute_values_from_function(
                lambda context: tf.constant(
                    gradients[context.replica_id_in_sync_group]
                )
            )
        )

        @tf.function
        def step():
            self.strategy.run(
                lambda gradient: self.optimizer.apply(
                    [gradient], [self.weight]
                ),
                args=(per_replica,),
            )

        step()

    def values(self, variable):
        """The values on all replicas."""
        return [
            x.numpy().tolist()
            for x in self.strategy.experimental_local_results(variable.value)
        ]


def add_sum(run, gradient):
    summed = keras_internals.sum_over_replicas(gradient)
    keras_internals.update_in_step(
        run.optimizer,
        [run.weight, run.other],
        lambda value, more: value + more,
        [summed, 10.0 * summed],
    )


def test_a_hook_updates_variables_on_one_replica():
    run = OneStep(add_sum)
    run.run([[1.0, 2.0]])
    assert run.values(run.weight) == [[2.0, 4.0]]
    assert run.values(run.other) == [[15.0, 26.0]]


def test_a_hook_updates_variables_alike_on_two_replicas(strategy):
    run = OneStep(add_sum, strategy)
    run.run([[1.0, 2.0], [3.0, 4.0]])
    assert run.values(run.weight) == [[5.0, 8.0]] * 2
    assert run.values(run.other) == [[45.0, 66.0]] * 2


def test_sums_and_updates_work_eagerly():
    weight = keras.Variable([1.0, 2.0])
    optimizer = keras.optimizers.SGD(0.0)
    optimizer.build([weight])
    summed = keras_internals.sum_over_replicas(tf.constant([1.0, 1.0]))
    keras_internals.update_in_step(
        optimizer, [weight], lambda value, more: value * more, [3.0 * summed]
    )
    np.testing.assert_array_equal(weight.numpy(), [3.0, 6.0])


def square(variable):
    """A function that needs the variable, and not a tensor."""
    assert "w" in variable.path
    return keras.ops.sum(keras.ops.square(variable.value))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (square, [2.0, -4.0]),
        (keras.regularizers.L1(0.5), [0.5, -0.5]),
        (lambda variable: keras.ops.zeros(()), [0.0, 0.0]),
        (lambda variable: 0.0, [0.0, 0.0]),
    ],
)
@pytest.mark.parametrize("trainable", [True, False])
def test_the_gradient_of_a_function_of_a_variable(
    function, expected, trainable
):
    weight = keras.Variable([1.0, -2.0], trainable=trainable, name="w")
    # Of an unfrozen layer: TensorFlow does not watch this variable by itself.
    weight.trainable = True
    for run in (keras_internals.gradient_of, tf.function):
        if run is tf.function:
            found = run(lambda: keras_internals.gradient_of(function, weight))()
        else:
            found = run(function, weight)
        np.testing.assert_array_equal(found, expected)


def test_the_gradient_of_a_function_on_two_replicas(strategy):
    def add_penalty(run, gradient):
        penalty = keras_internals.gradient_of(
            keras.regularizers.L2(0.5), run.weight
        )
        keras_internals.update_in_step(
            run.optimizer, [run.other], lambda value, x: value + x, [penalty]
        )

    run = OneStep(add_penalty, strategy)
    run.run([[0.0, 0.0], [0.0, 0.0]])
    assert run.values(run.other) == [[6.0, 8.0]] * 2


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_factor_of_zero_makes_nan_zero(dtype):
    value = tf.constant([[np.nan, 2.0], [np.inf, 4.0]], dtype)
    found = keras_internals.multiplied(value, tf.constant([[0.0, 0.5]]))
    assert found.dtype == dtype
    np.testing.assert_array_equal(
        np.asarray(found, "float32"), [[0.0, 1.0], [0.0, 2.0]]
    )
