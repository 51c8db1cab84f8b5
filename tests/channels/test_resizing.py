"""Constructor arguments for fewer channels, and rules that do not fit."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_prunetrain import LayerRule
from keras_prunetrain.channels.numbers import Channels
from keras_prunetrain.channels.resizing import new_arguments
from keras_prunetrain.channels.rules import rule_for

SIX = Channels(np.arange(6), 3, (None, 4, 4, 6))
KEEP = np.array([0, 2, 3])


def changed(layer, outputs=(SIX,), keeps=(KEEP,), rule=None):
    rule = rule or rule_for(layer)
    config = layer.get_config()
    return new_arguments(rule, layer, config, list(outputs), list(keeps))


def test_sizes_shrink_in_proportion():
    assert changed(layers.Conv2D(6, 3)) == {"filters": 3}
    depthwise = layers.Conv2D(6, 3, groups=3)
    depthwise.build((None, 4, 4, 3))
    assert changed(depthwise) == {"filters": 3, "groups": 1}


def test_nothing_changes_where_all_channels_stay():
    assert changed(layers.Conv2D(6, 3), keeps=[np.arange(6)]) == {}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((16, 6), [16, 3]), ((4, 4, -1), [4, 4, -1]), ((6,), [3])],
)
def test_a_shape_has_the_number_of_channels_that_are_left(shape, expected):
    assert changed(layers.Reshape(shape)) == {"target_shape": expected}


def test_the_cuts_of_a_split_move():
    split = ops.split(keras.KerasTensor((2, 4, 4, 6)), [2, 3], axis=-1)
    layer = split[0]._keras_history.operation
    parts = [
        Channels(np.arange(size), 3, (None, 4, 4, size)) for size in (2, 1, 3)
    ]
    keeps = [np.array([1]), np.array([0]), np.array([0, 2])]
    assert changed(layer, parts, keeps) == {"indices_or_sections": [1, 2]}
    layer.axis = 1
    assert changed(layer, parts, keeps) == {}


def test_numbers_per_channel_are_cut_and_a_number_for_all_stays():
    layer = layers.Rescaling([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 0.5)
    (value,) = changed(layer).values()
    assert keras.saving.deserialize_keras_object(value) == [0.0, 2.0, 3.0]


@pytest.mark.parametrize("name", ["filter", "padding"])
def test_a_size_that_the_layer_does_not_have_is_named_with_its_rule(name):
    rule = LayerRule("produces", (name,))
    with pytest.raises(
        ValueError,
        match=f"rule for Conv2D has '{name}' among its `size_arguments`, and "
        f"the config of 'own' has no number.*Received: {name}=",
    ):
        changed(layers.Conv2D(6, 3, name="own"), rule=rule)


@pytest.mark.parametrize("answer", [None, [("units", 3)], {1: 3}])
def test_a_resize_that_returns_no_dict_of_arguments_is_an_error(answer):
    rule = LayerRule("produces", resize=lambda *_: answer)
    with pytest.raises(ValueError, match="`resize` .* must return a dict"):
        changed(layers.Dense(6), rule=rule)
