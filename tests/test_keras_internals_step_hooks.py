"""Hooks around `Optimizer.apply`: in order, added and removed one by one."""

import keras
import numpy as np
import pytest

from keras_prunetrain import keras_internals
from keras_prunetrain.keras_internals import add_step_hook, remove_step_hook


def optimizer_of(weight, **kwargs):
    optimizer = keras.optimizers.SGD(0.5, **kwargs)
    optimizer.build([weight])
    return optimizer


def doubled(step, gradients, variables):
    return step([2.0 * g for g in gradients], variables)


def plus_one(step, gradients, variables):
    return step([g + 1.0 for g in gradients], variables)


def positive(step, gradients, variables):
    step(gradients, variables)
    for variable in variables:
        variable.assign(keras.ops.maximum(variable, 0.0))


def stepped(*hooks, gradient=1.0, start=10.0):
    """The weight after one step of plain gradient descent, rate 0.5."""
    weight = keras.Variable([start])
    optimizer = optimizer_of(weight)
    for i, hook in enumerate(hooks):
        add_step_hook(optimizer, str(i), hook)
    optimizer.apply([keras.ops.full((1,), gradient)], [weight])
    return float(weight.numpy()[0])


def test_the_first_hook_is_the_outermost():
    assert stepped(doubled, plus_one) == 10.0 - 0.5 * (2 * 1 + 1)
    assert stepped(plus_one, doubled) == 10.0 - 0.5 * 2 * (1 + 1)


def test_a_hook_acts_on_the_variables_behind_the_update():
    assert stepped(positive, start=0.25) == 0.0
    assert stepped(positive, start=1.0) == 0.5


def test_a_hook_that_is_replaced_keeps_its_place():
    weight = keras.Variable([10.0])
    optimizer = optimizer_of(weight)
    for name, hook in (("a", plus_one), ("b", plus_one), ("a", doubled)):
        add_step_hook(optimizer, name, hook)
    optimizer.apply([keras.ops.ones(1)], [weight])
    assert float(weight.numpy()[0]) == 10.0 - 0.5 * (2 * 1 + 1)


def test_hooks_are_removed_one_by_one_and_leave_nothing():
    weight = keras.Variable([10.0])
    optimizer = optimizer_of(weight)
    before = dict(vars(optimizer))
    add_step_hook(optimizer, "a", doubled)
    add_step_hook(optimizer, "b", plus_one)
    remove_step_hook(optimizer, "a")
    remove_step_hook(optimizer, "a")  # It is gone already.
    optimizer.apply([keras.ops.ones(1)], [weight])
    assert float(weight.numpy()[0]) == 10.0 - 0.5 * (1 + 1)
    remove_step_hook(optimizer, "b")
    assert vars(optimizer).keys() == before.keys()
    remove_step_hook(optimizer, "b")


def test_the_scale_of_the_learning_rate_is_one_of_several():
    weight = keras.Variable([10.0])
    optimizer = optimizer_of(weight)
    rates = []

    def read(step, gradients, variables):
        rates.append(float(optimizer._get_current_learning_rate()))
        return step(gradients, variables)

    keras_internals.scale_learning_rate(optimizer, 3.0, lambda n: n)
    add_step_hook(optimizer, "read", read)
    keras_internals.scale_learning_rate(optimizer, 4.0, lambda n: n)
    optimizer.apply([keras.ops.ones(1)], [weight])
    # An inner hook reads the rate that the step takes.
    assert rates == [2.0]
    assert float(weight.numpy()[0]) == 10.0 - 4 * 0.5
    keras_internals.restore_learning_rate(optimizer)
    optimizer.apply([keras.ops.ones(1)], [weight])
    assert rates == [2.0, 0.5]
    assert float(weight.numpy()[0]) == 8.0 - 0.5


@pytest.mark.parametrize("wrapped", [False, True])
def test_hooks_act_in_a_traced_fit(wrapped):
    def frozen(step, gradients, variables):
        return step([0.0 * g for g in gradients], variables)

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    inner = keras.optimizers.SGD(0.1)
    optimizer = keras.optimizers.LossScaleOptimizer(inner) if wrapped else inner
    model.compile(optimizer, "mse")
    (leaf,) = keras_internals.leaf_optimizers(model.optimizer)
    assert leaf is inner
    before = model.get_weights()
    data = np.ones((8, 2), "float32"), np.zeros((8, 1), "float32")
    add_step_hook(leaf, "frozen", frozen)
    model.fit(*data, verbose=0)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    remove_step_hook(leaf, "frozen")
    model.make_train_function(force=True)
    model.fit(*data, verbose=0)
    assert (model.get_weights()[0] != before[0]).any()


def test_a_step_of_all_variables_needs_not_name_them():
    weight = keras.Variable([10.0])
    optimizer = optimizer_of(weight)
    add_step_hook(optimizer, "doubled", doubled)
    optimizer.apply([keras.ops.ones(1)])
    assert float(weight.numpy()[0]) == 9.0
