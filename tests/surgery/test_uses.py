"""Weights and layers that stand in several places stay one."""

import re

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_prunetrain import PruneTrainCallback, reconfigure
from tests.surgery.cuts import compiled, cut, outputs

pytestmark = pytest.mark.usefixtures("float64")

X = np.random.default_rng(0).normal(size=(8, 3))
NETWORK = None  # Replaced by each test that reads a layer by a global name.


class TiedLayer(layers.Layer):
    """Reads the kernel of another layer, which its config names."""

    def __init__(self, other, **kwargs):
        super().__init__(**kwargs)
        self.other = other

    def call(self, x):
        return ops.matmul(x, ops.transpose(self.other.kernel))

    def get_config(self):
        other = keras.saving.serialize_keras_object(self.other)
        return {**super().get_config(), "other": other}

    @classmethod
    def from_config(cls, config):
        other = keras.saving.deserialize_keras_object(config.pop("other"))
        return cls(other, **config)


class TiedListed(TiedLayer):
    """Has the other layer in a list, and makes no config."""

    def __init__(self, other, **kwargs):
        layers.Layer.__init__(self, **kwargs)
        self.others = [other]

    def call(self, x):
        return ops.matmul(x, ops.transpose(self.others[0].kernel))

    def get_config(self):
        raise NotImplementedError


class TiedKernel(TiedLayer):
    """Holds the kernel of another layer."""

    def build(self, shape):
        self.kernel = self.other.kernel

    def call(self, x):
        return ops.matmul(x, ops.transpose(self.kernel))


def by_closure(first):
    return layers.Lambda(lambda x: ops.matmul(x, ops.transpose(first.kernel)))


def by_variable(first):
    kernel = first.kernel
    return layers.Lambda(lambda x: ops.matmul(x, ops.transpose(kernel)))


def by_global_name(first):
    global NETWORK
    NETWORK = first
    return layers.Lambda(lambda x: ops.matmul(x, ops.transpose(NETWORK.kernel)))


def by_an_argument(first):
    return lambda x: ops.matmul(x, first.kernel)


HELD = {
    "layer": TiedLayer,
    "listed layer": TiedListed,
    "variable": TiedKernel,
}
USED = {
    "closure": by_closure,
    "closure over a variable": by_variable,
    "global name": by_global_name,
    "argument in the graph": by_an_argument,
}
TIES = HELD | USED


@pytest.fixture(params=TIES.values(), ids=TIES)
def tied(request):
    """A model whose layers "first" and behind "b" share a kernel."""
    inputs = keras.Input((3,))
    first = layers.Dense(3, name="first")
    h = first(inputs)
    h = layers.Dense(6, use_bias=False, name="a")(h)
    h = layers.Dense(3, use_bias=False, name="b")(h)
    h = request.param(first)(h)
    return compiled(keras.Model(inputs, layers.Dense(3, name="last")(h)))


def test_tied_layers_stay_tied(tied):
    smaller = cut(tied, X)

    assert len(smaller.trainable_variables) == len(tied.trainable_variables)


def test_the_old_model_keeps_its_own_tie(tied):
    before = outputs(tied, X)
    smaller = reconfigure(tied)
    for weight in smaller.weights:
        weight.assign(weight + 1.0)
    np.testing.assert_array_equal(outputs(tied, X), before)


def refuses(model, message):
    """Asserts that `reconfigure` raises, and `fit` before the first step."""
    with pytest.raises(ValueError, match=re.escape(message)):
        reconfigure(model)
    with pytest.raises(ValueError, match=re.escape(message)):
        model.fit(X, X, verbose=0, callbacks=[PruneTrainCallback()])
    assert model.optimizer.iterations == 0


def tied_and_dead(tie):
    """A model that ties the kernel of a layer with a dead channel."""
    inputs = keras.Input((3,))
    a = layers.Dense(6, use_bias=False, name="a")
    h = a(inputs)
    h = layers.Dense(3 if tie is by_an_argument else 6, name="b")(h)
    h = tie(a)(h)
    return compiled(keras.Model(inputs, layers.Dense(3, name="last")(h)))


@pytest.mark.parametrize("tie", USED.values(), ids=USED)
def test_a_dead_channel_that_a_function_reads_is_refused(tie):
    model = tied_and_dead(tie)
    message = "uses 'a/kernel' of layer 'a' in a way that is not known, and "
    refuses(model, message)

    # The advice helps.
    pruning = PruneTrainCallback(reconfigure={"skip": "a"})
    model.fit(X, X, verbose=0, callbacks=[pruning])
    assert model.optimizer.iterations == 1


@pytest.mark.parametrize("tie", HELD.values(), ids=HELD)
def test_a_dead_channel_that_another_layer_holds_stays(tie):
    model = tied_and_dead(tie)
    assert reconfigure(model) is model
    model.fit(X, X, verbose=0, callbacks=[PruneTrainCallback()])


class Shared(layers.Layer):
    """Two of them have one layer inside."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def build(self, shape):
        if not self.inner.built:
            self.inner.build(shape)

    def call(self, x):
        return self.inner(x)


@pytest.mark.parametrize("place", ["composites", "wrappers", "called twice"])
def test_an_inner_layer_of_two_layers_stays_one(place):
    inner = layers.Dense(3, activation="tanh")
    if place == "composites":
        one, two = Shared(inner), Shared(inner)
    elif place == "wrappers":
        one, two = (layers.TimeDistributed(inner) for _ in range(2))
    else:
        one = two = Shared(inner)
    x = X.reshape(4, 2, 3)
    inputs = keras.Input((2, 3))
    h = layers.Flatten()(two(-one(inputs)))
    h = layers.Dense(6, use_bias=False, name="a")(h)
    h = layers.Dense(4, use_bias=False, name="b")(h)
    model = compiled(keras.Model(inputs, layers.Dense(3)(h)))

    smaller = cut(model, x)

    assert len(smaller.weights) == len(model.weights)


def test_a_model_on_the_same_layers_is_left_alone():
    inputs = keras.Input((3,))
    first = layers.Dense(3, name="first")(inputs)
    h = layers.Dense(6, use_bias=False, name="a")(first)
    h = layers.Dense(4, use_bias=False, name="b")(h)
    other = keras.Model(inputs, [first, layers.Dense(2)(h)])
    model = compiled(keras.Model(inputs, layers.Dense(3)(h)))
    before = [np.asarray(y) for y in other(X)]

    smaller = cut(model, X, steps=0)
    smaller.train_on_batch(X, X)

    for new, old in zip(other(X), before, strict=True):
        np.testing.assert_array_equal(new, old)


class Penalty(keras.regularizers.Regularizer):
    def __init__(self, factors):
        self.factors = factors

    def __call__(self, x):
        return ops.sum(self.factors * x)


class Clip(keras.constraints.Constraint):
    def __init__(self, limits):
        self.limits = limits

    def __call__(self, x):
        return ops.minimum(x, self.limits)


def chain():
    inputs = keras.Input((3,))
    h = layers.Dense(6, use_bias=False, name="a")(inputs)
    h = layers.Dense(4, use_bias=False, name="b")(h)
    return compiled(keras.Model(inputs, layers.Dense(3, name="last")(h)))


@pytest.mark.parametrize(
    ("kind", "function", "problem"),
    [
        ("regularizer", Penalty(np.ones(6)), "It raises: "),
        ("constraint", Clip(np.ones(6)), "It raises: "),
        (
            "constraint",
            Clip(np.ones((2, 1, 1))),
            "It returns the shape (2, 3, ",
        ),
        ("regularizer", lambda x: ops.sum(x * np.ones((3, 6))), "It raises: "),
    ],
)
def test_what_holds_an_entry_per_channel_is_refused(kind, function, problem):
    model = chain()
    setattr(model.get_layer("a").kernel, kind, function)
    refuses(
        model,
        f"The {kind} of 'a/kernel' does not take the smaller shape (3, ",
    )
    with pytest.raises(ValueError, match=re.escape(problem)):
        reconfigure(model)
    assert reconfigure(model, skip="a") is model


def test_an_activity_regularizer_with_an_entry_per_channel_is_refused():
    model = chain()
    model.get_layer("a").activity_regularizer = Penalty(np.ones(6))
    model.get_layer("last").activity_regularizer = Penalty(np.ones(3))
    refuses(
        model,
        "The activity regularizer of layer 'a' does not take the smaller shape "
        "(1, ",
    )
    model.get_layer("a").activity_regularizer = Penalty(0.1)
    assert reconfigure(model).get_layer("a").units == 5


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("regularizer", Penalty(0.1)),
        ("regularizer", lambda x: 0.1 * ops.sum(ops.square(x))),
        ("constraint", Clip(0.5)),
        ("constraint", Clip(np.full((3, 1), 0.5))),
    ],
)
def test_what_takes_any_size_is_carried(kind, function):
    model = chain()
    setattr(model.get_layer("b").kernel, kind, function)
    if isinstance(function, Clip) and np.ndim(function.limits):
        setattr(model.get_layer("b").kernel, kind, None)
        model.get_layer("a").kernel.constraint = function
    smaller = cut(model, X, steps=0)
    smaller.train_on_batch(X, X)
