"""Which channels live: thresholds, unions, and what holds the dead."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_prunetrain import reconfigure
from keras_prunetrain.channels.liveness import plan_cut
from keras_prunetrain.channels.options import CutOptions
from tests import networks
from tests.networks import conv, kill, kill_all, shake


def chain(channels=6):
    """Image -> `a` -> `b` -> output; every weight 1, every bias 0."""
    image = keras.Input((4, 4, 2))
    x = conv(conv(image, channels, "a"), 3, "b")
    model = keras.Model(image, x)
    for name in "ab":
        kernel = model.get_layer(name).kernel
        kernel.assign(np.ones(kernel.shape))
    return model


def kept(model, layer="a", **kwargs):
    """Positions of `layer`'s channels that stay."""
    plan = plan_cut(model, CutOptions(**kwargs))
    return plan.keep(plan.numbering.outputs[layer][0].numbers).tolist()


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0099, [0, 2, 3]), (0.01, [0, 1, 2, 3])]
)
def test_a_weight_that_reaches_the_threshold_lives(value, expected):
    model = chain(4)
    # Negative ones too: it is the magnitude that counts.
    value = -np.float32(value)
    kernel = model.get_layer("a").kernel.numpy()
    kernel[..., 1] = 0.0
    kernel[1, 2, 0, 1] = value
    model.get_layer("a").kernel.assign(kernel)
    kill(model, {}, {"b": [1]})
    assert kept(model, threshold=float(np.float32(0.01))) == expected


def test_a_threshold_of_zero_removes_nothing():
    model = chain(4)
    kill(model, {"a": [1]}, {"b": [1]})
    assert kept(model, threshold=0.0) == [0, 1, 2, 3]


@pytest.mark.parametrize("side", ["writes", "reads"])
def test_a_channel_that_lives_on_one_side_stays(side):
    model = chain(4)
    kill(model, **{side: {"a" if side == "writes" else "b": [1]}})
    assert plan_cut(model, CutOptions()).removes_nothing


def test_only_what_is_dead_in_all_coupled_layers_goes():
    network = networks.residual()
    shake(network.model)
    everyone = {"conv1": [1, 2, 4], "logits": [1, 2, 4]}
    kill(
        network.model,
        {"stem": [1, 2], "conv2": [2, 4]},
        everyone,
        networks.TINY,
    )
    for layer in ("stem", "conv2"):
        assert kept(network.model, layer) == [0, 1, 3, 4, 5]  # Not 2.


def with_strengths(*strengths):
    """A chain whose channels' largest weights are these."""
    model = chain(len(strengths))
    kernel = model.get_layer("a").kernel
    kernel.assign(np.ones(kernel.shape) * np.asarray(strengths))
    kernel = model.get_layer("b").kernel
    kernel.assign(np.zeros(kernel.shape))
    return model


def test_if_all_are_dead_the_strongest_stays():
    model = with_strengths(1e-6, 3e-6, 0.0, 2e-6)
    assert kept(model) == [1]
    assert kept(model, min_channels=2) == [1, 3]
    assert kept(model, min_channels=9) == [0, 1, 2, 3]


def test_the_readers_weights_count_for_the_strongest():
    model = with_strengths(1e-6, 3e-6, 0.0, 2e-6)
    kernel = model.get_layer("b").kernel.numpy()
    kernel[0, 0, 2, 0] = -9e-6
    model.get_layer("b").kernel.assign(kernel)
    assert kept(model) == [2]


@pytest.mark.parametrize(
    ("multiple", "expected"),
    [
        (1, [0, 1, 2]),
        (2, [0, 1, 2, 5]),
        (3, [0, 1, 2]),
        (5, [0, 1, 2, 3, 5]),
        (4, [0, 1, 2, 5]),
        (8, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_a_multiple_is_reached_by_keeping_the_strongest_dead(
    multiple, expected
):
    model = with_strengths(1.0, 1.0, 1.0, 2e-6, 1e-6, 3e-6)
    assert kept(model, channel_multiple=multiple) == expected


def test_a_multiple_holds_where_channels_are_tied_in_pairs():
    image = keras.Input((4, 4, 2))
    x = conv(image, 12, "a")
    x = layers.Concatenate()([x[..., :4] + x[..., 4:8], x[..., 8:]])
    model = keras.Model(image, conv(x, 3, "b"))
    shake(model)
    kill(model, {"a": [0, 1, 4, 5, 8, 9]}, {"b": [0, 1, 4, 5]})
    assert len(kept(model)) == 6
    assert len(kept(model, channel_multiple=4)) == 8
    assert len(kept(model, min_channels=7)) in (7, 8)


@pytest.mark.parametrize(
    ("width", "living", "multiple", "left"),
    [(4, 4, 1, 5), (4, 4, 2, 6), (4, 3, 1, 3), (3, 3, 1, 4), (1, 1, 1, 1)],
)
@pytest.mark.parametrize("use_bias", [True, False])
def test_channels_first_never_become_as_many_as_columns(
    width, living, multiple, left, use_bias
):
    # Keras adds a bias along the columns if it has as many entries.
    image = keras.Input((2, 4, width))
    first = {"data_format": "channels_first"}
    x = layers.Conv2D(8, 1, name="a", use_bias=use_bias, **first)(image)
    x = layers.ReLU()(x)
    model = keras.Model(
        image, layers.Conv2D(2, 1, name="b", use_bias=False, **first)(x)
    )
    shake(model)
    dead = list(range(8 - living))
    kill(model, {"a": dead}, {"b": dead})
    x = np.random.default_rng(0).normal(size=(3, 2, 4, width))
    expected = networks.compiled_outputs(model, x)
    smaller = reconfigure(model, channel_multiple=multiple)
    filters = smaller.get_layer("a").filters
    assert filters == (left if use_bias else living)
    np.testing.assert_allclose(
        networks.compiled_outputs(smaller, x), expected, atol=1e-5
    )


def test_a_multiple_holds_in_every_layer():
    network = networks.plain()
    shake(network.model)
    kill_all(network)
    assert kept(network.model, "a", channel_multiple=5) == [0, 1, 2, 3, 5]
    assert kept(network.model, "b", channel_multiple=5) == [0, 1, 2, 3, 4]


def test_a_channel_revived_in_one_layer_may_upset_another():
    # `whole` is `left` and `right` beside each other, two channels each.
    image = keras.Input((4, 4, 2))
    parts = keras.layers.Concatenate()(
        [conv(image, 2, "left"), conv(image, 2, "right")]
    )
    x = keras.layers.Add()([conv(image, 4, "whole"), parts])
    model = keras.Model(image, conv(x, 1, "out"))
    shake(model)
    dead = {"left": [1], "right": [0, 1], "whole": [1, 2, 3]}
    kill(model, dead, {"out": [1, 2, 3]})
    # One of `right` stays; with that of `left`, two of `whole`: a multiple.
    assert kept(model, "whole") == [0, 2]
    # Four of `whole`: one alive in `left` makes two, and so on.
    assert kept(model, "whole", channel_multiple=2) == [0, 1, 2, 3]


def test_each_piece_of_a_split_keeps_a_channel():
    image = keras.Input((4, 4, 2))
    left, right = keras.ops.split(conv(image, 6, "a"), 2, axis=-1)
    x = layers.Concatenate()([conv(left, 3, "b"), conv(right, 3, "c")])
    model = keras.Model(image, x)
    shake(model)
    kill(model, {"a": [3, 4, 5]}, {"c": [0, 1, 2]})
    assert len(kept(model)) == 4


def test_multiples_hold_in_every_layer_that_shares_the_channels():
    network = networks.concatenating()
    shake(network.model)
    kill_all(network)
    plan = plan_cut(network.model, CutOptions(channel_multiple=2))
    for layer, count in (("stem", 4), ("conv1", 2), ("conv2", 2)):
        numbers = plan.numbering.outputs[layer][0].numbers
        assert len(plan.keep(numbers)) == count
    assert set(plan.reasons.values()) == {"channel_multiple"}


@pytest.mark.parametrize(
    "skip",
    [
        *("a", "[a]", ["a", "b"], "a*", ("b",), "layer", ["layer"]),
        lambda layer: layer.name == "a",
        [lambda layer: isinstance(layer, layers.Conv2D)],
    ],
)
def test_channels_that_a_skipped_layer_writes_or_reads_stay(skip):
    model = chain(4)
    kill(model, {"a": [1]}, {"b": [1]})
    if skip == "layer":
        skip = model.get_layer("a")
    elif skip == ["layer"]:
        skip = [model.get_layer("b")]
    plan = plan_cut(model, CutOptions(skip=skip))
    assert plan.removes_nothing
    assert list(plan.reasons.values())[0].startswith("skip: ")
    assert kept(model) == [0, 2, 3]


def test_a_layer_without_weights_can_be_skipped():
    network = networks.residual()
    shake(network.model)
    kill_all(network)
    assert kept(network.model, "stem") == [0, 2, 3, 5]
    assert kept(network.model, "stem", skip="add") == [0, 1, 2, 3, 4, 5]
    assert kept(network.model, "conv1", skip="add") == [0, 1, 3]


@pytest.mark.parametrize("skip", ["inner", "inner/*", "object"])
def test_a_nested_model_can_be_skipped(skip):
    network = networks.nested()
    shake(network.model)
    kill_all(network)
    if skip == "object":
        skip = network.model.get_layer("inner")
    assert kept(network.model, "inner/a", skip=skip) == [0, 1, 2, 3, 4, 5]
    assert kept(network.model, "stem", skip=skip) == [0, 1, 2, 3, 4]
    assert kept(network.model, "neck/c", skip=skip) == [0, 2, 3]


@pytest.mark.parametrize("skip", ["c", "A", ["a", "z*"]])
def test_a_skip_without_a_match_is_an_error_that_lists_the_layers(skip):
    with pytest.raises(
        ValueError, match="matches no layer's name. Layers: a, b"
    ):
        plan_cut(chain(), CutOptions(skip=skip))


def test_skipping_a_layer_of_another_model_is_an_error():
    other = chain().get_layer("a")
    with pytest.raises(ValueError, match="`skip` names 'a', which is no layer"):
        plan_cut(chain(), CutOptions(skip=other))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_an_error(value):
    network = networks.plain()
    network.model.compile("sgd", "mse")
    kernel = network.model.get_layer("b").kernel.numpy()
    kernel[0, 0, 0, 0] = value
    network.model.get_layer("b").kernel.assign(kernel)
    with pytest.raises(ValueError, match=r"'b' has weights.*\(b/kernel\)"):
        reconfigure(network.model)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("threshold", x) for x in (True, "1", None, -1e-9, 10**400)),
        *(("threshold", float(x)) for x in ("nan", "inf")),
        *(("channel_multiple", x) for x in (True, 0, 2.0, "2", np.int64(0))),
        *(("channel_multiple", x) for x in ("Auto", None, ["auto"], b"auto")),
        *(("min_channels", x) for x in (False, -1, None, [1])),
        *(("fold", x) for x in ("no", 0, None)),
    ],
)
def test_limits_of_the_wrong_kind_are_errors(argument, value):
    model = chain()
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=f"`{argument}` must be"):
        reconfigure(model, **{argument: value})


def test_limits_may_be_numbers_of_numpy():
    model = with_strengths(1.0, 1.0, 1.0, 2e-6, 1e-6, 3e-6)
    limits = {"threshold": np.float32(1e-4), "channel_multiple": np.int64(2)}
    assert kept(model, **limits, min_channels=np.uint8(1)) == [0, 1, 2, 5]
