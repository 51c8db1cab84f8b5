"""How channel numbers pass through one call: a function for each flow.

Each takes the walk through the model (`numbering._Walk`), which hands out new
numbers and collects which of them are equal, the `Call`, the layer's rule, the
`Channels` that it reads and its key; and returns the `Channels` that it writes,
a list, or `None` if they cannot be followed.
"""

from typing import NamedTuple

import numpy as np
from keras import ops, tree

from keras_prunetrain import keras_internals
from keras_prunetrain.channels import layer_rule


class Channels(NamedTuple):
    """The channel numbers of a tensor.

    Attributes:
        numbers: Int array, shape `(channels,)`.
        axis: Int, where the channels lie; the batch is axis 0.
        shape: The tensor's shape, batch first, `None` where unknown.
        fixed: Whether these are the numbers of a tensor of unknown layout,
            which all stay: any axis may be read as that of the channels.
    """

    numbers: np.ndarray
    axis: int
    shape: tuple
    fixed: bool = False


def _produces(walk, call, rule, inputs, key):
    shape = tuple(call.outputs[0].shape)
    axis = inputs[0].axis - len(inputs[0].shape) + len(shape)
    if key in walk.outputs:  # A layer called twice computes the same.
        numbers = walk.outputs[key][0].numbers
    else:
        numbers = walk.new_numbers(shape[axis])
    if rule.groups is not None:
        groups = rule.groups(call.operation)
        _tie_groups(walk, inputs[0].numbers, groups)
        _tie_groups(walk, numbers, groups)
    return [Channels(numbers, axis, shape)]


def _tie_groups(walk, numbers, groups):
    first, *others = numbers.reshape(groups, -1)
    walk.ties += [(first, other) for other in others]


def _carries(walk, call, rule, inputs, key):
    x = inputs[0]
    shape = tuple(call.outputs[0].shape)
    # What pools a whole image drops its axes and leaves the channels.
    axis = x.axis if len(shape) == len(x.shape) else len(shape) - 1
    numbers = np.repeat(x.numbers, repeats(rule, call.operation))
    return [x._replace(numbers=numbers, axis=axis, shape=shape)]


def _reduces(walk, call, rule, inputs, key):
    x, operation = inputs[0], call.operation
    if operation.axis is None:
        return None
    dropped = {axis % len(x.shape) for axis in np.ravel(operation.axis)}
    if dropped & {0, x.axis}:
        return None
    axis = x.axis
    if not operation.keepdims:
        axis -= sum(i < x.axis for i in dropped)
    return [x._replace(axis=axis, shape=tuple(call.outputs[0].shape))]


def _joins(walk, call, rule, inputs, key):
    # Inputs of different rank meet at their last axes, as in NumPy.
    from_end = {x.axis - len(x.shape) for x in inputs}
    if len(from_end) > 1:
        return None
    size = max(len(x.numbers) for x in inputs)
    whole = [x.numbers for x in inputs if len(x.numbers) == size]
    for numbers in whole[1:]:
        walk.ties.append((whole[0], numbers))
    for x in inputs:
        if len(x.numbers) != size:  # One channel, spread over all.
            walk.freeze(x, "spread over all channels")
    shape = tuple(call.outputs[0].shape)
    return [Channels(whole[0], from_end.pop() + len(shape), shape)]


def _concatenates(walk, call, rule, inputs, key):
    shape = tuple(call.outputs[0].shape)
    axes = {x.axis for x in inputs}
    if len(axes) > 1:
        return None
    axis = axes.pop()
    if getattr(call.operation, "axis", axis) % len(shape) != axis:
        return _joins(walk, call, rule, inputs, key)
    numbers = np.concatenate([x.numbers for x in inputs])
    return [Channels(numbers, axis, shape)]


def _moves(walk, call, rule, inputs, key):
    x = inputs[0]
    if len(x.shape) < 2:  # One number for each example: no channels.
        return None
    place = [1] * len(x.shape)
    place[x.axis] = -1
    numbers = np.broadcast_to(
        # From 1 on: 0 is what pads an image.
        x.numbers.astype("int32").reshape(place) + 1,
        [1, *(size or _ANY_SIZE for size in x.shape[1:])],
    )
    known = {id(call.inputs[0]): ops.convert_to_tensor(numbers)}
    args, kwargs = keras_internals.arguments_with(call, known)
    if kwargs.get("constant_values"):  # Of `pad`, taken for a number here.
        return None
    try:
        moved = call.operation(*args, **kwargs)
    except Exception:  # Not of that size.
        return None
    outputs = []
    for tensor, moved_numbers in zip(
        call.outputs, tree.flatten(moved), strict=True
    ):
        shape = tuple(tensor.shape)
        found = _vector_in(walk, ops.convert_to_numpy(moved_numbers), shape)
        if found is None:
            return None
        outputs.append(found)
    return outputs


def _vector_in(walk, moved, shape):
    """Returns the `Channels` of a tensor in which each place has a number.

    Where the channels lie on several axes at once (between the reshapings
    of a channel shuffle), they are tied until they lie on one.
    """
    if (
        not moved.size
        or moved.ndim != len(shape)
        or any(
            size not in (None, found)
            for size, found in zip(shape[1:], moved.shape[1:], strict=True)
        )
    ):
        return None
    best, most = None, 0
    for axis in range(moved.ndim - 1, 0, -1):
        rows = np.moveaxis(moved, axis, -1).reshape(-1, moved.shape[axis])
        vector = rows.max(axis=0, initial=0)
        if shape[axis] is None or not vector.all():
            continue
        if len(np.unique(vector)) <= most:  # Ties leave no more than that.
            continue
        if len(rows) > 1:
            rows = np.unique(rows, axis=0)
        differ = (rows > 0) & (rows != vector)
        ties = [
            (np.broadcast_to(vector, rows.shape)[differ] - 1, rows[differ] - 1)
        ]
        left = len(np.unique(merge(walk.count, ties)[vector - 1]))
        if left > most:
            best, most = (vector - 1, axis, ties), left
    if best is None:
        return None
    vector, axis, ties = best
    walk.ties += ties
    return Channels(vector.astype(int), axis, shape)


def repeats(rule, layer):
    """Returns how many channels `layer` makes of each that it reads."""
    return 1 if rule.repeats is None else rule.repeats(layer)


def merge(count, ties):
    """Returns, for each of `count` numbers, its number after all `ties`.

    Tied numbers get the same one, and the results are 0, 1, 2, ...
    """
    lowest = np.arange(count)
    if ties:
        left, right = (np.concatenate(side) for side in zip(*ties, strict=True))
        while True:
            a, b = lowest[left], lowest[right]
            if np.array_equal(a, b):
                break
            np.minimum.at(lowest, np.maximum(a, b), np.minimum(a, b))
            while not np.array_equal(lowest, lowest[lowest]):
                lowest = lowest[lowest]
    return np.unique(lowest, return_inverse=True)[1]


# What runs on numbers in the place of an image of unknown size.
_ANY_SIZE = 8

FLOWS = {
    layer_rule.PRODUCES: _produces,
    layer_rule.CARRIES: _carries,
    layer_rule.JOINS: _joins,
    layer_rule.CONCATENATES: _concatenates,
    layer_rule.MOVES: _moves,
    layer_rule.REDUCES: _reduces,
}
