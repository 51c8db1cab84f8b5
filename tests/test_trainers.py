"""Models that hold functional models: what their network is, and who trains."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.liveness import plan_of
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.channels.options import CutOptions
from keras_prunetrain.surgery.reconfigure import prepare_cut
from keras_prunetrain.surgery.takeover import take_over
from keras_prunetrain.trainers import (
    check_built,
    network_of,
    optimizer_of,
    optimizers_of,
    unbuilt_in,
    updating_optimizers,
)
from tests.masked import silence, some_alive
from tests.programs.watched import outputs


class Holder(keras.Model):
    """Holds whatever it is given."""

    def __init__(self, **held):
        super().__init__()
        for name, value in held.items():
            setattr(self, name, value)


def mlp(name, reads=8, writes=4):
    x = keras.Input((reads,))
    hidden = layers.Dense(12, activation="relu", name=f"{name}_hidden")(x)
    return keras.Model(x, layers.Dense(writes)(hidden), name=name)


def parts_of(network):
    return sorted(x.name for x in network.layers if hasattr(x, "layers"))


def test_a_functional_model_is_its_own_network():
    model = mlp("one")
    assert network_of(model) is model
    with pytest.raises(ValueError, match="is a functional model itself"):
        network_of(model, ["one"])


def test_parts_are_what_trains_in_attributes_lists_and_dicts():
    frozen, unbuilt = mlp("frozen"), keras.Sequential([layers.Dense(3)])
    frozen.trainable = False
    shared = mlp("shared")
    holder = Holder(
        one=mlp("one"),
        _several=[mlp("two"), shared],
        named={"a": mlp("three"), "b": [shared, 5]},
        left=[frozen, unbuilt, layers.Dense(3), keras.Sequential(), "text"],
    )
    network = network_of(holder)
    assert parts_of(network) == ["one", "shared", "three", "two"]
    assert network.get_layer("one") is holder.one
    network = network_of(holder, ["_several", "one"])
    assert parts_of(network) == ["one", "shared", "two"]
    assert len(number_channels(network_of(holder, "one")).layers) == 3


def test_a_model_that_holds_none_stays_as_it_is():
    holder = Holder(dense=layers.Dense(3))
    assert network_of(holder) is holder
    with pytest.raises(ValueError, match="a model that trains functional"):
        number_channels(holder)


@pytest.mark.parametrize(
    "submodels, message",
    [
        (["no"], r"Those of 'holder\w*' are 'several', 'one'\. Received"),
        (["frozen"], "'frozen' is none: it has no weights that train."),
        (["unbuilt"], "or has not been built"),
        ([], "must be a list of names"),
        (3, "must be a list of names"),
        (None, "two models of the name 'same'"),
    ],
)
def test_what_cannot_be_a_part_is_refused(submodels, message):
    frozen = mlp("frozen")
    frozen.trainable = False
    holder = Holder(
        frozen=frozen,
        unbuilt=keras.Sequential([layers.Dense(3)], name="unbuilt"),
        several=[mlp("same"), mlp("same")],
        one=mlp("one"),
    )
    with pytest.raises(ValueError, match=message):
        network_of(holder, submodels)


def test_a_network_leaves_nothing_in_its_parts():
    part = mlp("part")
    network = network_of(Holder(part=part))
    assert len(keras_internals.calls_of(part)) == 1
    keras_internals.forget_calls(network)
    assert not keras_internals.calls_of(part)


def nested():
    part = mlp("part")
    around = keras.Sequential(
        [keras.Input((8,)), part, layers.Dense(6), layers.Dense(2)],
        name="around",
    )
    return {"part": part, "around": around}


def on_the_same_layers():
    x = keras.Input((8,))
    first = layers.Dense(12, activation="relu", name="first")(x)
    second = layers.Dense(10, activation="relu", name="second")(first)
    whole = keras.Model(x, layers.Dense(1)(second), name="whole")
    return {"whole": whole, "features": keras.Model(x, second, name="features")}


def of_several_inputs():
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((5,))}
    inputs["b"] = keras.Input((5,), name="b")
    x = layers.Concatenate()([layers.Dense(7)(y) for y in inputs.values()])
    x = layers.Dense(6, activation="relu")(x)
    heads = {"c": layers.Dense(2)(x), "d": layers.Dense(3)(x)}
    return {"heads": keras.Model(inputs, heads, name="heads")}


@pytest.mark.parametrize(
    "held", [nested, on_the_same_layers, of_several_inputs]
)
def test_parts_on_the_same_layers_compute_what_they_did(held, float64):
    holder = Holder(**held())
    holder.compile("adam")
    network = network_of(holder)
    numbering = number_channels(network)
    alive = some_alive(numbering, np.random.default_rng(0))
    silence(numbering, alive)
    parts = list(held())
    parts = [getattr(holder, name) for name in parts]
    before = [(x.count_params(), outputs(x)) for x in parts]

    plan = plan_of(network, numbering, alive, CutOptions())
    take_over(network, prepare_cut(network, plan, holder))

    for part, (count, expected) in zip(parts, before, strict=True):
        assert part.count_params() < count
        for one, other in zip(outputs(part), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


def test_the_optimizers_are_those_of_the_attributes():
    inner, own = keras.optimizers.SGD(0.1), keras.optimizers.Adam(0.2)
    holder = Holder(part=mlp("part"), others=[own, {"own": own}])
    assert optimizers_of(holder) == [own]
    holder.compile(keras.optimizers.LossScaleOptimizer(inner))
    assert optimizers_of(holder) == [holder.optimizer, own]
    assert updating_optimizers(holder) == [inner, own]
    assert optimizer_of(holder) is None
    model = mlp("model")
    model.compile("sgd")
    model.other = own
    assert optimizer_of(model) is model.optimizer


def test_parts_in_layers_and_in_other_trainers_are_found():
    inside = Holder(part=mlp("inside"))
    inside.compile(keras.optimizers.SGD(0.1))
    layer = layers.TimeDistributed(mlp("each"))
    frozen = layers.TimeDistributed(mlp("frozen"))
    frozen.trainable = False
    outer = Holder(inner=inside, several=[layer, frozen], own=mlp("own"))
    inside.around = outer  # Each holds the other.
    assert parts_of(network_of(outer)) == ["each", "inside", "own"]
    assert parts_of(network_of(outer, ["inner"])) == ["each", "inside", "own"]
    assert parts_of(network_of(outer, ["several"])) == ["each"]
    outer.own.compile(keras.optimizers.Adam())
    outer.compile("rmsprop")
    assert optimizers_of(outer) == [
        *(outer.optimizer, inside.optimizer, outer.own.optimizer)
    ]


def test_models_that_were_not_built_are_named():
    def dense(name):
        return keras.Sequential([layers.Dense(3)], name=name)

    holder = Holder(one=dense("one"), more=[dense("two"), mlp("built")])
    assert unbuilt_in(holder) == ["one", "two"]
    holder.one.build((None, 2))
    assert unbuilt_in(holder) == ["two"]
    assert parts_of(network_of(holder)) == ["built", "one"]
    with pytest.raises(ValueError, match="'holder.*, 'two' have not been"):
        check_built(holder)
    check_built(Holder(one=keras.Sequential(), two=layers.Dense(1)))
