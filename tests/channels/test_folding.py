"""A channel that is a constant goes if its readers can take it over."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_prunetrain import LayerRule, reconfigure, register_rule
from keras_prunetrain.channels import rules
from tests.networks import conv, conv_bn, head, images, kill, outputs, shake

pytestmark = pytest.mark.usefixtures("float64")


def folded(image, x, dead, positive=(), negative=()):
    """Kills output channels only; returns model and folded model.

    Args:
        image: Input of the model.
        x: What its head reads.
        dead: Dict from a layer to its dead output channels.
        positive: Names of BNs whose channels shall be above zero.
        negative: The same below zero.
    """
    model = keras.Model(image, head(x))
    model.compile("sgd", "mse")
    shake(model)
    for names, sign in ((positive, 1.0), (negative, -1.0)):
        for name in names:
            norm = model.get_layer(name)
            norm.moving_mean.assign(0.0 * norm.moving_mean)
            norm.beta.assign(sign * (0.5 + np.abs(norm.beta)))
    kill(model, dead)
    assert reconfigure(model) is model
    smaller = reconfigure(model, fold=True)
    np.testing.assert_allclose(
        outputs(smaller, images()), outputs(model, images()), atol=1e-12
    )
    return model, smaller


def test_a_zero_behind_relu_goes_even_where_padding_is_read():
    image = keras.Input((6, 6, 2))
    x = conv(conv_bn(image, 6, "a"), 5, "b", activation="relu")
    _, smaller = folded(image, x, {"a": [1, 4]}, negative=["a_bn"])
    assert smaller.get_layer("a").filters == 4


def test_what_reads_padding_cannot_take_another_constant_over():
    image = keras.Input((6, 6, 2))
    x = conv(conv_bn(image, 6, "a"), 5, "b", activation="relu")
    model, smaller = folded(image, x, {"a": [1, 4]}, positive=["a_bn"])
    assert smaller is model


@pytest.mark.parametrize(
    "reader",
    [
        lambda: layers.Conv2D(5, 1, padding="same", name="b"),
        lambda: layers.Conv2D(5, 3, name="b"),
        lambda: layers.Dense(5, name="b"),
    ],
    ids=["one pixel", "no padding", "dense"],
)
def test_a_bias_takes_a_constant_over(reader):
    image = keras.Input((6, 6, 2))
    x = layers.ReLU()(reader()(conv_bn(image, 6, "a")))
    model, smaller = folded(image, x, {"a": [1, 4]}, positive=["a_bn"])
    assert smaller.get_layer("a").filters == 4
    kernel = model.get_layer("b").get_weights()[0]
    norm = model.get_layer("a_bn")
    made = (
        norm.beta.numpy()[[1, 4]]
        @ kernel.sum(axis=tuple(range(kernel.ndim - 2)))[[1, 4]]
    )
    np.testing.assert_allclose(
        smaller.get_layer("b").bias, model.get_layer("b").bias + made
    )


def test_a_moving_mean_takes_it_over_where_there_is_no_bias():
    image = keras.Input((6, 6, 2))
    x = conv_bn(conv_bn(image, 6, "a"), 5, "b", size=1)
    model, smaller = folded(image, x, {"a": [1, 4]}, positive=["a_bn"])
    assert smaller.get_layer("a").filters == 4
    # In training the batch's own mean takes it off.
    np.testing.assert_allclose(
        outputs(smaller, images(), training=True),
        outputs(model, images(), training=True),
        atol=1e-12,
    )


def test_without_bias_and_with_a_second_reader_it_stays():
    image = keras.Input((6, 6, 2))
    x = conv(conv_bn(image, 6, "a"), 5, "b", size=1, use_bias=False)
    x = layers.Concatenate()([x, layers.BatchNormalization()(x)])
    model, smaller = folded(image, x, {"a": [1, 4]}, positive=["a_bn"])
    assert smaller is model


def test_summands_that_are_both_constants_go_and_others_stay():
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 6, "stem", relu=False)
    y = conv_bn(x, 6, "y", relu=False)
    x = layers.Dense(4, name="b")(ops.relu(x + y))
    _, smaller = folded(
        image, x, {"stem": [1, 2], "y": [2, 3]}, negative=["stem_bn"]
    )
    # `y` itself reads what `stem` computes, at a border.
    assert smaller.get_layer("stem").filters == 6
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 6, "x", relu=False)
    y = conv_bn(image, 6, "y", relu=False)
    x = layers.Dense(4, name="b")(ops.relu(x + y))
    _, smaller = folded(image, x, {"x": [1, 2], "y": [2, 3]})
    assert smaller.get_layer("x").filters == 5


def test_pieces_poolings_and_depthwise_kernels_pass_a_zero_on():
    image = keras.Input((6, 6, 2))
    x = layers.Concatenate()([conv_bn(image, 3, "a"), conv_bn(image, 3, "b")])
    x = layers.ZeroPadding2D()(layers.MaxPooling2D()(x))
    x = layers.DepthwiseConv2D(3, use_bias=False)(x)
    left, right = ops.split(x, 2, axis=-1)
    x = ops.concatenate([right, left], axis=-1)
    x = conv(x, 4, "c", activation="tanh")
    x = layers.Rescaling(20.0)(x)
    _, smaller = folded(
        image, x, {"a": [1], "b": [0, 2]}, negative=["a_bn", "b_bn"]
    )
    assert smaller.get_layer("a").filters == 2
    assert smaller.get_layer("b").filters == 1


def test_a_layer_that_is_dead_as_a_whole_keeps_its_strongest_channel():
    image = keras.Input((6, 6, 2))
    x = conv(conv_bn(image, 3, "a"), 5, "b", activation="relu")
    x = layers.Concatenate()([x, conv(image, 5, "c", activation="relu")])
    _, smaller = folded(image, x, {"a": [0, 1, 2]}, negative=["a_bn"])
    assert smaller.get_layer("a").filters == 1


def test_skipped_channels_are_not_folded():
    image = keras.Input((6, 6, 2))
    x = layers.Dense(5, name="b")(conv_bn(image, 6, "a"))
    model, _ = folded(image, x, {"a": [1, 4]})
    assert reconfigure(model, fold=True, skip="a") is model


def test_a_reader_that_is_in_two_models_must_find_the_same_in_both():
    reader = layers.Dense(4, name="reader")
    inside = keras.Input((6, 6, 5))
    inner = keras.Model(inside, reader(layers.ReLU()(inside)), name="inner")
    image = keras.Input((6, 6, 2))
    x = conv(image, 5, "a", activation="relu")
    y = conv(image, 5, "b")
    x = layers.Concatenate()([reader(x), inner(y)])
    model, smaller = folded(image, x, {"a": [1, 2]})
    assert smaller is model


def test_constants_end_where_channels_cannot_be_followed():
    image = keras.Input((6, 6, 2))
    x = conv(image, 6, "a", activation="relu")
    y = layers.Permute((3, 1, 2))(conv(image, 6, "b", activation="relu"))
    x = layers.Concatenate()([layers.Add()([x, y]), conv(x, 3, "c")])
    model, smaller = folded(image, x, {"a": [1], "b": [2]})
    assert smaller is model


def test_a_nested_model_is_a_second_reader():
    inside = keras.Input((6, 6, 5))
    inner = keras.Model(inside, layers.ReLU()(inside), name="inner")
    image = keras.Input((6, 6, 2))
    x = conv(conv_bn(image, 6, "a"), 5, "b", size=1, use_bias=False)
    x = layers.Add()([layers.BatchNormalization()(x), inner(x)])
    model, smaller = folded(image, x, {"a": [1, 4]}, positive=["a_bn"])
    assert smaller is model


def test_an_output_of_a_nested_model_is_read_outside():
    inside = keras.Input((6, 6, 6))
    y = conv(inside, 5, "b", size=1, use_bias=False)
    inner = keras.Model(
        inside, [layers.BatchNormalization()(y), y], name="inner"
    )
    image = keras.Input((6, 6, 2))
    x = layers.Concatenate()(inner(conv_bn(image, 6, "a")))
    model, smaller = folded(image, x, {"a": [1, 4]}, positive=["a_bn"])
    assert smaller is model


@pytest.mark.parametrize("name", ["max", "min"])
def test_a_reduction_that_begins_with_a_value_makes_another_constant(name):
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 6, "a", relu=False)
    x = getattr(ops, name)(x, axis=(1, 2), initial=0.3)
    model = keras.Model(image, layers.Dense(3, name="logits")(x))
    model.compile("sgd", "mse")
    shake(model)
    kill(model, {"a": [1, 4]})
    np.testing.assert_allclose(
        outputs(reconfigure(model, fold=True), images()),
        outputs(model, images()),
        atol=1e-12,
    )


def test_what_a_model_called_as_in_training_computes_is_no_constant():
    inside = keras.Input((6, 6, 6))
    inner = keras.Model(inside, layers.BatchNormalization()(inside))
    image = keras.Input((6, 6, 2))
    x = inner(conv(image, 6, "a"), training=True)
    model, smaller = folded(image, conv(x, 5, "b", size=1), {"a": [1, 4]})
    assert smaller is model


def test_as_in_training_is_also_what_is_nested_there_and_nothing_behind_it():
    inside = keras.Input((6, 6, 6))
    norm = keras.Model(inside, layers.BatchNormalization()(inside))
    inside = keras.Input((6, 6, 6))
    outer = keras.Model(inside, norm(inside))
    image = keras.Input((6, 6, 2))
    x = outer(conv(image, 6, "a"), training=True)
    y = conv(x, 6, "c", size=1, activation="relu")
    y = conv(y, 5, "d", size=1)
    x = layers.Concatenate()([conv(x, 5, "b", size=1), y])
    _, smaller = folded(image, x, {"a": [1, 4], "c": [2]})
    assert smaller.get_layer("a").filters == 6
    assert smaller.get_layer("c").filters == 5


def test_a_channel_of_two_kernels_is_still_when_both_are(monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    register_rule(
        TwoKernels,
        LayerRule(
            "produces",
            ("units",),
            in_axis={"a": 0, "b": 0},
            out_axis={"a": 1, "b": 1},
        ),
    )
    image = keras.Input((6, 6, 2))
    x = conv(TwoKernels(6, name="two")(image), 5, "c", size=1)
    model = keras.Model(image, head(x))
    model.compile("sgd", "mse")
    shake(model)
    for name, dead in (("a", [2]), ("b", [1, 2])):
        kernel = getattr(model.get_layer("two"), name)
        value = kernel.numpy()
        value[:, dead] = 0.0
        kernel.assign(value)
    smaller = reconfigure(model, fold=True)
    np.testing.assert_allclose(
        outputs(smaller, images()), outputs(model, images()), atol=1e-12
    )
    assert smaller.get_layer("two").units == 5


class TwoKernels(layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.a = self.add_weight(shape=(shape[-1], self.units), name="a")
        self.b = self.add_weight(shape=(shape[-1], self.units), name="b")

    def call(self, x):
        return ops.tanh(x) @ self.a + x @ self.b

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def test_a_normalization_of_another_axis_takes_nothing_over():
    image = keras.Input((6, 6, 2))
    x = conv(conv_bn(image, 6, "a"), 6, "b", size=1, use_bias=False)
    x = layers.BatchNormalization(axis=1, name="rows")(x)
    model, smaller = folded(image, x, {"a": [1, 4]}, positive=["a_bn"])
    assert smaller is model


class Mixing(layers.Dense):
    """Reads every pixel alike, under a rule that a user has written."""


@pytest.mark.parametrize("target", ["bias", "output", None, "offset"])
def test_a_rule_says_where_a_layer_takes_constants(target, monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    rule = rules._RULES[layers.Dense]
    register_rule(
        Mixing,
        dataclasses.replace(rule, folds_into=lambda layer: target),
    )
    image = keras.Input((6, 6, 2))
    x = Mixing(5, name="b", use_bias=target == "bias")(conv_bn(image, 6, "a"))
    x = layers.BatchNormalization()(x)
    if target == "offset":
        with pytest.raises(ValueError, match="'offset', which 'b' does not"):
            folded(image, x, {"a": [1, 4]}, positive=["a_bn"])
        return
    _, smaller = folded(image, x, {"a": [1, 4]}, positive=["a_bn"])
    assert smaller.get_layer("a").filters == (6 if target is None else 4)


class Sum(layers.Layer):
    """Adds two products, one by a kernel whose rows are the outputs."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.a = self.add_weight(shape=(shape[-1], self.units), name="a")
        self.b = self.add_weight(shape=(self.units, shape[-1]), name="b")
        self.bias = self.add_weight(shape=(self.units,), name="bias")

    def call(self, x):
        return x @ self.a + x @ ops.transpose(self.b) + self.bias

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def test_a_bias_takes_over_the_constants_of_two_kernels(monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    register_rule(
        Sum,
        LayerRule(
            "produces",
            ("units",),
            in_axis={"a": 0, "b": 1},
            out_axis={"a": 1, "b": 0, "bias": 0},
            folds_into=lambda layer: "bias",
        ),
    )
    image = keras.Input((6, 6, 2))
    x = layers.ReLU()(Sum(5, name="b")(conv_bn(image, 6, "a")))
    _, smaller = folded(image, x, {"a": [1, 4]}, positive=["a_bn"])
    assert smaller.get_layer("a").filters == 4


def test_one_layer_called_on_different_shapes_is_followed_call_by_call():
    flatten, add = layers.Flatten(), layers.Add()
    image = keras.Input((6, 6, 2))
    x = conv(image, 6, "a", activation="relu")
    y = conv(image, 5, "b", activation="relu")
    x = layers.Concatenate()([flatten(x), flatten(y)])
    z = layers.Dense(4, activation="relu", name="z")(flatten(image))
    x = layers.Dense(4, name="c")(x)
    x = layers.Concatenate()([add([x, z]), add([x, x, z])])
    model = keras.Model(image, layers.Dense(3, name="logits")(x))
    model.compile("sgd", "mse")
    shake(model)
    kill(model, {"a": [1, 4], "b": [0], "z": [1]})
    for name in "ab":  # A zero behind the activation.
        layer = model.get_layer(name)
        layer.bias.assign(-np.abs(layer.bias))
    smaller = reconfigure(model, fold=True)
    np.testing.assert_allclose(
        outputs(smaller, images()), outputs(model, images()), atol=1e-12
    )
    assert smaller.get_layer("a").filters == 4
    assert smaller.get_layer("b").filters == 4


def test_a_living_channel_that_nothing_reads_is_no_constant():
    image = keras.Input((6, 6, 2))
    left, _ = ops.split(conv(image, 6, "a"), 2, axis=-1)
    x = conv(layers.ReLU()(left), 5, "b")
    model = keras.Model(image, head(x))
    model.compile("sgd", "mse")
    shake(model)
    assert reconfigure(model, fold=True) is model


@pytest.mark.parametrize("left", [0.0, 9e-5])
# With 8 channels in a head, rounding lets the living outputs differ by step.
@pytest.mark.parametrize("key_dim", [2, 8])
def test_the_bias_of_a_dead_output_of_an_attention_moves_into_its_reader(
    left, key_dim
):
    steps = keras.Input((5, 4))
    x = layers.MultiHeadAttention(3, key_dim, name="heads")(steps, steps)
    model = keras.Model(steps, layers.Dense(2)(x))
    shake(model)
    heads = model.get_layer("heads")
    heads.value_dense.bias.assign(heads.value_dense.bias + 20.0)
    kernel = heads.output_dense.kernel
    kernel.assign(kernel * [1.0, 0.0, 1.0, 1.0])
    x = images(2, (5, 4))
    expected = outputs(model, x)
    # Weights below the threshold count as zero, whatever they read.
    kernel.assign_add(np.broadcast_to([0.0, left, 0.0, 0.0], kernel.shape))
    smaller = reconfigure(model, fold=True)
    new = smaller.get_layer("heads").output_dense.kernel
    assert new.shape == (3, key_dim, 3)
    np.testing.assert_allclose(outputs(smaller, x), expected, atol=1e-12)


class Shifted(layers.Layer):
    """A dense layer that adds something to what its kernel reads."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.shift = self.add_weight((shape[-1],), name="shift")
        self.kernel = self.add_weight((shape[-1], self.units), name="kernel")
        self.bias = self.add_weight((self.units,), name="bias")

    def call(self, x):
        return (x + self.shift) @ self.kernel + self.bias

    def get_config(self):
        return super().get_config() | {"units": self.units}


def test_dead_weights_count_as_zero_in_a_layer_that_shifts_what_they_read(
    monkeypatch,
):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    rules.register_rule(
        Shifted,
        LayerRule(
            *("produces", ("units",), {"kernel": 0, "shift": 0}),
            {"kernel": 1, "bias": 0},
        ),
    )
    x = keras.Input((4,))
    y = Shifted(3, name="own")(layers.Dense(4)(x))
    model = keras.Model(x, layers.Dense(2)(y))
    shake(model)
    own = model.get_layer("own")
    own.shift.assign(own.shift + 20.0)
    own.kernel.assign(own.kernel * [1.0, 0.0, 1.0])
    x = images(2, (4,))
    expected = outputs(model, x)
    own.kernel.assign_add(np.broadcast_to([0.0, 9e-5, 0.0], (4, 3)))
    smaller = reconfigure(model, fold=True)
    assert smaller.get_layer("own").units == 2
    np.testing.assert_allclose(outputs(smaller, x), expected, atol=1e-12)


@pytest.mark.parametrize("dead", [False, True])
def test_a_mask_of_another_unknown_size_is_no_hindrance(dead):
    steps, mask = keras.Input((6, 4)), keras.Input((None,), dtype="bool")
    x = layers.Dense(4, name="before")(steps)
    attention = layers.MultiHeadAttention(3, 2, name="heads")
    model = keras.Model(
        [steps, mask], layers.Dense(2)(attention(x, x, value_mask=mask))
    )
    shake(model)
    kernel = attention.output_dense.kernel
    kernel.assign(kernel * [1.0, 1.0 - dead, 1.0, 1.0])
    x = images(2, (6, 4)), np.ones((2, 6), bool)
    expected = model(x)
    smaller = reconfigure(model, fold=True)
    np.testing.assert_allclose(smaller(x), expected, atol=1e-12)


def test_a_head_is_no_constant_where_the_channel_of_its_index_is():
    steps = keras.Input((5, 4))
    x = layers.Dense(3, name="zero")(steps)
    x = layers.MultiHeadAttention(3, 2, name="heads")(x, x)
    model = keras.Model(steps, layers.Dense(2)(x))
    shake(model)
    kernel, bias = model.get_layer("zero").weights
    kernel.assign(kernel * [1.0, 0.0, 1.0])
    bias.assign(bias * [1.0, 0.0, 1.0])
    assert reconfigure(model, fold=True) is model
