"""`x[key]` where channels of `x` are gone."""

import numpy as np
from keras import ops


def reindexed(x, key, read, alive):
    """Returns the arguments of `x[key]` for what is left of the channels.

    Where the channels that are left do not lie evenly, they are first taken
    out of `x`.

    Args:
        x: The smaller tensor.
        key: The index that the model applied to the tensor before the cut.
        read: The `Channels` of the tensor before the cut.
        alive: Bool array, shape `(len(read.numbers),)`: which of them stay.
    """
    if alive.all():
        return x, key
    key = _key_per_axis(key, len(read.shape))
    place = [i for i, k in enumerate(key) if k is not None][read.axis]
    new_places = np.cumsum(alive) - 1
    if isinstance(key[place], int):
        key[place] = int(new_places[key[place]])
        return x, tuple(key)
    wanted = np.arange(len(alive))[key[place]]
    wanted = new_places[wanted[alive[wanted]]]
    key[place] = _as_slice(wanted)
    if key[place] is None:
        x = ops.take(x, wanted.tolist(), axis=read.axis)
        key[place] = slice(None)
    return x, tuple(key)


def _key_per_axis(key, rank):
    """Returns an index as a list, an entry for each of `rank` axes.

    Beside these, `None` stands for each new axis.
    """
    key = list(key) if isinstance(key, tuple | list) else [key]
    if Ellipsis not in key:
        key.append(Ellipsis)
    place = key.index(Ellipsis)
    missing = rank - sum(k is not None and k is not Ellipsis for k in key)
    return key[:place] + [slice(None)] * missing + key[place + 1 :]


def _as_slice(positions):
    """Returns the slice that has these `positions`, `None` if none has."""
    steps = np.unique(np.diff(positions))
    if len(steps) > 1:
        return None
    step = int(steps[0]) if len(steps) else 1
    stop = int(positions[-1]) + step
    return slice(int(positions[0]), stop if stop >= 0 else None, step)
