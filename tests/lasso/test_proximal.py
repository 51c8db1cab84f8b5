"""The proximal step against NumPy, and the optimum of a convex problem."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops, optimizers

from keras_prunetrain import GroupLasso, keras_internals
from keras_prunetrain.keras_internals import StepSize, leaf_optimizers
from keras_prunetrain.lasso.group_lasso import BesideLasso
from keras_prunetrain.lasso.proximal import shrunk
from keras_prunetrain.lasso.steps import (
    LassoSteps,
    preferred_solver,
    unfit_optimizer,
)
from tests.optimizers import ALL

FACTOR = 0.3


def random(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def shrunk_by_hand(kernel, axes, factor, rate, squares, epsilon):
    """One soft threshold after the other, group by group."""
    kernel = kernel.astype("float64").copy()
    for axis in axes:
        groups = np.moveaxis(kernel, axis, 0)
        for i, group in enumerate(groups):
            threshold = rate * factor
            if squares is not None:
                mean = np.moveaxis(squares, axis, 0)[i].mean()
                root = max(np.sqrt(mean), factor / np.sqrt(group.size))
                threshold /= root + epsilon
            norm = np.linalg.norm(group)
            groups[i] = group * (
                1 - threshold / norm if norm > threshold else 0
            )
    return kernel


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("axes", [(-2, -1), (-1,), (-2,), (0,)])
@pytest.mark.parametrize("shape", [(5, 4), (3, 3, 5, 4)])
def test_each_side_has_its_soft_threshold(shape, axes, adaptive):
    kernel = random(shape)
    kernel[..., 1] *= 0.01  # A group that arrives.
    squares = np.square(random(shape, seed=1)) if adaptive else None
    axes = [axis % len(shape) for axis in axes]
    rate, epsilon = 0.4, 0.1 if adaptive else 0.0
    size = StepSize(rate, squares, epsilon)
    found = ops.convert_to_numpy(shrunk(kernel, axes, FACTOR, size))
    expected = shrunk_by_hand(kernel, axes, FACTOR, rate, squares, epsilon)
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found == 0.0, expected == 0.0)
    assert 0 < (found == 0.0).sum() < found.size or -1 % len(shape) not in axes


def test_without_a_factor_no_bit_changes():
    kernel = random((3, 3, 5, 4))
    kernel[..., 2] = 0.0
    for squares in (None, np.zeros_like(kernel), np.ones_like(kernel)):
        found = shrunk(kernel, [2, 3], 0.0, StepSize(0.1, squares, 1e-7))
        np.testing.assert_array_equal(ops.convert_to_numpy(found), kernel)


def test_where_the_task_has_no_gradient_no_weight_moves_further_than_the_rate():
    kernel = np.ones((6, 4), "float32")
    size = StepSize(0.01, np.zeros_like(kernel), 0.0)
    found = ops.convert_to_numpy(shrunk(kernel, [1], FACTOR, size))
    np.testing.assert_allclose(found, 1.0 - 0.01, rtol=1e-5)


def test_a_bfloat16_kernel_is_shrunk_in_float32():
    kernel = tf.cast(random((40, 30)), "bfloat16")
    found = shrunk(kernel, [0, 1], FACTOR, StepSize(0.1, None, 0.0))
    exact = tf.cast(kernel, "float32").numpy()
    expected = shrunk_by_hand(exact, [0, 1], FACTOR, 0.1, None, 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# Linear regression: rows 4 and further have nothing to do with the target.
X = random((200, 8))
TARGET = X[:, :4] @ random((4, 3), seed=1) + 0.1 * random((200, 3), seed=2)


def regression(optimizer, steps, strength=FACTOR, jit=None):
    """Returns the weights after so many steps of full batches."""
    weight = keras.Variable(random((8, 3), seed=3))
    optimizer.build([weight])
    begin(optimizer, weight, GroupLasso(strength, axes=(-2,)))

    @tf.function(jit_compile=jit)
    def step():
        with tf.GradientTape() as tape:
            errors = tf.reduce_sum((ops.matmul(X, weight) - TARGET) ** 2, 1)
            loss = tf.reduce_mean(errors) / 2
        optimizer.apply(tape.gradient(loss, [weight.value]), [weight])

    for _ in range(steps):
        step()
    return weight.numpy().astype("float64")


def begin(optimizer, weight, lasso):
    weight.regularizer = BesideLasso(None, lasso, in_loss=False)
    steps = LassoSteps(leaf_optimizers(optimizer))
    steps.begin()
    return steps


def violation(weights):
    """By how much the conditions of the optimum are missed, relative."""
    gradients = X.T @ (X @ weights - TARGET) / len(X)
    misses = []
    for row, gradient in zip(weights, gradients, strict=True):
        norm = np.linalg.norm(row)
        if norm:
            miss = np.linalg.norm(gradient + FACTOR * row / norm)
        else:
            miss = max(0.0, np.linalg.norm(gradient) - FACTOR)
        misses.append(miss / FACTOR)
    return max(misses)


def objective(weights):
    errors = np.square(X @ weights - TARGET).sum(1).mean() / 2
    return errors + FACTOR * np.linalg.norm(weights, axis=1).sum()


OPTIMUM = {
    "sgd": lambda: optimizers.SGD(0.1),
    "momentum": lambda: optimizers.SGD(0.02, momentum=0.9),
    "nesterov": lambda: optimizers.SGD(0.02, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("name", OPTIMUM)
def test_gradient_descent_arrives_at_the_optimum(name):
    weights = regression(OPTIMUM[name](), 600)
    assert violation(weights) < 1e-3
    np.testing.assert_array_equal(weights[4:], 0.0)
    assert (weights[:4] != 0.0).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: optimizers.Adam(0.01),
        lambda: optimizers.Nadam(0.01),
        lambda: optimizers.Adamax(0.01),
        lambda: optimizers.Adagrad(0.5),
        lambda: optimizers.Lamb(0.02),
    ],
    ids=["adam", "nadam", "adamax", "adagrad", "lamb"],
)
def test_adaptive_optimizers_find_the_rows_of_the_optimum(make):
    # Without noise a group's weights differ most in their step sizes, of which
    # the proximal step takes one for all.
    weights = regression(make(), 1500)
    best = objective(regression(OPTIMUM["sgd"](), 600))
    np.testing.assert_array_equal(weights[4:], 0.0)
    assert (weights[:4] != 0.0).any(axis=1).all()
    assert objective(weights) < 1.1 * best


# In bfloat16 two optimizers of Keras divide by zero and one moves no weight;
# Muon's own step takes no float64.
UNFIT = {
    "bfloat16": {"nadam", "lamb", "adadelta"},
    "float64": {"muon"},
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for dtype, unfit in UNFIT.items()
        for name in sorted(
            ALL.keys() - unfit - {"ftrl", "schedule_free", "multi"}
        )
    ],
)
def test_weights_of_any_dtype_are_shrunk(name, dtype):
    kernel = keras.Variable(np.ones((4, 2)), dtype=dtype, name="kernel")
    optimizer = ALL[name]()
    optimizer.build([kernel])
    begin(optimizer, kernel, GroupLasso(0.5, axes=(-2, -1)))
    for _ in range(2):  # One of two where gradients are accumulated.
        optimizer.apply([ops.zeros((4, 2), dtype)], [kernel])
    values = ops.convert_to_numpy(ops.cast(kernel, "float64"))
    assert kernel.dtype == dtype
    assert (values < 1.0).all()


def test_xla_computes_the_same():
    make = OPTIMUM["momentum"]
    np.testing.assert_allclose(
        regression(make(), 20, jit=True), regression(make(), 20), rtol=1e-4
    )


# Beside other things that an optimizer does.


def kernel_and_step(optimizer, value=1.0):
    """A kernel of one group, and a step with a gradient for all weights."""
    kernel = keras.Variable(np.full((4, 1), value, "float32"))
    optimizer.build([kernel])

    def step(gradient=0.0):
        optimizer.apply([ops.full((4, 1), gradient)], [kernel])
        return kernel.numpy()

    return kernel, step


def test_steps_that_only_accumulate_do_not_shrink():
    optimizer = optimizers.SGD(0.5, gradient_accumulation_steps=3)
    kernel, step = kernel_and_step(optimizer)
    begin(optimizer, kernel, GroupLasso(0.4, axes=(-1,)))
    norms = [np.linalg.norm(step()) for _ in range(6)]
    np.testing.assert_allclose(norms, [2, 2, 1.8, 1.8, 1.8, 1.6], rtol=1e-5)


def test_a_step_that_the_loss_scale_skips_does_not_shrink():
    optimizer = optimizers.LossScaleOptimizer(
        optimizers.SGD(0.5), initial_scale=8.0
    )
    kernel, step = kernel_and_step(optimizer)
    begin(optimizer, kernel, GroupLasso(0.4, axes=(-1,)))
    np.testing.assert_array_equal(step(float("inf")), 1.0)
    np.testing.assert_allclose(np.linalg.norm(step(0.0)), 1.8, rtol=1e-5)


def test_the_rate_of_a_schedule_and_of_a_grown_batch_counts():
    schedule = optimizers.schedules.PiecewiseConstantDecay([0], [0.5, 0.05])
    optimizer = optimizers.SGD(schedule)
    kernel, step = kernel_and_step(optimizer)
    begin(optimizer, kernel, GroupLasso(0.4, axes=(-1,)))
    keras_internals.scale_learning_rate(optimizer, 2.0, lambda n: n)
    np.testing.assert_allclose(np.linalg.norm(step()), 2 - 0.4, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(step()), 1.6 - 0.04, rtol=1e-5)


def test_the_averaged_weights_are_those_after_the_steps():
    optimizer = optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5)
    kernel, step = kernel_and_step(optimizer)
    begin(optimizer, kernel, GroupLasso(4.0, axes=(-1,)))
    step()  # Arrives at zero at once.
    step()
    np.testing.assert_array_equal(kernel.numpy(), 0.0)
    optimizer.finalize_variable_values([kernel])
    np.testing.assert_array_equal(kernel.numpy(), 0.0)


def test_weights_decay_before_they_shrink():
    optimizer = optimizers.SGD(0.5, weight_decay=0.2)
    kernel, step = kernel_and_step(optimizer)
    begin(optimizer, kernel, GroupLasso(0.4, axes=(-1,)))
    expected = 2 * (1 - 0.5 * 0.2) - 0.5 * 0.4
    np.testing.assert_allclose(np.linalg.norm(step()), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["momentum", "adam", "lion"])
def test_a_dead_channel_stays_dead_whatever_the_moments_are(name):
    optimizer = {
        "momentum": optimizers.SGD(0.1, momentum=0.9),
        "adam": optimizers.Adam(0.01),
        "lion": optimizers.Lion(0.01),
    }[name]
    kernel, step = kernel_and_step(optimizer, 0.1)
    for _ in range(20):
        step(0.1)  # The moments push the kernel down.
    kernel.assign(np.zeros((4, 1)))
    begin(optimizer, kernel, GroupLasso(1.0, axes=(-1,)))
    for gradient in (0.1, 0.0, 0.05, 0.0, 0.0, 0.0):
        np.testing.assert_array_equal(step(gradient), 0.0)


def test_what_is_removed_acts_no_more_and_leaves_nothing():
    optimizer = optimizers.SGD(0.5)
    kernel, step = kernel_and_step(optimizer)
    before = vars(optimizer).keys()
    steps = begin(optimizer, kernel, GroupLasso(0.4, axes=(-1,)))
    assert not steps.were_done
    step()
    assert steps.were_done
    steps.end()
    assert vars(optimizer).keys() == before
    after = kernel.numpy()
    np.testing.assert_array_equal(step(), after)


def test_the_own_penalty_of_a_kernel_stays_in_the_loss():
    lasso = GroupLasso(1.0)
    kernel = random((3, 2))
    beside = BesideLasso(keras.regularizers.L2(0.5), lasso, in_loss=False)
    np.testing.assert_allclose(beside(kernel), 0.5 * np.square(kernel).sum())
    assert lasso.was_called
    for own in (None, lasso):
        assert float(BesideLasso(own, lasso, in_loss=False)(kernel)) == 0.0
    np.testing.assert_allclose(BesideLasso(lasso, lasso)(kernel), lasso(kernel))


def test_every_member_of_several_optimizers_is_followed_by_steps():
    members = optimizers.SGD(0.5), optimizers.Adam(0.01)
    kernels = [keras.Variable(np.ones((4, 1), "float32")) for _ in range(2)]
    optimizer = optimizers.MultiOptimizer(
        lambda v: members[v.path == kernels[1].path]
    )
    optimizer.build(kernels)
    for kernel in kernels:
        begin(optimizer, kernel, GroupLasso(0.4, axes=(-1,)))
    optimizer.apply([ops.zeros((4, 1))] * 2, kernels)
    np.testing.assert_allclose(np.linalg.norm(kernels[0]), 1.8, rtol=1e-5)
    np.testing.assert_allclose(kernels[1].numpy(), 1.0 - 0.01, rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_who_can_be_followed_prefers_it_unless_it_is_gradient_descent(name):
    optimizer = ALL[name]()
    optimizer.build([keras.Variable(random((2, 2)), name="kernel")])
    unfit = name in ("ftrl", "schedule_free")
    plain = name in ("schedule", "sgd", "ema", "loss_scale", "global_clipnorm")
    leaves = leaf_optimizers(optimizer)
    assert bool(unfit_optimizer(leaves)) == unfit
    preferred = "subgradient" if unfit or plain else "proximal"
    assert preferred_solver(leaves) == preferred


@pytest.mark.parametrize("strategy", ["mirrored"], indirect=True)
@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
def test_replicas_stay_equal_and_equal_one_device(strategy, name):
    def trained(scope, run):
        with scope:
            kernel = keras.Variable(random((6, 4)))
            optimizer = ALL[name]()
            optimizer.build([kernel])
            begin(optimizer, kernel, GroupLasso(0.5, axes=(-2, -1)))

        def update():
            gradient = 0.01 * ops.convert_to_tensor(kernel)
            optimizer.apply([gradient], [kernel])
            return gradient

        @tf.function
        def step():
            run(update)

        for _ in range(5):
            step()
        return kernel.value

    mirrored = trained(strategy.scope(), strategy.run)
    alone = trained(contextlib.nullcontext(), lambda function: function())
    first, second = (x.numpy() for x in mirrored.values)
    np.testing.assert_array_equal(first, second)
    # Each replica adds its gradient: twice that of one device, which adaptive
    # optimizers do not notice.
    if name != "sgd":
        np.testing.assert_allclose(first, alone.numpy(), rtol=1e-3, atol=2e-3)
    assert (first != random((6, 4))).all()
