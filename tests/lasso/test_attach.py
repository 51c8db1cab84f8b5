"""Where the lasso goes, what it weighs, and that it leaves no trace."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_prunetrain import GroupLasso, models
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.lasso import attach
from keras_prunetrain.lasso.calibrated import calibrated_factor


def small_model():
    """Two convolutions, a hidden and a last dense layer; L2 on two of them."""
    l2 = keras.regularizers.L2(0.01)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="first", kernel_regularizer=l2)(inputs)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.Conv2D(6, 3, name="second")(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(5, name="hidden", bias_regularizer=l2)(x)
    model = keras.Model(inputs, layers.Dense(2, name="logits")(x))
    model.compile("sgd", "mse")
    return model


def attached(model, skip=()):
    return attach.attach_lasso(model, number_channels(model), skip)


def axes_of(model):
    return {
        kernel.path.split("/")[0]: lasso.axes
        for lasso, kernel in attach.lassos_of(model)
    }


def norms_of(model):
    """Eq. 2 at factor 1, by NumPy: the sum of the norms of all groups."""
    total = 0.0
    for name, axes in axes_of(model).items():
        kernel = model.get_layer(name).get_weights()[0].astype("float64")
        for axis in axes:
            out = axis % kernel.ndim
            others = tuple(i for i in range(kernel.ndim) if i != out)
            total += np.sqrt(np.square(kernel).sum(others) + 1e-8).sum()
    return total


def test_both_sides_but_the_images_and_the_logits():
    model = small_model()
    kernels = attached(model)
    assert axes_of(model) == {
        "first": (-1,),
        "second": (-2, -1),
        "hidden": (-2, -1),
        "logits": (-2,),
    }
    assert [kernel.path for kernel in kernels] == [
        f"{name}/kernel" for name in ("first", "second", "hidden", "logits")
    ]
    assert all(lasso.factor == 0 for lasso, _ in attach.lassos_of(model))


def test_skipped_layers_and_frozen_sides_get_none():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 1, name="first")(inputs)
    x = layers.Conv2D(4, 1, name="skipped")(x)
    x = layers.Conv2D(4, 1, name="before")(x)
    x = layers.LayerNormalization()(x)
    x = layers.Conv2D(4, 1, name="after")(x)
    model = keras.Model(inputs, layers.Conv2D(4, 1, name="last")(x))
    attached(model, skip=("skipped",))
    assert axes_of(model) == {
        "first": (-1,),
        "before": (-2,),
        "after": (-1,),
        "last": (-2,),
    }


def test_nothing_is_attached_where_all_channels_stay():
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Conv2D(4, 1)(inputs))
    assert attached(model) == []
    assert model.losses == []


def test_layers_that_share_a_role_share_one_factor():
    model = small_model()
    attached(model)
    first = model.get_layer("second").kernel.regularizer.lasso
    first.factor = 3.0
    assert model.get_layer("hidden").kernel.regularizer.lasso.factor == 3.0
    assert model.get_layer("logits").kernel.regularizer.lasso.factor == 0.0


def test_own_regularizer_acts_beside_and_comes_back_as_the_same_object():
    model = small_model()
    own = {weight.path: weight.regularizer for weight in model.weights}
    l2 = float(sum(model.losses))
    attached(model)
    for lasso, _ in attach.lassos_of(model):
        lasso.factor = 0.5
    np.testing.assert_allclose(
        float(sum(model.losses)), l2 + 0.5 * norms_of(model), rtol=1e-5
    )

    attach.detach_lasso(model)

    for weight in model.weights:
        assert weight.regularizer is own[weight.path], weight.path
    np.testing.assert_allclose(float(sum(model.losses)), l2, rtol=1e-6)


def test_a_regularizer_of_the_user_stays_when_lasso_leaves():
    model = small_model()
    mine = GroupLasso(0.5)
    model.get_layer("second").kernel.regularizer = mine
    attach.detach_lasso(model)
    assert model.get_layer("second").kernel.regularizer is mine
    assert axes_of(model) == {"second": (-2, -1)}


def test_penalties_are_what_keras_adds_to_the_loss():
    model = small_model()
    attached(model)
    for lasso, _ in attach.lassos_of(model):
        lasso.factor = 0.5
    model.get_layer("hidden").trainable = False  # Then Keras leaves it out.
    assert "hidden" not in axes_of(model)
    penalties = attach.weight_penalties(model)
    np.testing.assert_allclose(penalties, float(sum(model.losses)), rtol=1e-6)
    lasso = attach.lasso_penalty(model)
    np.testing.assert_allclose(lasso, 0.5 * norms_of(model), rtol=1e-5)
    first = model.get_layer("first").get_weights()[0]
    l2 = 0.01 * np.square(first).sum()
    np.testing.assert_allclose(penalties - lasso, l2, rtol=1e-4)


@pytest.mark.parametrize("ratio", [0.2, 0.9])
def test_factor_is_that_of_equation_3(ratio):
    model = small_model()
    attached(model)
    factor = calibrated_factor(attach.lasso_norms(model), 1.7, ratio)
    penalty = factor * norms_of(model)
    np.testing.assert_allclose(penalty / (1.7 + penalty), ratio, rtol=1e-5)


@pytest.mark.parametrize(
    ("build", "factor"),
    [
        (models.resnet32, 1.77e-4),
        (models.resnet50_cifar, 4.1e-5),
        (models.vgg11, 8.6e-5),
    ],
)
def test_factor_of_the_papers_networks(build, factor):
    # For the loss of ten equal logits, at initialization.
    model = build()
    attached(model)
    found = calibrated_factor(attach.lasso_norms(model), math.log(10), 0.2)
    np.testing.assert_allclose(found, factor, rtol=0.02)


@pytest.mark.parametrize("strategy", ["mirrored"], indirect=True)
def test_lasso_is_distributed_with_its_model(strategy):
    with strategy.scope():
        model = small_model()
    attached(model)  # Outside of the scope.
    for lasso, _ in attach.lassos_of(model):
        factor = lasso._factor.value
        assert isinstance(factor, tf.distribute.DistributedValues)
        lasso.factor = 0.5
    x, y = np.ones((4, 8, 8, 3)), np.ones((4, 2))
    with_lasso = model.evaluate(x, y, verbose=0)
    for lasso, _ in attach.lassos_of(model):
        lasso.factor = 0.0
    difference = with_lasso - model.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(difference, 0.5 * norms_of(model), rtol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_found(value):
    model = small_model()
    assert attach.all_finite(model)
    mean = model.get_layer("bn").moving_mean
    mean.assign([0.0, value, 0.0, 0.0])
    assert not attach.all_finite(model)


def test_infinities_that_cancel_are_found():
    model = small_model()
    model.get_layer("bn").moving_mean.assign([np.inf, -np.inf, 0.0, 0.0])
    assert not attach.all_finite(model)
