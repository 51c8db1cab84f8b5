"""Layers that are made anew, or copied where no config says how."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_prunetrain import (
    LayerRule,
    PruneTrainCallback,
    reconfigure,
    register_rule,
)
from keras_prunetrain.channels import rules
from keras_prunetrain.channels.liveness import plan_cut
from keras_prunetrain.channels.options import CutOptions
from keras_prunetrain.surgery.reconfigure import prepare_cut
from keras_prunetrain.surgery.takeover import take_over
from tests.surgery.cuts import around, compiled, cut, kill, outputs

pytestmark = pytest.mark.usefixtures("float64")

X = np.random.default_rng(0).normal(size=(8, 2, 3))


class Enlarge(layers.Layer):
    """As many tutorials write it."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    def call(self, x):
        return keras.ops.repeat(x, self.times, axis=1)


class Scale(Enlarge):
    def build(self, shape):
        self.scale = self.add_weight(shape=shape[1:], name="scale")
        self.shift = self.add_weight(
            shape=shape[-1:], trainable=False, name="shift"
        )

    def call(self, x):
        return x * self.scale + self.shift


class PositionalOnly(Scale):
    def __init__(self, times, /):
        super().__init__(times)


class Variadic(Scale):
    def __init__(self, *times):
        super().__init__(times)


class Forgetful(Scale):
    """Keeps Keras's own `get_config`, which does not know `function`."""

    def __init__(self, function, **kwargs):
        layers.Layer.__init__(self, **kwargs)
        self.function = function

    def call(self, x):
        return self.function(super().call(x))


class Careless(Forgetful):
    def get_config(self):
        return {"name": self.name}


class Raising(Forgetful):
    def get_config(self):
        raise RuntimeError("cannot")


class Composite(layers.Layer):
    """Has layers inside that no argument names."""

    def __init__(self, units):
        super().__init__()
        self.one = layers.Dense(units, activation="relu")
        self.others = [layers.Dense(units), {"drop": layers.Dropout(0.5)}]

    def build(self, shape):
        self.one.build(shape)
        self.others[0].build((*shape[:-1], self.one.units))

    def call(self, x, training=None):
        x = self.others[0](self.one(x))
        return self.others[1]["drop"](x, training=training)


class PositionalComposite(Composite):
    def __init__(self, units, /):
        super().__init__(units)


class OfAModel(layers.Layer):
    """Has a functional model inside."""

    def __init__(self, model, /):
        super().__init__()
        self.model = model

    def call(self, x):
        return self.model(x)


def of_a_model():
    inputs = keras.Input((2, 3))
    x = layers.Dense(4, activation=lambda x: x * abs(x))(inputs)
    return OfAModel(keras.Model(inputs, layers.BatchNormalization()(x)))


class Closures(Scale):
    """Its functions hold the layer itself."""

    def __init__(self, times, /):
        super().__init__(times)
        self.by_cell = lambda x: x * self.scale
        self.by_method = self.shifted
        self.by_default = lambda x, me=self: x * me.times

    def shifted(self, x):
        return x + self.shift

    def call(self, x):
        return self.by_default(self.by_method(self.by_cell(x)))


class Unseen(Scale):
    """Counts in a variable of TensorFlow's, which Keras does not know."""

    def __init__(self, times, /):
        super().__init__(times)
        self.count = tf.Variable(float(times), dtype="float64")

    def call(self, x):
        return super().call(x) * self.count


class Noisy(Scale):
    def __init__(self, times, /):
        super().__init__(times)
        self.generator = keras.random.SeedGenerator(times)

    def call(self, x, training=None):
        x = super().call(x)
        if training:
            x += keras.random.normal((3,), seed=self.generator, dtype=x.dtype)
        return x


class Subclassed(keras.Model):
    """A model whose layers form no graph, compiled on its own."""

    def __init__(self, units, /):
        super().__init__()
        self.dense = layers.Dense(units)
        self.loss_tracker = keras.metrics.Mean(name="own")

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x)


def subclassed():
    model = Subclassed(4)
    model.compile("adam", "mse", run_eagerly=True)
    model.train_on_batch(X, np.ones((8, 2, 4)))
    return model


UNUSUAL = {
    "no kwargs": lambda: Enlarge(2),
    "no kwargs, weights": lambda: Scale(2),
    "positional only": lambda: PositionalOnly(2),
    "variadic": lambda: Variadic(2, 3),
    "unknown argument": lambda: Forgetful(keras.ops.square),
    "config without its argument": lambda: Careless(keras.ops.square),
    "config that raises": lambda: Raising(lambda x: x * x),
    "composite": lambda: Composite(4),
    "positional composite": lambda: PositionalComposite(4),
    "model inside": of_a_model,
    "closures": lambda: Closures(2),
    "unseen variable": lambda: Unseen(2),
    "seed generator": lambda: Noisy(2),
    "subclassed model": subclassed,
}


@pytest.fixture(params=UNUSUAL.values(), ids=UNUSUAL.keys())
def unusual(request):
    """A model with an unusual layer, whose weights are not the initial ones."""
    model = around(request.param(), X)
    rng = np.random.default_rng(0)
    for weight in model.layers[1].weights:
        weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return model


def test_a_layer_that_is_not_cut_needs_no_config(unusual):
    layer = unusual.layers[1]

    smaller = cut(unusual, X)

    new = smaller.layers[1]
    assert type(new) is type(layer)
    assert new is not layer
    assert new.name == layer.name
    assert new.built
    assert [v.path for v in new.weights] == [v.path for v in layer.weights]
    assert not {id(v) for v in new.variables} & {id(v) for v in layer.variables}


class Unnamed(layers.Layer):
    """Holds layers without names, which Keras numbers anew in each clone."""

    def build(self, shape):
        self.first, self.second = layers.Dense(4), layers.Dense(4)
        self.first.build(shape)
        self.second.build(shape)

    def call(self, x):
        return self.first(x) * self.second(x)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: Unnamed(name="u"),
        lambda: layers.Bidirectional(layers.GRU(2), name="u"),
    ],
    ids=["composite", "bidirectional"],
)
def test_parts_of_a_layer_keep_their_names_and_paths(layer):
    model = around(layer(), X)
    old = model.layers[1]

    new = cut(model, X, steps=1).layers[1]

    names = [[x.name for x in y._flatten_layers()] for y in (old, new)]
    paths = [[v.path for v in x.variables] for x in (old, new)]
    assert names[0] == names[1]
    assert paths[0] == paths[1]
    assert paths[0][0].startswith("u/")


def test_the_old_model_is_left_as_it_was(unusual):
    before = outputs(unusual, X)
    variables = [v.numpy() for v in unusual.variables]
    attributes = [set(vars(x)) for x in unusual.layers]

    smaller = reconfigure(unusual)
    smaller.train_on_batch(X, np.ones((8, 3)))
    if hasattr(smaller.layers[1], "count"):
        smaller.layers[1].count.assign(7.0)
    smaller.layers[1].times = 9

    np.testing.assert_array_equal(outputs(unusual, X), before)
    for old, new in zip(variables, unusual.variables, strict=True):
        np.testing.assert_array_equal(new, old)
    assert attributes == [set(vars(x)) for x in unusual.layers]


def test_it_can_be_cut_again_and_trained_on(unusual):
    smaller = reconfigure(unusual)
    kill(smaller)

    smallest = reconfigure(smaller)

    assert smallest.get_layer("a").units == 4
    np.testing.assert_allclose(outputs(smallest, X), outputs(smaller, X))
    smallest.train_on_batch(X, np.ones((8, 3)))


def test_a_weights_file_of_one_fits_the_other(unusual, tmp_path):
    path = tmp_path / "model.weights.h5"
    smaller = reconfigure(unusual)
    smaller.save_weights(path)
    expected = outputs(smaller, X)
    for weight in smaller.layers[1].weights:
        weight.assign(weight + 1.0)
    smaller.load_weights(path)
    np.testing.assert_array_equal(outputs(smaller, X), expected)


class Forgotten(layers.Dense):
    """Of a class with a rule, but its config lacks an argument."""

    def __init__(self, units, times, **kwargs):
        super().__init__(units, **kwargs)
        self.times = times


@pytest.fixture
def forgotten(monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    register_rule(
        Forgotten,
        LayerRule(
            "produces",
            ("units",),
            in_axis={"kernel": 0},
            out_axis={"kernel": 1},
        ),
    )
    inputs = keras.Input((3,))
    h = Forgotten(6, 2.0, use_bias=False, name="a")(inputs)
    h = layers.Dense(4, use_bias=False, name="b")(h)
    return compiled(keras.Model(inputs, layers.Dense(3)(h)))


def test_a_layer_that_is_cut_needs_its_config(forgotten):
    model = forgotten
    message = re.escape(
        "Cannot make layer 'a' anew with fewer channels. Check that "
        "`get_config` of Forgotten returns all that its `__init__` takes, or "
        "keep all channels of the layer with `skip='a'`. Keras says: "
    )
    with pytest.raises(ValueError, match=message):
        reconfigure(model)
    pruning = PruneTrainCallback()
    with pytest.raises(ValueError, match=message):
        model.fit(X[:, 0], np.ones((8, 3)), verbose=0, callbacks=[pruning])
    assert model.optimizer.iterations == 0


def test_the_advice_helps(forgotten):
    model = forgotten
    pruning = PruneTrainCallback(interval=1, reconfigure={"skip": "a"})
    model.fit(X[:, 0], np.ones((8, 3)), verbose=0, callbacks=[pruning])
    assert model.optimizer.iterations == 1


class Narrower(layers.Dense):
    """Its config is wrong about the number of units."""

    def get_config(self):
        return {**super().get_config(), "units": 3}


class Biased(layers.Dense):
    def get_config(self):
        return {**super().get_config(), "use_bias": True}


@pytest.mark.parametrize(
    ("layer_class", "problem"),
    [
        (Narrower, "'kernel' the shape (3, 3), where (3, 5) is left of (3, 5)"),
        (Biased, "a weight 'bias', which the layer has not"),
    ],
)
def test_a_config_that_makes_other_weights_is_refused(layer_class, problem):
    layer = layer_class(5, use_bias=False, name="mine")
    model = around(layer, X)
    message = (
        f"Cannot make layer 'mine' anew: its config gives {problem}. Check "
        f"that `get_config` of {layer_class.__name__} returns the very"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        reconfigure(model)


def test_it_goes_on_as_the_same_object_from_cut_to_cut(unusual):
    layer = unusual.layers[1]
    twin = cut(unusual, X, steps=0)  # Not taken over.
    kill(twin)
    for channels in (5, 4):
        expected = outputs(unusual, X)
        take_over(
            unusual, prepare_cut(unusual, plan_cut(unusual, CutOptions()))
        )
        assert unusual.get_layer("a").units == channels
        assert unusual.layers[1] is layer
        np.testing.assert_allclose(outputs(unusual, X), expected, 1e-9)
        if channels == 5:
            kill(unusual)
    for weight in layer.trainable_weights:
        weight.assign(2.0 * weight)
    for weight in twin.layers[1].trainable_weights:
        weight.assign(2.0 * weight)
    if layer.weights:  # Else the shape is another one.
        layer.times = twin.layers[1].times = 3
    np.testing.assert_allclose(outputs(unusual, X), outputs(twin, X), 1e-9)
