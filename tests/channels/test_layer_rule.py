"""A rule of the wrong kind is an error, where it is made or where it speaks."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_prunetrain import (
    LayerRule,
    channel_report,
    reconfigure,
    register_rule,
)
from keras_prunetrain.channels import rules
from keras_prunetrain.channels.numbering import number_channels
from tests.networks import conv, head


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("flow", x) for x in ("carry", None, ["carries"], np.ones(2))),
        *(("size_arguments", x) for x in ("units", None, (1,))),
        *(("in_axis", x) for x in (0, {"a": None}, {1: 0}, {"a": 1.0})),
        *(("out_axis", x) for x in ([("a", 0)], {"a": True}, {"a": "0"})),
        *(("channel_axis", x) for x in (-1, "last")),
        *((name, 2) for name in ("repeats", "groups", "macs")),
        *((name, "no") for name in ("freezes", "refuses", "variant")),
        *(("constants", x) for x in ("kept", True, ("pass",))),
        *(("saved", x) for x in ("input", 1)),
        *(("subtracts", x) for x in (("mean",), 0, "")),
        *(("inner", x) for x in (3, {"": ({"a": 0}, {"b": 0})})),
        *(("inner", {x: ({"a": 0}, {"b": 0})}) for x in (3, (), ("heads", 3))),
        *(("inner", {"heads": x}) for x in (3, ({"a": 0},), ({"a": 0}, {}))),
        *(
            ("inner", {"heads": ({"a": 0}, {x: y})})
            for x, y in ((1, 0), ("b", None))
        ),
    ],
)
def test_a_rule_says_which_of_its_fields_is_of_the_wrong_kind(field, value):
    fields = {"flow": "carries", field: value}
    with pytest.raises(ValueError, match=f"`{field}` of a `LayerRule` must be"):
        LayerRule(**fields)


WRITTEN, READ = {"up/kernel": 1, "up/bias": 0}, {"down/kernel": 0}
HEADS = LayerRule("mixes", inner={"heads": (WRITTEN, READ)})


class Heads(layers.Layer):
    """Computes in heads of two channels each."""

    def __init__(self, heads, **kwargs):
        super().__init__(**kwargs)
        self.heads = heads
        self.up = layers.EinsumDense(
            "abc,cde->abde", (None, heads, 2), bias_axes="de", name="up"
        )
        self.down = layers.EinsumDense(
            "abde,dec->abc", (None, 6), bias_axes="c", name="down"
        )

    def build(self, shape):
        self.up.build(shape)
        self.down.build((*shape[:2], self.heads, 2))

    def call(self, x):
        return self.down(self.up(x))

    def get_config(self):
        return {**super().get_config(), "heads": self.heads}


def model_with_heads(rule, monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    register_rule(Heads, rule)
    steps = keras.Input((5, 4))
    x = Heads(3, name="own")(layers.Dense(6, name="before")(steps))
    model = keras.Model(steps, layers.Dense(2)(x))
    own = model.get_layer("own")
    own.up.kernel.assign(own.up.kernel * [[[1.0], [0.0], [1.0]]])
    own.down.kernel.assign(own.down.kernel * [[[1.0]], [[0.0]], [[1.0]]])
    return model


class Returning(Heads):
    """Returns a number for each channel of its heads as well."""

    def call(self, x):
        inner = self.up(x)
        return self.down(inner), ops.mean(inner, (1, 2))


def test_what_a_further_output_may_have_entries_for_stays(monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    channels = {"up/kernel": 2, "up/bias": 1}, {"down/kernel": 1}
    inner = {"heads": (WRITTEN, READ), "size": channels}
    register_rule(Returning, LayerRule("mixes", inner=inner))
    steps = keras.Input((5, 4))
    outputs = Returning(3, name="own")(steps)
    numbering = number_channels(keras.Model(steps, outputs))
    assert len(numbering.frozen) == numbering.size
    reasons = {numbering.frozen[n] for n in numbering.inner["own"]["size"]}
    assert reasons == {
        "own (Returning): another output may have an entry for each of them"
    }


def test_heads_of_a_layer_of_the_users_go(monkeypatch):
    model = model_with_heads(HEADS, monkeypatch)
    x = np.random.default_rng(3).normal(size=(2, 5, 4))
    smaller = reconfigure(model)
    assert smaller.get_layer("own").heads == 2
    np.testing.assert_allclose(smaller(x), model(x), atol=1e-6)


@pytest.mark.parametrize(
    ("written", "read", "reason"),
    [
        (
            {"upp/kernel": 1},
            READ,
            "it has none of the kernels that `inner['heads']` of its rule "
            "names: upp/kernel",
        ),
        (
            WRITTEN,
            {"down/bias": 0},
            "its rule expects 3 on axis 0 of 'down/bias', which has shape (6,)",
        ),
        (
            WRITTEN,
            {"own/down/kernl": 0},
            "it has none of the kernels that `inner['heads']` of its rule "
            "names: own/down/kernl",
        ),
        (
            {"kernel": 1},
            READ,
            "its rule names 'kernel', and the paths of 2 of its weights end so",
        ),
        (
            {"up/kernel": 3},
            READ,
            "its rule names axis 3 of 'kernel', which has shape (6, 3, 2)",
        ),
        (
            {"up/kernel": 2, "up/bias": 0},
            READ,
            "its rule expects 2 on axis 0 of 'up/bias', which has shape (3, 2)",
        ),
    ],
)
def test_a_rule_whose_inner_axes_do_not_fit_holds_all(
    written, read, reason, monkeypatch
):
    rule = LayerRule("mixes", inner={"heads": (written, read)})
    model = model_with_heads(rule, monkeypatch)
    assert reconfigure(model) is model
    (held,) = channel_report(model)[0].held_by
    assert held == f"own (Heads): {reason} (6)"
    numbering = number_channels(model)
    assert len(numbering.frozen) == numbering.size


def test_a_rule_that_reads_with_no_weight_of_its_layer_holds_all(monkeypatch):
    for in_axis in ({}, {"matrix": 0}):
        rule = LayerRule("reads", in_axis=in_axis)
        model = model_with_heads(rule, monkeypatch)
        model.get_layer("before").kernel.assign(np.zeros((4, 6)))
        assert reconfigure(model) is model
        (held,) = channel_report(model)[0].held_by
        assert held == (
            "own (Heads): `in_axis` of its rule names none of its weights (6)"
        )


def test_a_rule_may_hold_integers_of_numpy_and_lists_of_names():
    LayerRule(
        "produces",
        ["units"],
        in_axis={"kernel": np.int64(-2)},
        out_axis={"kernel": np.int32(-1), "table": None},
    )


class Own(layers.Layer):
    """A layer of the user's, which the rule below is for."""

    def call(self, x):
        return x


def report_with(rule, monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    register_rule(Own, rule)
    image = keras.Input((6, 6, 2))
    x = Own(name="own")(conv(image, 4, "a"))
    return channel_report(keras.Model(image, head(x)))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("channel_axis", 1.0, "an axis"),
        ("channel_axis", True, "an axis"),
        *(("repeats", x, "an integer of at least 1") for x in (0, "2", None)),
        *(("groups", x, "an integer of at least 1") for x in (-1, 2.0)),
        *(("freezes", x, "the reason") for x in (True, "", ["no"])),
        ("refuses", False, "the reason"),
        ("variant", "carries", "a `LayerRule`"),
    ],
)
def test_a_function_of_a_rule_that_returns_the_wrong_kind_is_named(
    field, value, expected, monkeypatch
):
    flow = "produces" if field == "groups" else "carries"
    rule = LayerRule(flow, **{field: lambda *_: value})
    message = f"`{field}` in the rule for Own, of 'own', must return {expected}"
    with pytest.raises(ValueError, match=message):
        report_with(rule, monkeypatch)


def test_a_function_of_a_rule_that_fails_is_named(monkeypatch):
    rule = LayerRule("carries", repeats=lambda layer: layer.multiplier)
    message = "`repeats` in the rule for Own, of 'own', fails with Attribute"
    with pytest.raises(ValueError, match=message):
        report_with(rule, monkeypatch)


def test_an_index_that_is_none_is_named(monkeypatch):
    rule = LayerRule("carries", reindex=lambda layer, x, read, alive: x)
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    register_rule(Own, rule)
    image = keras.Input((6, 6, 2))
    x = conv(Own(name="own")(conv(image, 4, "a")), 3, "b")
    model = keras.Model(image, head(x))
    for name, alive in (("a", [0, 1, 1, 1]), ("b", np.ones((4, 1)) * 0)):
        kernel = model.get_layer(name).kernel
        kernel.assign(kernel * np.asarray(alive, "float32"))
    with pytest.raises(ValueError, match="`reindex` .* must return a tuple"):
        reconfigure(model)
    register_rule(Own, LayerRule("carries", reindex=lambda layer, x: (x,)))
    with pytest.raises(ValueError, match="`reindex` .* fails with TypeError"):
        reconfigure(model)


def test_a_rule_that_names_another_weight_holds_what_the_layer_reads(
    monkeypatch,
):
    class Product(layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight((shape[-1], 5), name="kernel")

        def call(self, x):
            return keras.ops.matmul(x, self.kernel)

    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    for name, held in (
        ("kernel", ()),
        ("kernle", ("own (Product): it reads without a kernel (4)",)),
    ):
        rule = LayerRule("produces", in_axis={name: 0}, out_axis={"kernel": 1})
        register_rule(Product, rule)
        image = keras.Input((6, 6, 2))
        x = Product(name="own")(conv(image, 4, "a"))
        report = channel_report(keras.Model(image, head(x)))
        assert report[0].held_by == held


@pytest.mark.parametrize("axis", [3, -1, None])
def test_a_channel_axis_counts_from_either_end(axis, monkeypatch):
    rule = LayerRule("carries", channel_axis=lambda layer, rank: axis)
    assert report_with(rule, monkeypatch)[0].held_by == ()


@pytest.mark.parametrize("axis", [0, 1, 4, -5])
def test_another_channel_axis_than_that_of_the_input_freezes(axis, monkeypatch):
    rule = LayerRule("carries", channel_axis=lambda layer, rank: axis)
    (reason,) = report_with(rule, monkeypatch)[0].held_by
    assert reason.startswith("own (Own): its channel axis is not that of its")


@pytest.mark.parametrize(("groups", "made"), [(3, 3), (4, 6)])
def test_groups_that_cannot_be_equally_large_freeze(groups, made, monkeypatch):
    monkeypatch.setattr(
        Own, "call", lambda self, x: keras.ops.repeat(x[..., :1], made, -1)
    )
    rule = LayerRule("produces", groups=lambda layer: groups)
    (reason,) = report_with(rule, monkeypatch)[0].held_by
    assert f"names {groups} groups, and of 4 and {made} channels" in reason
