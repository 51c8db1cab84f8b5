"""Scores of channel numbers, against sums and differences by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_prunetrain import saliency
from keras_prunetrain.channels.numbering import number_channels
from tests import networks


def slices(label, array):
    """An array of the weight, `(channels, everything else)`."""
    return np.moveaxis(array, label.axis, 0).reshape(len(label.numbers), -1)


@pytest.mark.parametrize("build", networks.sampled())
def test_magnitude_is_the_mean_of_relative_squared_norms(build):
    model = build().model
    networks.shake(model)
    numbering = number_channels(model)
    found = saliency.magnitude(numbering)
    for number in range(numbering.size):
        relative = []
        for label in numbering.kernels():
            squares = (slices(label, label.weight.numpy()) ** 2).sum(1)
            relative += list(
                (squares / squares.mean())[label.numbers == number]
            )
        expected = np.mean(relative) if relative else 0.0
        assert found[number] == pytest.approx(expected, rel=1e-5)


def test_magnitude_of_a_kernel_of_zeros_is_zero():
    model = networks.plain().model
    for weight in model.weights:
        weight.assign(np.zeros(weight.shape))
    assert not saliency.magnitude(number_channels(model)).any()


def test_magnitude_of_weights_that_are_not_finite_is_nan():
    model = networks.plain().model
    kernel = model.get_layer("b").kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    assert np.isnan(saliency.magnitude(number_channels(model))).any()


def test_random_scores_are_equal_for_equal_seeds_only():
    numbering = number_channels(networks.plain().model)
    one, same = (saliency.random(numbering, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one, same)
    assert (one != saliency.random(numbering, seed=4)).all()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("build", networks.sampled())
def test_a_gate_has_the_gradient_of_a_factor_on_all_reads(build):
    model = build().model
    networks.shake(model)
    rng = np.random.default_rng(1)
    x = [rng.normal(size=(4, *i.shape[1:])) for i in model.inputs]
    y = rng.normal(size=(4, *model.outputs[0].shape[1:]))
    numbering = number_channels(model)
    reading = saliency.readers(numbering)
    assert reading

    def loss():
        # Without it, layers that augment images draw anew in each call.
        out = model(x if len(x) > 1 else x[0], training=False)
        out = keras.tree.flatten(out)[0]
        return tf.reduce_mean(tf.square(out - y))

    with tf.GradientTape() as tape:
        value = loss()
    kernels = {id(label.weight): label.weight for label in reading}
    gradients = dict(
        zip(
            kernels,
            tape.gradient(value, [v.value for v in kernels.values()]),
            strict=True,
        )
    )
    found = saliency.gate_gradients(reading, gradients, numbering.size).numpy()
    read = np.unique(np.concatenate([label.numbers for label in reading]))
    for number in rng.choice(read, min(4, len(read)), replace=False):
        sides = []
        for factor in (1 + 1e-5, 1 - 1e-5):
            before = {i: v.numpy() for i, v in kernels.items()}
            for label in reading:
                gated = np.moveaxis(label.weight.numpy(), label.axis, 0).copy()
                gated[label.numbers == number] *= factor
                label.weight.assign(np.moveaxis(gated, 0, label.axis))
            sides.append(float(loss()))
            for i, v in kernels.items():
                v.assign(before[i])
        expected = (sides[0] - sides[1]) / 2e-5
        assert found[number] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert np.abs(found[read]).max() > 1e-4


def test_a_weight_without_a_gradient_does_not_count():
    model = networks.plain().model
    numbering = number_channels(model)
    found = saliency.gate_gradients(saliency.readers(numbering), {}, 3)
    np.testing.assert_array_equal(found, [0.0, 0.0, 0.0])
    assert numbering.size > 3


def test_kernels_that_do_not_train_are_no_readers():
    model = networks.plain().model
    model.get_layer("b").trainable = False
    numbering = number_channels(model)
    layers = {x.layer for x in saliency.readers(numbering)}
    assert "b" not in layers and "logits" in layers


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda numbering: np.zeros(3), "one number for each of the"),
        (lambda numbering: "abc", "one number for each of the"),
        (lambda numbering: np.full(numbering.size, np.nan), "nan for channel"),
        (lambda numbering: np.full(numbering.size, -1.0), "-1.0 for channel"),
        (lambda numbering: 1 / 0, "`score` fails: ZeroDivisionError"),
    ],
)
def test_a_wrong_score_is_refused(score, message):
    numbering = number_channels(networks.plain().model)
    with pytest.raises(ValueError, match=message):
        saliency.number_score(score)(numbering)


@pytest.mark.parametrize("score", ["tailor", None, 3])
def test_an_unknown_score_is_refused(score):
    with pytest.raises(
        ValueError, match="'taylor', 'magnitude', 'gradient_flow', 'snip'"
    ):
        saliency.number_score(score)
