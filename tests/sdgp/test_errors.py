"""What `with_sdgp` refuses, and that the model stays as it is then."""

import keras
import pytest
from keras import layers

import keras_prunetrain as kpt
from keras_prunetrain.sdgp.attach import sdgp_layers


class Scaled(layers.Conv2D):
    def call(self, inputs):
        return 2.0 * super().call(inputs)


class Subclass(keras.Model):
    def call(self, x):
        return x


def model():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, name="stem")(image)
    x = layers.Conv2D(6, 3, name="inner", padding="same")(x)
    x = layers.Conv2D(6, 3, 3, name="grouped", groups=3)(x)
    x = layers.SeparableConv2D(6, 1, name="separable")(x)
    x = Scaled(6, 1, name="scaled")(x)
    x = layers.Dense(5, name="logits")(layers.Flatten()(x))
    return keras.Model(image, x, name="network")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n": 5}, "`n` of every `m` channels of a gradient are kept"),
        ({"n": 0}, "`n` of every `m` channels of a gradient are kept"),
        ({"mode": "top"}, "`mode` must be one of 'rescaled', 'magnitude'"),
        ({"m": 8}, "`m` is above the 6 channels that the widest convolution"),
        (
            {"layers": "dense_*"},
            "`layers` names 'dense_\\*', which is no layer",
        ),
        ({"layers": []}, "`layers` names no layer"),
        ({"layers": lambda x: 1 / 0}, "in `layers` fails for the layer"),
        ({"layers": "logits", "m": 6}, "above the 5 channels of its output"),
        ({"layers": "grouped"}, "above the 2 channels of its output, or of"),
        ({"layers": "separable"}, "it is a SeparableConv2D"),
        ({"layers": "scaled"}, "it is a Scaled"),
        ({"layers": "flatten*"}, "it is a Flatten"),
        ({"seed": 1.5}, "`seed` must be an integer"),
        ({"seed": 2**63}, "`seed` must be an integer"),
    ],
)
def test_wrong_arguments(arguments, message):
    refused = model()
    with pytest.raises(ValueError, match=message):
        kpt.with_sdgp(refused, **arguments)
    assert not sdgp_layers(refused)


def test_a_model_that_has_it_already():
    twice = kpt.with_sdgp(model())
    with pytest.raises(ValueError, match="has pruned data gradients already"):
        kpt.with_sdgp(twice, 1, 4)
    kpt.with_sdgp(kpt.without_sdgp(twice), 1, 4)


def test_a_model_without_convolutions():
    vectors = keras.Sequential([keras.Input((4,)), layers.Dense(8)])
    with pytest.raises(ValueError, match="has no convolution with more than 3"):
        kpt.with_sdgp(vectors)
    assert list(sdgp_layers(kpt.with_sdgp(vectors, layers="dense*")))


@pytest.mark.parametrize("refused", ["model.keras", None, Subclass()])
def test_what_is_no_functional_model(refused):
    with pytest.raises(
        ValueError, match="`model` must be|functional and built"
    ):
        kpt.with_sdgp(refused)


def test_layers_that_compute_with_other_numbers():
    quantized = keras.Sequential([keras.Input((4,)), layers.Dense(8)])
    quantized.layers[0].quantize("int8")
    with pytest.raises(ValueError, match="it computes in int8"):
        kpt.with_sdgp(quantized, layers="dense*")
    image = keras.Input((4, 4, 4), dtype="complex64")
    x = layers.Conv2D(
        *(8, 1),
        kernel_initializer="zeros",
        dtype="complex64",
        name="wave",
    )(image)
    with pytest.raises(ValueError, match="it computes in complex64"):
        kpt.with_sdgp(keras.Model(image, x), layers="wave")


def test_layers_whose_backward_pass_calls_them_anew():
    with keras.RematScope(mode="full"):
        refused = model()
    with pytest.raises(ValueError, match="'inner' cannot be pruned: it was ma"):
        kpt.with_sdgp(refused)
    assert not sdgp_layers(refused)


def test_by_default_all_that_can_have_it_do():
    image = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, name="first")(image)
    inner = keras.Sequential(
        [keras.Input(x.shape[1:]), layers.Conv2D(8, 1, 2, name="strided")],
        name="inner",
    )
    x = layers.Conv2D(3, 1, name="narrow")(inner(x))
    x = layers.Conv2D(8, 1, name="of_colours")(x)
    x = layers.Conv2D(8, 1, groups=2, name="grouped")(x)
    x = layers.Dense(8, name="dense")(x)
    found = kpt.with_sdgp(keras.Model(image, x))
    assert list(sdgp_layers(found)) == ["first", "inner/strided"]
