"""Which activations leave each channel by itself, and which mix them."""

import functools
import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_prunetrain import channel_report, reconfigure
from keras_prunetrain.channels.numbering import number_channels
from tests.networks import conv, head, images, kill, outputs, shake

ALL = {
    name: function
    for name, function in vars(keras.activations).items()
    if inspect.isfunction(function)
    and name not in ("deserialize", "get", "serialize")
}
MIXING = {"glu", "log_softmax", "softmax", "sparsemax"}


def named(activation):
    return getattr(activation, "__name__", type(activation).__name__)


def model_with(activation):
    image = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, name="a", activation=activation)(image)
    return keras.Model(image, head(x))


def goes(model):
    numbering = number_channels(model)
    numbers = numbering.outputs["a"][0].numbers.tolist()
    return not set(numbers) & set(numbering.frozen)


@pytest.mark.parametrize("name", ALL)
def test_the_table_knows_what_every_activation_of_keras_does(name):
    function = ALL[name]
    arguments = (0.1, 0.0) if name == "threshold" else ()
    x = np.random.default_rng(0).normal(size=(5, 4))
    other = x.copy()
    other[:, 1:] += 1.0  # Does channel 0 notice?
    same = np.array_equal(
        *(function(value, *arguments)[:, 0] for value in (x, other))
    )
    assert same == (name not in MIXING)
    if name not in ("glu", "threshold"):  # Those are no activation alone.
        assert goes(model_with(function)) == same


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "activation",
    [
        *(tf.nn.relu, tf.math.tanh, tf.nn.swish, tf.nn.leaky_relu),
        *(keras.ops.gelu, layers.LeakyReLU(0.3), layers.Activation("elu")),
    ],
    ids=named,
)
def test_functions_partials_and_layers_that_are_pointwise_are_followed(
    activation,
):
    model = model_with(activation)
    model.compile("sgd", "mse")
    shake(model)
    kill(model, {"a": [1]}, {"logits": [1]})
    smaller = reconfigure(model)
    assert smaller.get_layer("a").filters == 3
    np.testing.assert_allclose(
        outputs(smaller, images()), outputs(model, images()), atol=1e-12
    )


def flipped(x):
    return keras.ops.flip(x, -1)


class Unhashable:
    __hash__ = None

    def __call__(self, x):
        return x


@pytest.mark.parametrize(
    "activation",
    [
        *(tf.nn.softmax, tf.nn.l2_normalize, flipped, Unhashable()),
        *(layers.Softmax(), layers.PReLU(), layers.Activation("softmax")),
        layers.Rescaling([1.0, 2.0, 3.0, 4.0]),
        functools.partial(keras.activations.leaky_relu, negative_slope=0.1),
    ],
    ids=named,
)
def test_what_may_mix_channels_freezes_them(activation):
    model = model_with(activation)
    (why,) = channel_report(model)[0].held_by
    assert why.startswith("a (Conv2D): its activation ")
    assert why.endswith("may mix channels (4)")


def test_an_activation_of_a_layer_may_be_a_layer():
    image = keras.Input((6, 6, 2))
    x = layers.Activation(layers.LeakyReLU(0.3))(conv(image, 4, "a"))
    assert goes(keras.Model(image, head(x)))
