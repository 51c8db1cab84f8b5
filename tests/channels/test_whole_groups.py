"""Groups of a convolution that go as a whole."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_prunetrain as kpt
from keras_prunetrain.channels.numbering import number_channels
from tests.masked import silence
from tests.networks import conv, conv_bn, head, images, outputs, shake


def aggregated(prefix=""):
    """A residual block of ResNeXt: three groups of two channels each."""
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 4, f"{prefix}stem")
    y = conv_bn(x, 6, f"{prefix}narrow", 1)
    y = conv_bn(y, 6, f"{prefix}groups", groups=3)
    y = conv_bn(y, 4, f"{prefix}wide", 1)
    return keras.Model(image, head(layers.Add()([x, y])))


def test_other_layers_of_the_model_keep_their_groups():
    image = keras.Input((6, 6, 2))
    x = conv(image, 6, "stem")
    x = conv(x, 6, "whole", groups=3)
    x = conv(x, 6, "between")
    x = conv(x, 6, "thin", groups=3)
    model = keras.Model(image, head(x))
    assert kpt.prune_whole_groups(model, "whole") is model
    found = {
        key: len(np.unique(channels[0].numbers))
        for key, channels in number_channels(model).outputs.items()
    }
    names = "stem", "whole", "between", "thin"
    assert [found[name] for name in names] == [3, 3, 2, 2]


def test_a_second_cut_takes_whole_groups_as_well(float64):
    model = kpt.prune_whole_groups(aggregated())
    shake(model)
    x = images()
    for left in (2, 1):
        numbering = number_channels(model)
        alive = np.ones(numbering.size, bool)
        alive[numbering.outputs["groups"][0].numbers[:2]] = False
        silence(numbering, alive)
        expected = outputs(model, x)
        model = kpt.reconfigure(model)
        layer = model.get_layer("groups")
        assert (layer.groups, layer.filters) == (left, 2 * left)
        assert layer.kernel.shape == (3, 3, 2, 2 * left)
        np.testing.assert_allclose(outputs(model, x), expected, atol=1e-12)


@pytest.mark.long
def test_a_target_in_fit_takes_whole_groups(tmp_path):
    model = kpt.prune_whole_groups(aggregated())
    model.compile("adam", "mse")
    before = kpt.model_cost(model).parameters
    pruning = kpt.TargetPruneCallback(
        parameters=0.6, rounds=1, reconfigure={"skip": "stem"}
    )
    x, y = images(32), np.zeros((32, 3))
    model.fit(x, y, epochs=3, verbose=0, callbacks=[pruning])
    layer = model.get_layer("groups")
    assert layer.filters == 2 * layer.groups < 6
    assert kpt.model_cost(model).parameters <= 0.6 * before
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(outputs(loaded, x), outputs(model, x))


@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_a_constant_passes_a_group_only_if_the_whole_group_is_zero(
    bias, float64
):
    image = keras.Input((6, 6, 2))
    x = conv(image, 6, "before")
    x = conv(x, 3, "groups", groups=3, use_bias=False)
    model = kpt.prune_whole_groups(keras.Model(image, head(x)))
    shake(model)
    kernel, biases = model.get_layer("before").weights
    kernel.assign(kernel * [0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    biases.assign([0.0, 0.0, 0.0, bias, 1.0, 1.0])
    x = images()
    expected = outputs(model, x)
    smaller = kpt.reconfigure(model, fold=True)
    # Of the second group, one channel is zero, and the other is computed.
    assert smaller.get_layer("groups").groups == 2
    np.testing.assert_allclose(outputs(smaller, x), expected, atol=1e-12)


def test_a_convolution_for_each_step_takes_whole_groups(float64):
    clips = keras.Input((2, 6, 6, 2))
    x = layers.TimeDistributed(conv_layer(6, 1), name="before")(clips)
    x = layers.TimeDistributed(conv_layer(6, 3), name="groups")(x)
    x = layers.TimeDistributed(conv_layer(2, 1), name="after")(x)
    model = kpt.prune_whole_groups(keras.Model(clips, x), "groups")
    numbering = number_channels(model)
    assert len(np.unique(numbering.outputs["groups"][0].numbers)) == 3


def test_the_last_group_stays_whole(float64):
    model = kpt.prune_whole_groups(aggregated())
    shake(model)
    numbering = number_channels(model)
    alive = np.ones(numbering.size, bool)
    alive[numbering.outputs["groups"][0].numbers[:4]] = False
    silence(numbering, alive)
    model = kpt.reconfigure(model)
    assert model.get_layer("groups").groups == 1
    assert distinct_numbers(model, "groups") == 1
    kernel = model.get_layer("narrow").kernel
    kernel.assign(kernel * [0.0, 1.0])
    assert kpt.reconfigure(model) is model


def beside(*others):
    """A model with a layer of three groups, and others that also have some."""
    image = keras.Input((6, 6, 4))
    x = conv(image, 6, "images", groups=2) if "images" in others else image
    x = conv(x, 6, "before")
    if "wrapped" in others:
        x = layers.SpectralNormalization(conv_layer(6, 3), name="wrapped")(x)
        x = conv(x, 6, "between")
    if "own" in others:
        x = Own(6, 3, groups=3, padding="same", name="own")(x)
        x = conv(x, 6, "behind")
    if "groups" in others:
        x = conv(x, 6, "groups", groups=3)
    return keras.Model(image, head(x))


class Own(layers.Conv2D):
    """A subclass, which has no rule."""


@pytest.mark.parametrize("other", ["images", "wrapped", "own"])
def test_a_layer_that_could_lose_no_group_stays_as_it_is(other):
    model = beside(other, "groups")
    before = distinct_numbers(model, other)
    kpt.prune_whole_groups(model)
    assert distinct_numbers(model, "groups") == 3
    assert distinct_numbers(model, other) == before


def distinct_numbers(model, key):
    return len(np.unique(number_channels(model).outputs[key][0].numbers))


@pytest.mark.parametrize("layers", [None, "images", ["images"]])
def test_why_no_group_could_go_is_said(layers):
    model = beside("images")
    with pytest.raises(ValueError, match=r"images \(model input\)"):
        kpt.prune_whole_groups(model, layers)
    assert distinct_numbers(model, "images") == 3


def test_a_mark_from_before_outlives_an_error():
    model = kpt.prune_whole_groups(beside("images", "groups"), "groups")
    with pytest.raises(ValueError, match="model input"):
        kpt.prune_whole_groups(model, ["images", "groups"])
    assert distinct_numbers(model, "groups") == 3


def conv_layer(filters, groups):
    return layers.Conv2D(filters, 3, padding="same", groups=groups)


@pytest.mark.parametrize("layers", ["*", "stem", ["groups", "wide"], ()])
def test_what_has_no_groups_is_named(layers):
    with pytest.raises(ValueError, match="Such layers: groups"):
        kpt.prune_whole_groups(aggregated(), layers)


def test_nothing_is_marked_if_one_layer_has_no_groups():
    model = aggregated()
    with pytest.raises(ValueError, match="asked for: wide"):
        kpt.prune_whole_groups(model, ["groups", "wide"])
    found = number_channels(model).outputs["groups"][0].numbers
    assert len(np.unique(found)) == 2


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="`layers` names 'missing'"):
        kpt.prune_whole_groups(aggregated(), "missing")


def test_a_group_in_a_nested_model_goes(float64):
    image = keras.Input((6, 6, 2))
    inner = aggregated("inner_")
    outer = keras.Model(image, layers.Dense(2)(inner(image)))
    kpt.prune_whole_groups(outer)
    numbering = number_channels(outer)
    channels = numbering.outputs[f"{inner.name}/inner_groups"][0]
    assert len(np.unique(channels.numbers)) == 3
