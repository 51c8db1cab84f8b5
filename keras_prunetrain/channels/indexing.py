"""Adapts an index into channels to the channels that a cut leaves.

Each function can be the `reindex` of a `LayerRule`.
"""

from typing import Any

import numpy as np
from keras import ops

from keras_prunetrain.channels.numbers import Channels
from keras_prunetrain.checks import is_integer


def reindexed(
    operation: Any, x: Any, key: Any, read: Channels, alive: np.ndarray
) -> tuple[Any, Any]:
    """Returns the arguments of `x[key]` for the channels that are left.

    Args:
        operation: The operation.
        x: The tensor after the cut.
        key: The index into the tensor before the cut.
        read: The `Channels` of the tensor before the cut.
        alive: Bool array, shape `(len(read.numbers),)`: which channels stay.

    Returns:
        `(x, key)` for the operation. If the wanted channels are not evenly
        spaced in the given `x`, the returned `x` holds only these channels.
    """
    key = _key_per_axis(key, len(read.shape))
    i = [i for i, k in enumerate(key) if k is not None][read.axis]
    new_positions = np.cumsum(alive) - 1
    if is_integer(key[i]):
        key[i] = int(new_positions[key[i]])
        return x, tuple(key)
    wanted = np.arange(len(alive))[key[i]]
    wanted = new_positions[wanted[alive[wanted]]]
    key[i] = _as_slice(wanted)
    if key[i] is None:
        x = ops.take(x, wanted.tolist(), axis=read.axis)
        key[i] = slice(None)
    return x, tuple(key)


def retaken(
    operation: Any, x: Any, indices: Any, read: Channels, alive: np.ndarray
) -> tuple[Any, Any]:
    """Returns the arguments of `ops.take` for the channels that are left.

    The arguments are as in `reindexed`.

    Returns:
        `(x, indices)` for the operation.
    """
    if operation.axis % len(read.shape) != read.axis:
        return x, indices
    old = np.asarray(indices)
    wanted = alive[old]
    # If `indices` has several axes, ties ensure that whole rows go.
    rows = [
        np.flatnonzero(wanted.any(tuple(j for j in range(old.ndim) if j != i)))
        for i in range(old.ndim)
    ]
    old = old[np.ix_(*rows)] if rows else old
    return x, (np.cumsum(alive) - 1)[old].tolist()


def _key_per_axis(key, rank):
    """Returns an index as a list with an entry for each of `rank` axes.

    The list also has a `None` for each new axis.
    """
    key = list(key) if isinstance(key, tuple | list) else [key]
    if Ellipsis not in key:
        key.append(Ellipsis)
    i = key.index(Ellipsis)
    missing = rank - sum(k is not None and k is not Ellipsis for k in key)
    return key[:i] + [slice(None)] * missing + key[i + 1 :]


def _as_slice(positions):
    """Returns the slice that selects `positions`, `None` if no slice does."""
    steps = np.unique(np.diff(positions))
    if len(steps) > 1:
        return None
    step = int(steps[0]) if len(steps) else 1
    stop = int(positions[-1]) + step
    return slice(int(positions[0]), stop if stop >= 0 else None, step)
