"""What the report says of dead channels, and of what holds them."""

import keras
from keras import layers

from keras_prunetrain import channel_report
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
