"""Indices into channels, compared with NumPy on what a cut leaves."""

import types

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_prunetrain import channel_report, reconfigure
from keras_prunetrain.channels.indexing import reindexed, retaken
from keras_prunetrain.channels.numbers import Channels
from tests.networks import conv, images, kill, outputs, shake

X = np.arange(2 * 3 * 7).reshape(2, 3, 7)  # The last number says the channel.
READ = Channels(np.arange(7), 2, X.shape)
ALIVE = np.array([True, True, False, True, False, True, True])


@pytest.mark.parametrize(
    "key",
    [
        *((..., slice(None)), (..., slice(1, None, 2)), (..., slice(5))),
        *((slice(None), 1), (slice(None), None, ..., slice(None, None, -2))),
        *((..., 3), (..., -1), (0, slice(1, 3)), 1, [..., slice(0, 2)]),
        (..., None, slice(0, None, 3)),
    ],
    ids=str,
)
def test_an_index_finds_the_channels_that_are_left(key):
    key_of_all = tuple(key) if isinstance(key, list) else key
    expected = X[key_of_all]
    stays = np.broadcast_to(ALIVE, X.shape)[key_of_all]
    x, key = reindexed(None, X[..., ALIVE], key, READ, ALIVE)
    found = np.asarray(x)[key]
    assert found.ravel().tolist() == expected[stays].tolist()
    assert found.ndim == expected.ndim


@pytest.mark.parametrize(
    "indices",
    [[0, 1, 3], [6, 0, 5], [2, 3], [-1, -7, 1], 3, [[0, 2], [1, 4]], [1, 1, 2]],
    ids=str,
)
def test_indices_find_the_channels_that_are_left(indices):
    take = types.SimpleNamespace(axis=-1)
    expected = np.take(X, indices, -1)
    stays = np.broadcast_to(ALIVE[np.asarray(indices)], expected.shape)
    x, found = retaken(take, X[..., ALIVE], indices, READ, ALIVE)
    found = np.take(x, found, -1)
    assert found.ravel().tolist() == expected[stays].tolist()
    assert found.ndim == expected.ndim


def test_indices_into_pixels_stay_as_they_are():
    take = types.SimpleNamespace(axis=1)
    x = X[..., ALIVE]
    assert retaken(take, x, [2, 0], READ, ALIVE) == (x, [2, 0])


@pytest.mark.usefixtures("float64")
def test_channels_that_were_taken_out_unevenly_can_be_cut_again():
    image = keras.Input((6, 6, 2))
    x = conv(image, 12, "a")
    x = layers.Concatenate()(
        [conv(x[..., ::2], 4, "b"), conv(x[..., 1::2], 4, "c")]
    )
    model = keras.Model(image, layers.GlobalMaxPooling2D()(x))
    model.compile("sgd", "mse")
    shake(model)
    # Of 12 channels go 0 and 3; of the 10 left 1 and 2, which `b` and `c` read
    # first.
    for dead, b, c, left in (([0, 3], [0], [1], 10), ([0, 1], [0], [0], 8)):
        kill(model, {"a": dead}, {"b": b, "c": c})
        smaller = reconfigure(model)
        assert smaller.get_layer("a").filters == left
        np.testing.assert_allclose(
            outputs(smaller, images()), outputs(model, images()), atol=1e-12
        )
        model = smaller
    assert channel_report(model)[0].held_by == ()


def test_taking_from_a_flattened_tensor_holds_the_channels():
    image = keras.Input((6, 6, 2))
    x = ops.take(conv(image, 4, "a"), [[0, 1, 2]])
    model = keras.Model(image, layers.Dense(3)(x))
    (why,) = channel_report(model)[0].held_by
    assert why.endswith("it takes values from all examples (4)")
