"""The table of step sizes says how far each optimizer moves a weight."""

import keras
import numpy as np
import pytest
from keras import ops, optimizers

from keras_prunetrain.keras_internals import (
    add_update_hook,
    leaf_optimizers,
    optimizer_kind,
)
from tests.optimizers import ALL

# Each takes steps that the table gives exactly, for a gradient that stays.
EXACT = {
    "sgd": lambda: optimizers.SGD(0.1),
    "momentum": lambda: optimizers.SGD(0.1, momentum=0.9),
    "nesterov": lambda: optimizers.SGD(0.1, momentum=0.8, nesterov=True),
    "adam": lambda: optimizers.Adam(0.01),
    "amsgrad": lambda: optimizers.Adam(0.01, amsgrad=True),
    "adamw": lambda: optimizers.AdamW(0.01, weight_decay=0.0),
    "large_epsilon": lambda: optimizers.Adam(0.01, epsilon=0.1),
    "nadam": lambda: optimizers.Nadam(0.01),
    "nadam_epsilon": lambda: optimizers.Nadam(0.01, epsilon=0.1),
    "adamax": lambda: optimizers.Adamax(0.01),
    "rmsprop_epsilon": lambda: optimizers.RMSprop(0.01, epsilon=0.01),
    "rmsprop": lambda: optimizers.RMSprop(0.01, momentum=0.5),
    "adagrad": lambda: optimizers.Adagrad(0.1),
    "adagrad_epsilon": lambda: optimizers.Adagrad(0.1, epsilon=0.1),
    "lamb": lambda: optimizers.Lamb(0.01),
    "muon_vector": lambda: optimizers.Muon(
        0.01, adam_weight_decay=None, adam_lr_ratio=0.5, epsilon=0.1
    ),
}
ESTIMATED = {
    "adadelta": lambda: optimizers.Adadelta(1.0),
    "centered": lambda: optimizers.RMSprop(0.01, centered=True),
    "lion": lambda: optimizers.Lion(0.01),
    "muon": lambda: optimizers.Muon(0.01, weight_decay=None),
    "muon_as_published": lambda: optimizers.Muon(
        0.01, weight_decay=None, rms_rate=None
    ),
}


def predicted(optimizer, weight, rate, gradient):
    """How far the table says that a gradient moves a weight, by NumPy."""
    size = optimizer_kind(optimizer).step_size(optimizer, weight, rate)
    step = ops.convert_to_numpy(size.rate) * gradient
    if size.squares is None:
        return step
    root = np.sqrt(ops.convert_to_numpy(size.squares))
    return step / (root + ops.convert_to_numpy(size.epsilon))


@pytest.mark.parametrize("name", EXACT)
def test_a_gradient_that_stays_moves_a_weight_by_the_step_size(name):
    optimizer = EXACT[name]()
    gradient = np.array([1e-3, -0.1, 2.0], "float32")
    weight = keras.Variable(np.ones(3, "float32"))
    optimizer.build([weight])
    for _ in range(100):
        before = weight.numpy()
        optimizer.apply([ops.convert_to_tensor(gradient)], [weight])
    rate = float(ops.convert_to_numpy(optimizer.learning_rate))
    found = before - weight.numpy()
    # Keras has counted the last update, and the table counts on.
    expected = predicted(optimizer, weight, rate, gradient)
    np.testing.assert_allclose(found, expected, rtol=0.03)


def test_amsgrad_divides_by_the_largest_gradients_so_far():
    optimizer = optimizers.Adam(0.01, beta_2=0.9, amsgrad=True)
    weight = keras.Variable(np.ones(3, "float32"))
    optimizer.build([weight])
    for gradient in [1.0] * 20 + [0.1] * 100:
        before = weight.numpy()
        optimizer.apply([ops.full((3,), gradient)], [weight])
    expected = predicted(optimizer, weight, 0.01, 0.1)
    np.testing.assert_allclose(before - weight.numpy(), expected, rtol=0.03)


@pytest.mark.parametrize("name", [*EXACT, *ESTIMATED])
def test_the_mean_of_noisy_gradients_moves_weights_by_the_step_size(name):
    optimizer = {**EXACT, **ESTIMATED}[name]()
    rng = np.random.default_rng(0)
    shape = (3, 20, 100) if name == "muon_vector" else (200, 30)
    signs = rng.choice([-1.0, 1.0], shape)  # Else the mean has a rank of one.
    weight = keras.Variable(np.ones(shape, "float32"))
    optimizer.build([weight])
    found, expected = [], []
    rate = float(ops.convert_to_numpy(optimizer.learning_rate))
    for step in range(120):
        before = weight.numpy()
        gradient = 0.1 * signs + rng.normal(size=shape)
        gradient = ops.convert_to_tensor(gradient.astype("float32"))
        optimizer.apply([gradient], [weight])
        if step >= 80:
            found.append((signs * (before - weight.numpy())).mean())
            size = predicted(optimizer, weight, rate, 0.1)
            # The root of the mean square of a group, as a proximal step has it.
            group = np.mean(np.asarray(size) ** -2.0) ** -0.5
            expected.append(group)
    np.testing.assert_allclose(np.mean(found), np.mean(expected), rtol=0.3)


@pytest.mark.parametrize("name", ALL)
def test_every_optimizer_of_keras_is_in_the_table(name):
    optimizer = ALL[name]()
    if name == "multi_by_function":
        optimizer.build([keras.Variable([1.0], name="kernel")])
    for leaf in leaf_optimizers(optimizer):
        kind = optimizer_kind(leaf)
        assert kind.solver == (
            "subgradient"
            if isinstance(
                leaf,
                optimizers.SGD | optimizers.Ftrl | optimizers.ScheduleFreeAdamW,
            )
            else "proximal"
        )
        assert (kind.step_size is None) == bool(kind.reason)


def test_all_optimizers_of_keras_are_known():
    wrappers = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}
    for name, value in vars(optimizers).items():
        is_class = isinstance(value, type) and name not in wrappers
        if is_class and issubclass(value, optimizers.Optimizer):
            assert optimizer_kind(value(0.1)).name in (name, "Adam"), name


def test_a_class_of_the_users_own_is_that_of_its_base_or_unknown():
    class Mine(optimizers.Optimizer):
        pass

    class Warm(optimizers.Adam):
        pass

    assert optimizer_kind(Mine(0.1)) is None
    assert optimizer_kind(Warm(0.1)).name == "Adam"


def accumulating():
    return optimizers.SGD(1.0, gradient_accumulation_steps=3)


def test_an_update_hook_acts_on_real_updates_and_reads_their_rate():
    weight = keras.Variable([10.0])
    optimizer = accumulating()
    optimizer.build([weight])
    seen = []

    def note(update, gradients, variables, rate):
        update(gradients, variables, rate)
        gradient = float(ops.convert_to_numpy(gradients[0])[0])
        seen.append((gradient, float(variables[0].numpy()[0]), float(rate)))

    add_update_hook(optimizer, "note", note)
    for gradient in (1.0, 2.0, 6.0, 0.0):
        optimizer.apply([ops.full((1,), gradient)], [weight])
    assert seen == [(3.0, 7.0, 1.0)]
