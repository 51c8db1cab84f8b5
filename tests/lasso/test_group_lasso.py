"""GroupLasso against NumPy, at its kink, and inside compiled models."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_prunetrain import GroupLasso
from keras_prunetrain.lasso.group_lasso import BesideLasso


def norms(kernel, axis):
    others = tuple(i for i in range(kernel.ndim) if i != axis % kernel.ndim)
    return np.sqrt(np.square(kernel.astype("float64")).sum(axis=others))


def random_kernel(shape, dtype="float32"):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("axes", [(-2, -1), (-1,), (-2,), (0,)])
@pytest.mark.parametrize("shape", [(5, 4), (3, 3, 5, 4)])
def test_penalty_is_the_sum_of_channel_norms(shape, axes):
    kernel = random_kernel(shape)
    expected = 0.5 * sum(norms(kernel, axis).sum() for axis in axes)
    lasso = GroupLasso(factor=0.5, axes=axes)
    np.testing.assert_allclose(lasso(kernel), expected, rtol=1e-5)
    np.testing.assert_allclose(lasso.unscaled(kernel), 2 * expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "penalty_dtype", "rtol"),
    [
        ("float64", "float32", 1e-6),
        ("float32", "float32", 1e-5),
        # Sums of squares in bfloat16 would be wrong by per cents.
        ("bfloat16", "float32", 1e-5),
    ],
)
def test_penalty_is_computed_in_float32_or_better(dtype, penalty_dtype, rtol):
    kernel = tf.cast(random_kernel((40, 30)), dtype)
    penalty = GroupLasso(factor=0.5)(kernel)
    exact = tf.cast(kernel, "float64").numpy()
    expected = 0.5 * (norms(exact, 0).sum() + norms(exact, 1).sum())
    assert penalty.dtype == penalty_dtype
    np.testing.assert_allclose(penalty, expected, rtol=rtol)


def test_a_float64_model_has_a_float64_penalty(float64):
    kernel = random_kernel((40, 30), "float64")
    penalty = GroupLasso(factor=0.5)(kernel)
    expected = 0.5 * (norms(kernel, 0).sum() + norms(kernel, 1).sum())
    assert penalty.dtype == "float64"
    # The factor is float32, and 0.5 is one.
    np.testing.assert_allclose(penalty, expected, rtol=1e-7)


@pytest.mark.parametrize("own", [None, "l2"])
def test_layers_of_float64_train_beside_losses_of_float32(own):
    def dense(dtype, **kwargs):
        return keras.layers.Dense(4, kernel_regularizer=lasso, dtype=dtype)

    lasso = BesideLasso(own and keras.regularizers.L2(0.1), GroupLasso(0.1))
    model = keras.Sequential(
        [keras.Input((3,)), dense("float64"), dense("float32")]
    )
    model.compile("sgd", "mse", run_eagerly=True)
    history = model.fit(np.ones((4, 3)), np.ones((4, 4)), verbose=0)
    assert np.isfinite(history.history["loss"]).all()


def gradient_of(lasso, kernel, run):
    def gradient():
        with tf.GradientTape() as tape:
            penalty = lasso(kernel)
        return tape.gradient(penalty, kernel)

    if run == "eager":
        return gradient().numpy()
    return tf.function(gradient, jit_compile=run == "xla")().numpy()


@pytest.mark.parametrize("run", ["eager", "graph", "xla"])
def test_gradient_of_a_dead_channel_is_zero_not_nan(run):
    kernel = tf.Variable([[3.0, 0.0], [4.0, 0.0]])
    lasso = GroupLasso(factor=1.0, axes=(-1,))
    expected = [[0.6, 0.0], [0.8, 0.0]]
    np.testing.assert_allclose(
        gradient_of(lasso, kernel, run), expected, rtol=1e-6
    )


def test_gradient_fades_below_the_threshold_of_the_paper():
    # At full slope down to zero a channel would jump to and fro across it.
    kernel = tf.Variable([[1e-2, 1e-5]])
    lasso = GroupLasso(factor=1.0, axes=(-1,))
    gradient = gradient_of(lasso, kernel, "eager")[0]
    np.testing.assert_allclose(gradient, [1.0, 0.1], rtol=1e-2)


@pytest.mark.parametrize("strategy", ["default", "mirrored"], indirect=True)
def test_compiled_model_sees_a_new_factor(strategy):
    with strategy.scope():
        lasso = GroupLasso(factor=0.0)
        layer = keras.layers.Dense(3, kernel_regularizer=lasso)
        model = keras.Sequential([keras.Input((5,)), layer])
        model.compile(loss="mse")
    x, y = np.ones((8, 5)), np.ones((8, 3))
    before = model.evaluate(x, y, verbose=0)

    lasso.factor = 2.0

    after = model.evaluate(x, y, verbose=0)
    kernel = layer.get_weights()[0]
    expected = 2.0 * (norms(kernel, 0).sum() + norms(kernel, 1).sum())
    np.testing.assert_allclose(after - before, expected, rtol=1e-4)


@pytest.mark.parametrize("strategy", ["default", "mirrored"], indirect=True)
def test_factor_survives_config_and_file(strategy, tmp_path):
    with strategy.scope():
        lasso = GroupLasso(axes=(-1,))
        lasso.factor = 0.25
        layer = keras.layers.Dense(3, kernel_regularizer=lasso)
        model = keras.Sequential([keras.Input((5,)), layer])
        model.save(tmp_path / "model.keras")
        clone = layer.from_config(layer.get_config()).kernel_regularizer
        loaded = keras.saving.load_model(tmp_path / "model.keras").layers[0]
    for copy in clone, loaded.kernel_regularizer:
        assert copy.factor == 0.25
        assert copy.axes == (-1,)
        assert copy.factor is not lasso.factor


def test_name_in_files_never_changes():
    name = keras.saving.get_registered_name(GroupLasso)
    assert name == "keras_prunetrain>GroupLasso"


def test_beside_lasso_adds_what_was_there():
    kernel = random_kernel((5, 4))
    lasso = GroupLasso(factor=0.5, axes=(-1,))
    l2 = keras.regularizers.L2(0.1)
    penalty = 0.5 * norms(kernel, -1).sum()
    np.testing.assert_allclose(
        BesideLasso(None, lasso)(kernel), penalty, rtol=1e-5
    )
    np.testing.assert_allclose(
        BesideLasso(l2, lasso)(kernel),
        penalty + 0.1 * np.square(kernel).sum(),
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    "factor", [-1.0, float("inf"), float("nan"), 1e300, "1", None, True, [1.0]]
)
def test_factor_must_be_a_number_that_a_float32_can_hold(factor):
    lasso = GroupLasso(0.5)
    message = re.escape(
        "`factor` of GroupLasso must be a number between 0 and 3.4e+38. "
        f"Received: factor={factor!r}"
    )
    with pytest.raises(ValueError, match=message):
        GroupLasso(factor)
    with pytest.raises(ValueError, match=message):
        lasso.factor = factor
    assert lasso.factor == 0.5


@pytest.mark.parametrize(
    "axes", [(), (0.5,), ("out",), (True,), 5, None, (-1, -1), np.array(1)]
)
def test_axes_must_be_integers_each_once(axes):
    with pytest.raises(ValueError, match="one or more axes .* Received: axes"):
        GroupLasso(axes=axes)


def test_numbers_of_numpy_are_numbers():
    lasso = GroupLasso(np.float32(0.5), np.array([-1]))
    assert (lasso.factor, lasso.axes) == (0.5, (-1,))
    assert GroupLasso.from_config(lasso.get_config()).axes == (-1,)


@pytest.mark.parametrize("axes", [(2,), (-3,), (99,), (1, -1)])
def test_axes_that_the_kernel_has_not_are_refused(axes):
    message = r"on a kernel of shape \(5, 4\). Expected: .* in \[-2, 1\]"
    with pytest.raises(ValueError, match=message):
        GroupLasso(1.0, axes)(random_kernel((5, 4)))


@pytest.mark.parametrize("kernel", [None, 2.0, [[1.0, 2.0]], "kernel"])
def test_what_is_no_kernel_is_refused(kernel):
    with pytest.raises(ValueError, match="on a kernel, .* Received: kernel="):
        GroupLasso(1.0)(kernel)
    with pytest.raises(ValueError, match="on a kernel, .* Received: kernel="):
        GroupLasso(1.0).unscaled(kernel)
