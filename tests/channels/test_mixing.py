"""Rules of users for layers that read several inputs with kernels."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_prunetrain import LayerRule, channel_report, reconfigure
from keras_prunetrain.channels import rules
from tests.networks import images, outputs, shake

pytestmark = pytest.mark.usefixtures("float64", "own_rules")

READS = {"query/kernel": ("left",), "value/kernel": ("right",)}
IN_AXIS = dict.fromkeys(READS, 0)
OUT_AXIS = dict.fromkeys(
    ("query/kernel", "query/bias", "value/kernel", "value/bias"), -1
)


@pytest.fixture
def own_rules(monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))


class Gated(layers.Layer):
    """Multiplies what it computes of two inputs."""

    def __init__(self, units, names=("query", "value"), **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.query = layers.Dense(units, activation="tanh", name=names[0])
        self.value = layers.Dense(units, name=names[1])

    def build(self, left_shape, right_shape):
        self.query.build(left_shape)
        self.value.build(right_shape)

    def call(self, left, right):
        return self.query(left) * self.value(right)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class Scaled(Gated):
    """Has a weight for each channel that a rule may forget."""

    def build(self, left_shape, right_shape):
        super().build(left_shape, right_shape)
        self.scale = self.add_weight(shape=(self.units,), name="scale")

    def call(self, left, right):
        return super().call(left, right) * self.scale


class Block(layers.Layer):
    """Adds what it computes to what it reads."""

    def __init__(self, hidden, **kwargs):
        super().__init__(**kwargs)
        self.hidden = hidden
        self.up = layers.Dense(hidden, name="up")

    def build(self, shape):
        self.up.build(shape)
        self.down = layers.Dense(shape[-1], name="down")
        self.down.build((*shape[:-1], self.hidden))

    def call(self, x):
        return x + self.down(self.up(x))

    def get_config(self):
        return {**super().get_config(), "hidden": self.hidden}


class Named(layers.Layer):
    """Has kernels of other names."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, left_shape, right_shape):
        self.wl = self.add_weight((left_shape[-1], self.units), name="wl")
        self.wr = self.add_weight((right_shape[-1], self.units), name="wr")

    def call(self, left, right):
        return ops.matmul(left, self.wl) * ops.matmul(right, self.wr)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def network(layer, rule):
    """`layer` behind two dense layers of four channels each."""
    rules.register_rule(type(layer), rule)
    image = keras.Input((5, 3))
    left = layers.Dense(4, name="left")(image)
    right = layers.Dense(4, name="right")(image)
    x = layers.Dense(2, name="last")(layer(left, right=right))
    model = keras.Model(image, x)
    shake(model)
    return model


def silence_columns(model, name, channels, with_bias=False):
    kernel, bias = model.get_layer(name).weights
    alive = np.ones(kernel.shape[-1])
    alive[channels] = 0.0
    kernel.assign(kernel * alive)
    if with_bias:
        bias.assign(bias * alive)


def held(model, name="left"):
    return {x.layer: x.held_by for x in channel_report(model)}[name]


def rule_of(**fields):
    fields = {"in_axis": IN_AXIS, "out_axis": OUT_AXIS, "reads": READS} | fields
    return LayerRule("mixes", ("units",), **fields)


def test_each_kernel_reads_its_argument_and_all_write_the_output():
    model = network(Gated(4, name="own"), rule_of())
    own = model.get_layer("own")
    own.query.kernel.assign(own.query.kernel * [[1.0], [0.0], [1.0], [1.0]])
    own.value.kernel.assign(
        own.value.kernel * [[0.0], [1.0], [1.0], [1.0]] * [1.0, 1.0, 0.0, 1.0]
    )
    own.query.kernel.assign(own.query.kernel * [1.0, 1.0, 0.0, 1.0])
    last = model.get_layer("last").kernel
    last.assign(last * [[1.0], [1.0], [0.0], [1.0]])
    silence_columns(model, "left", [1])
    silence_columns(model, "right", [0])
    x = images(2, (5, 3))
    expected = outputs(model, x)
    smaller = reconfigure(model)
    new = smaller.get_layer("own")
    assert (new.units, new.query.kernel.shape) == (3, (3, 3))
    assert new.value.kernel.shape == (3, 3)
    np.testing.assert_allclose(outputs(smaller, x), expected, atol=1e-12)


def test_constants_of_one_input_are_not_taken_for_those_of_another():
    model = network(Gated(4, name="own"), rule_of())
    silence_columns(model, "left", [1, 2], with_bias=True)
    x = images(2, (5, 3))
    expected = outputs(model, x)
    smaller = reconfigure(model, fold=True)
    np.testing.assert_allclose(outputs(smaller, x), expected, atol=1e-12)


def test_weights_of_any_name_that_read_say_which_channels_are_alive():
    axes = {"wl": 0, "wr": 0}
    model = network(
        Named(4, name="own"),
        LayerRule(
            *("mixes", ("units",), axes, dict.fromkeys(axes, 1)),
            reads={"wl": ("left",), "wr": ("right",)},
        ),
    )
    silence_columns(model, "left", [1])
    assert reconfigure(model) is model
    assert held(model) == ("own reads (1)",)


@pytest.mark.parametrize("fold", [False, True])
def test_a_layer_that_adds_what_it_reads_is_no_constant(fold):
    hidden = {"up/kernel": 1, "up/bias": 0}, {"down/kernel": 0}
    rule = LayerRule(
        "mixes",
        in_axis={"up/kernel": 0},
        out_axis={"down/kernel": 1, "down/bias": 0},
        inner={"hidden": hidden},
    )
    rules.register_rule(Block, rule)
    steps = keras.Input((5, 4))
    x = Block(3, name="own")(layers.Dense(4, name="left")(steps))
    x = layers.Add()([layers.Dense(4, name="other")(steps), x])
    model = keras.Model(steps, layers.Dense(2)(x))
    shake(model)
    own = model.get_layer("own")
    for kernel in (own.up.kernel, own.down.kernel):
        kernel.assign(kernel * 0.0)
    x = images(2, (5, 4))
    expected = outputs(model, x)
    smaller = reconfigure(model, fold=fold)
    assert smaller.get_layer("own").hidden == 1
    np.testing.assert_allclose(outputs(smaller, x), expected, atol=1e-12)


def test_a_layer_with_one_living_kernel_is_no_constant():
    rules.register_rule(Gated, rule_of())
    image = keras.Input((5, 3))
    left = layers.Dense(4, name="left")(image)
    x = Gated(4, name="own")(left, image)
    x = layers.Add()([layers.Dense(4, name="other")(image), x])
    model = keras.Model(image, layers.Dense(2)(x))
    shake(model)
    silence_columns(model, "left", [0, 1, 2, 3])
    kernel = model.get_layer("own").query.kernel
    kernel.assign(kernel * 0.0)
    x = images(2, (5, 3))
    expected = outputs(model, x)
    smaller = reconfigure(model)
    assert smaller.get_layer("left").units == 1
    np.testing.assert_allclose(outputs(smaller, x), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "fields", "reason"),
    [
        (
            Gated(4, ("query", "other"), name="own"),
            {},
            "it has none of the kernels that `in_axis` of its rule names for "
            "an input: query/kernel, value/kernel",
        ),
        (
            Scaled(4, name="own"),
            {},
            "its rule does not say where 'own/scale' lies",
        ),
        (
            Gated(4, name="own"),
            {"in_axis": {}, "reads": {}, "out_axis": OUT_AXIS},
            "no kernel in its rule reads or writes it",
        ),
        (
            Gated(4, name="own"),
            {"reads": {"query/kernel": ("few",)}},
            "its rule names an argument of its call that 'query/kernel' reads, "
            "and the call has none of few",
        ),
    ],
    ids=["unknown path", "unknown weight", "no kernel", "unknown argument"],
)
def test_a_rule_that_does_not_fit_holds_all_channels(layer, fields, reason):
    model = network(layer, rule_of(**fields))
    kind = type(layer).__name__
    assert held(model) == (f"own ({kind}): {reason} (4)",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"reads": {"key/kernel": ("key",)}},
            "`reads` of a `LayerRule` is for",
        ),
        ({"reads": {"query/kernel": ()}}, "`reads` of a `LayerRule` must be"),
        ({"reads": {"query/kernel": "query"}}, "`reads` of a `LayerRule` must"),
        ({"out_axis": {"query/kernel": None}}, "must have integers"),
    ],
)
def test_what_a_mixing_rule_may_not_say(fields, message):
    with pytest.raises(ValueError, match=message):
        rule_of(**fields)


def test_only_a_mixing_rule_names_arguments():
    with pytest.raises(ValueError, match="with the flow 'mixes'"):
        LayerRule("produces", in_axis=IN_AXIS, reads=READS)
