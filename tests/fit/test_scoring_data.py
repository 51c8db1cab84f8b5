"""The batches of scoring data, from each kind of data."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_prunetrain.fit.scoring_data import scoring_batches

X, Y = np.arange(200.0).reshape(200, 1), np.arange(200)


class Sequence(keras.utils.PyDataset):
    """Batches of 8; `None` batches stand for any number."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    @property
    def num_batches(self):
        return self.count

    def __getitem__(self, index):
        return X[8 * index : 8 * index + 8], Y[8 * index : 8 * index + 8]


def firsts(data):
    """The first example and the size of each batch."""
    return [(int(b.y[0]), len(b.y)) for b in scoring_batches(data)]


EIGHTS = [(8 * i, 8) for i in range(5)]


@pytest.mark.parametrize(
    "data",
    [
        Sequence(None),
        Sequence(9),
        tf.data.Dataset.from_tensor_slices((X, Y)).batch(8),
        ((X[i : i + 8], Y[i : i + 8]) for i in itertools.count(0, 8)),
    ],
    ids=["any number", "PyDataset", "Dataset", "generator"],
)
def test_the_first_five_batches_count(data):
    assert firsts(data) == EIGHTS


def test_a_data_set_of_no_batch_is_refused():
    with pytest.raises(ValueError, match="have no batch"):
        scoring_batches(Sequence(0))


def test_fewer_batches_are_all_that_there_are():
    assert firsts(Sequence(2)) == EIGHTS[:2]
    assert firsts((X[:40], Y[:40])) == [(0, 32), (32, 8)]


def test_arrays_are_read_in_batches_of_32():
    assert firsts((X, Y)) == [(32 * i, 32) for i in range(5)]


def test_weights_of_samples_go_along():
    (batch,) = scoring_batches((X[:8], Y[:8], 2 * Y[:8]))
    np.testing.assert_array_equal(batch.sample_weight, 2 * Y[:8])
    for data in ((X[:8], Y[:8]), (X[:8], Y[:8], None)):
        assert scoring_batches(data)[0].sample_weight is None


def test_arrays_may_be_in_structures():
    x = {"left": X[:40], "right": [X[:40], Y[:40]]}
    _, batch = scoring_batches((x, Y[:40]))
    np.testing.assert_array_equal(batch.x["left"], X[32:40])
    np.testing.assert_array_equal(batch.x["right"][1], Y[32:40])
