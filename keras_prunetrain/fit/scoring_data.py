"""The training data on which a score is measured."""

import itertools
from typing import Any

import keras
import numpy as np

from keras_prunetrain.gradient_flow import Batch

# The authors of EarlyCroP score on five batches.
_BATCHES = 5
# As in `fit`.
_BATCH_SIZE = 32


def check_scoring_data(score: str, data: Any) -> None:
    """Raises a `ValueError` if a score that needs data has none."""
    if data is None:
        raise ValueError(
            f"score={score!r} is measured on training data. Pass them as "
            "`scoring_data`, a `tf.data.Dataset` of batches or a tuple of "
            "arrays, `(x, y)`. Received: scoring_data=None"
        )


def scoring_batches(data: Any) -> list[Batch]:
    """Returns the first five batches of `data`, or all if there are fewer.

    Args:
        data: A `tf.data.Dataset` of batches, a `keras.utils.PyDataset`, another
            iterable of batches, or a tuple `(x, y)` or `(x, y, sample_weight)`
            of arrays, which are read in batches of 32.

    Raises:
        ValueError: If `data` is none of these, or has no batch.
    """
    if isinstance(data, tuple):
        batches = _of_arrays(data)
    elif isinstance(data, keras.utils.PyDataset):
        count = data.num_batches  # `None` of an infinite one.
        batches = [
            data[i]
            for i in range(_BATCHES if count is None else min(_BATCHES, count))
        ]
    elif hasattr(data, "__iter__") and not isinstance(data, str | np.ndarray):
        batches = list(itertools.islice(data, _BATCHES))
    else:
        raise ValueError(
            "The scoring data must be a `tf.data.Dataset` of batches, or a "
            "tuple of arrays, `(x, y)`. Received: scoring_data="
            f"{type(data).__name__}"
        )
    if not batches:
        raise ValueError(
            "The scoring data have no batch. Pass at least one batch of "
            "training data."
        )
    return [Batch(*keras.utils.unpack_x_y_sample_weight(x)) for x in batches]


def _of_arrays(arrays):
    if len(arrays) == 3 and arrays[2] is None:
        arrays = arrays[:2]
    lengths = {len(x) for x in keras.tree.flatten(arrays)}
    if len(lengths) != 1 or not 2 <= len(arrays) <= 3:
        raise ValueError(
            "The arrays of the scoring data must be `(x, y)` or "
            "`(x, y, sample_weight)`, with as many examples each. Received: "
            f"{len(arrays)} of {sorted(lengths)} examples"
        )
    total, size = lengths.pop(), _BATCH_SIZE
    return [
        keras.tree.map_structure(lambda x, i=i: x[i : i + size], arrays)
        for i in range(0, min(total, _BATCHES * size), size)
    ]
