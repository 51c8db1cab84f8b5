"""What the report says of dead channels, and of what holds them."""

import keras
import pytest
from keras import layers

from keras_prunetrain import LayerRule, channel_report, register_rule
from keras_prunetrain.channels import rules
from tests import networks
from tests.networks import conv, kill, kill_all, shake


def rows(model, **kwargs):
    return {row.layer: row for row in channel_report(model, **kwargs)}


def test_it_counts_dead_and_removable_channels():
    network = networks.residual()
    shake(network.model)
    kill_all(network, networks.TINY)
    report = rows(network.model)
    assert list(report) == ["stem", "conv1", "conv2", "logits"]
    for layer, channels, dead in (
        ("stem", 6, 2),
        ("conv1", 4, 1),
        ("conv2", 6, 2),
    ):
        row = report[layer]
        assert (row.channels, row.dead, row.removable) == (channels, dead, dead)
        assert row.held_by == ()
    assert rows(network.model, threshold=1e-7)["stem"].dead == 0


def test_it_names_what_holds_a_dead_channel():
    network = networks.residual()
    shake(network.model)
    # Dead in the stem only; 5 is still written by `conv2`, too, and read.
    kill(network.model, {"stem": [0, 5]}, {"conv1": [0, 5], "logits": [0]})
    kill(network.model, {"conv2": [0]})
    stem = rows(network.model)["stem"]
    assert (stem.dead, stem.removable) == (2, 1)
    assert stem.coupled_with == ("conv2",)
    assert stem.held_by == ("conv2 writes (1)", "logits reads (1)")
    assert rows(network.model)["conv1"].coupled_with == ()


def test_it_counts_the_heads_of_keys_that_heads_of_queries_share():
    network = networks.sharing_heads()
    shake(network.model)
    kill_all(network)
    row = rows(network.model)["shared/num_key_value_heads"]
    assert (row.channels, row.dead, row.removable) == (3, 2, 2)


def test_it_names_the_layer_nobody_knows():
    class Mystery(layers.Layer):
        def call(self, x):
            return x

    image = keras.Input((6, 6, 2))
    x = Mystery(name="mystery")(conv(image, 4, "a"))
    report = rows(keras.Model(image, conv(x, 3, "b")))
    assert report["a"].held_by == (
        "mystery (Mystery): no rule for this class, see register_rule (4)",
    )
    assert report["b"].held_by == ("model output (3)",)


def test_it_says_that_the_strongest_stays():
    network = networks.plain()
    shake(network.model)
    kill(network.model, {"a": list(range(6))}, {"b": list(range(6))})
    a = rows(network.model)["a"]
    assert (a.channels, a.dead, a.removable) == (6, 6, 5)
    assert a.held_by == ("min_channels (1)",)


class Composite(layers.Layer):
    """A layer of two layers, for which there is no rule."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Dense(3)

    def call(self, x):
        return self.inner(x)


def test_layers_that_cannot_be_looked_into_are_rows_too():
    line = keras.Sequential([keras.Input((6, 4)), layers.Dense(5)])
    image = keras.Input((6, 6, 2))
    x = layers.TimeDistributed(line, name="each")(conv(image, 4, "a"))
    x = layers.BatchNormalization()(x)
    x = Composite(name="composite")(x)
    x = layers.Reshape((36, 3))(layers.PReLU()(x))
    x = layers.GRU(4, name="gru")(x)
    x = layers.Add()([x, layers.Dense(4, name="b")(x)])
    report = rows(keras.Model(image, layers.Dense(2, name="c")(x)))
    assert list(report) == ["a", "each", "composite", "gru", "b", "c"]
    assert [report[k].channels for k in ("each", "composite", "gru")] == [
        *(5, 3, 4)
    ]
    for name in ("each", "composite", "gru"):
        assert report[name].dead == report[name].removable == 0
    (why,) = report["gru"].held_by
    assert why == "gru (GRU): it reads what it computes, in all its gates (4)"
    assert report["b"].coupled_with == ("gru",)
    assert report["gru"].coupled_with == ("b",)
    (why,) = report["composite"].held_by
    assert why == (
        "composite (Composite): no rule for this class, see register_rule (3)"
    )


def test_a_layer_in_two_models_is_one_row_and_a_depthwise_one_is_none():
    dense = layers.Dense(4, name="twice")
    inside = keras.Input((6, 6, 4))
    inner = keras.Model(inside, dense(inside), name="inner")
    image = keras.Input((6, 6, 2))
    x = dense(inner(conv(image, 4, "a")))
    # Its channels lie elsewhere than it expects them: it has no labels.
    x = layers.DepthwiseConv2D(1, data_format="channels_first")(x)
    report = rows(keras.Model(image, layers.Dense(3, name="b")(x)))
    assert list(report) == ["a", "inner/twice", "b"]


def test_a_layer_with_two_kernels_is_one_row(monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))

    class TwoKernels(layers.Layer):
        def build(self, shape):
            for name in "vw":
                weight = self.add_weight(shape=(shape[-1], 4), name=name)
                setattr(self, name, weight)

        def call(self, x):
            return (x @ self.v) * (x @ self.w)

    axes = {"in_axis": {"v": 0, "w": 0}, "out_axis": {"v": 1, "w": 1}}
    register_rule(TwoKernels, LayerRule("produces", **axes))
    image = keras.Input((6, 6, 2))
    x = TwoKernels(name="two")(image)
    model = keras.Model(image, layers.Dense(3, name="b")(x))
    shake(model)
    for weight, dead in zip(model.get_layer("two").weights, "12", strict=True):
        value = weight.numpy()
        value[:, [0, int(dead)]] = 0.0
        weight.assign(value)
    kill(model, {}, {"b": [0, 1]})
    two = rows(model)["two"]
    assert (two.channels, two.dead, two.removable) == (4, 1, 1)


@pytest.mark.parametrize("model", [None, "m.keras", layers.Dense(3)])
def test_what_is_no_model_is_an_error_that_says_so(model):
    with pytest.raises(ValueError, match="`keras.Model`.* Received: model="):
        channel_report(model)


def test_it_prints_as_a_table():
    network = networks.plain()
    shake(network.model)
    kill_all(network)
    kill(network.model, {"b": [3]})
    assert str(channel_report(network.model)) == (
        "layer   channels  dead  removable  held by\n"
        "a              6     2          2\n"
        "b              5     2          1  logits reads (1)\n"
        "logits         3     0          0  model output (3)"
    )


def test_layers_of_nested_models_carry_its_name():
    report = rows(networks.nested().model)
    assert list(report) == ["stem", "inner/a", "inner/b", "neck/c", "logits"]
    assert report["stem"].coupled_with == ("inner/b",)
