"""How channel numbers pass through one call: a function for each flow.

Each function takes the model's `Numbers`, which hands out new numbers and
records equal ones; the `Visit` of the call, with the `Channels` that the call
reads; the layer's rule; and the `Channels` that the first call of the layer
writes, `None` in that first call. Each function returns the list of the
`Channels` that the call writes, or raises `NotFollowed`.
"""

import keras
import numpy as np
from keras import ops, tree

from keras_prunetrain import keras_internals
from keras_prunetrain.channels import layer_rule
from keras_prunetrain.channels.numbers import Channels, merge
from keras_prunetrain.channels.rules import rule_for
from keras_prunetrain.channels.walk import Visit

# Replaces an unknown image size.
_ANY_SIZE = 8


class NotFollowed(Exception):
    """Channels cannot be followed through a call; the message says why."""


def _produces(numbers, visit, rule, earlier):
    """Gives the outputs new numbers, the same for every call of a layer."""
    x, layer = visit.inputs[0], visit.call.operation
    shape = tuple(visit.call.outputs[0].shape)
    axis = x.axis - len(x.shape) + len(shape)
    if earlier is not None:  # All calls of a layer share their channels.
        made = earlier[0].numbers
    else:
        made = numbers.new(shape[axis])
    groups = rule.ask("groups", layer)
    if groups is not None:
        if len(x.numbers) % groups or len(made) % groups:
            raise NotFollowed(
                f"its rule names {groups} groups, and of {len(x.numbers)} and "
                f"{len(made)} channels not all can be equally large"
            )
        numbers.tie_groups(x.numbers, groups)
        numbers.tie_groups(made, groups)
    return [Channels(made, axis, shape)]


def _reads(numbers, visit, rule, earlier):
    """Gives each output numbers of its own, all of which stay."""
    reason = rule.ask("freezes", visit.call.operation)
    reason = visit.because(reason or "its rule keeps what it computes")
    return [numbers.unknown(x.shape, reason) for x in visit.call.outputs]


def _mixes(numbers, visit, rule, earlier):
    """Freezes what no kernel reads; gives the first output numbers of its own.

    The first output has those of the inputs if nothing can tell the layer how
    many channels to compute. Further outputs stay.
    """
    reason = rule.ask("freezes", visit.call.operation)
    reason = visit.because(reason or "no kernel in its rule reads or writes it")
    positions = read_positions(visit, rule)
    for i, x in enumerate(visit.inputs):
        if i not in positions.values():
            numbers.freeze(x.numbers, reason)
    written = [numbers.unknown(x.shape, reason) for x in visit.call.outputs]
    if rule.out_axis:
        shape = written[0].shape
        if not layer_rule.writes_what_it_reads(rule):
            made = earlier[0].numbers if earlier else numbers.new(shape[-1])
        elif positions:
            # `GroupQueryAttention` wants equally many in queries and values.
            made, *others = (
                visit.inputs[i].numbers for i in positions.values()
            )
            for other in others:
                if len(other) == len(made):
                    numbers.tie(made, other)
        else:
            return written
        written[0] = Channels(made, len(shape) - 1, shape)
    return written


def read_positions(visit: Visit, rule: layer_rule.LayerRule) -> dict[str, int]:
    """Returns which input of a call each weight of a mixing layer reads.

    Args:
        visit: The `Visit` of a call.
        rule: The `LayerRule` of its layer.

    Returns:
        Dict from the path of a weight in `rule.in_axis` to the position of the
        input in `visit.inputs`.

    Raises:
        NotFollowed: If the call lacks an argument that the rule names.
    """
    positions = {}
    for path in rule.in_axis:
        names = rule.reads.get(path)
        position = 0
        if names is not None:
            position = keras_internals.argument_position(visit.call, names)
        if position is None:
            raise NotFollowed(
                f"its rule names an argument of its call that '{path}' reads, "
                f"and the call has none of {', '.join(names)}"
            )
        positions[path] = position
    return positions


def _carries(numbers, visit, rule, earlier):
    """Passes on the input's numbers, each repeated as the rule says.

    Of a layer with groups, the channels of a group go together.
    """
    x, layer = visit.inputs[0], visit.call.operation
    shape = tuple(visit.call.outputs[0].shape)
    # Global pooling drops all axes except batch and channels.
    axis = x.axis if len(shape) == len(x.shape) else len(shape) - 1
    carried = x.numbers
    groups = rule.ask("groups", layer)
    if groups is not None:
        if len(carried) % groups:
            raise NotFollowed(
                f"its rule names {groups} groups, and of {len(carried)} "
                "channels not all can be equally large"
            )
        carried, *others = carried.reshape(groups, -1).T
        for other in others:
            numbers.tie(carried, other)
    repeated = np.repeat(carried, repeats(rule, layer))
    return [x._replace(numbers=repeated, axis=axis, shape=shape)]


def _reduces(numbers, visit, rule, earlier):
    """Passes on the input's numbers if only other axes are reduced."""
    x, operation = visit.inputs[0], visit.call.operation
    axes = range(len(x.shape)) if operation.axis is None else operation.axis
    dropped = {axis % len(x.shape) for axis in np.ravel(axes).tolist()}
    if dropped & {0, x.axis}:
        raise NotFollowed("it reduces the channels or the batch")
    axis = x.axis
    if not operation.keepdims:
        axis -= sum(i < x.axis for i in dropped)
    shape = tuple(visit.call.outputs[0].shape)
    return [x._replace(axis=axis, shape=shape)]


def _joins(numbers, visit, rule, earlier):
    """Ties the numbers of the inputs, position by position.

    This is the paper's channel union. The channel of a single-channel input
    must stay, because it is broadcast to all channels of the others.
    """
    # Inputs of different rank are aligned at the last axis, as in NumPy.
    from_end = {x.axis - len(x.shape) for x in visit.inputs}
    if len(from_end) > 1:
        raise NotFollowed("the channels of its inputs lie on different axes")
    size = max(len(x.numbers) for x in visit.inputs)
    whole = [x.numbers for x in visit.inputs if len(x.numbers) == size]
    for other in whole[1:]:
        numbers.tie(whole[0], other)
    for x in visit.inputs:
        if len(x.numbers) != size:
            numbers.freeze(x.numbers, f"{visit.key} spreads it over all others")
    shape = tuple(visit.call.outputs[0].shape)
    axis = from_end.pop() + len(shape)
    return [Channels(whole[0], axis, shape, _all_unknown(visit.inputs))]


def _all_unknown(inputs):
    """Whether the channel axis of each input is unknown, and its numbers stay.

    What is computed of these alone may be read along any axis as well.
    """
    return all(x.any_axis for x in inputs)


def _concatenates(numbers, visit, rule, earlier):
    """Concatenates the numbers, or ties them if another axis is joined."""
    shape = tuple(visit.call.outputs[0].shape)
    axes = {x.axis for x in visit.inputs}
    if len(axes) > 1:
        raise NotFollowed("the channels of its inputs lie on different axes")
    axis = axes.pop()
    if getattr(visit.call.operation, "axis", axis) % len(shape) != axis:
        return _joins(numbers, visit, rule, earlier)
    all_numbers = np.concatenate([x.numbers for x in visit.inputs])
    return [Channels(all_numbers, axis, shape, _all_unknown(visit.inputs))]


def _moves(numbers, visit, rule, earlier):
    """Runs the layer on the numbers to see where the layer moves each value."""
    call, x = visit.call, visit.inputs[0]
    if len(x.shape) < 2 or x.shape[x.axis] is None:
        raise NotFollowed("it reads no tensor with a known number of channels")
    args, kwargs = keras_internals.arguments_with(
        call, {id(call.inputs[0]): ops.convert_to_tensor(_as_values(x))}
    )
    if kwargs.get("constant_values"):
        raise NotFollowed("it pads with a value that is not zero")
    try:
        moved = tree.flatten(call.operation(*args, **kwargs))
    except Exception as error:  # The layer may need another size.
        raise NotFollowed(
            "it does not run on channel numbers in the place of values"
        ) from error
    return [
        _channels_in(
            numbers,
            ops.convert_to_numpy(values),
            tuple(tensor.shape),
            _axes_read(tensor),
        )._replace(any_axis=x.any_axis)
        for tensor, values in zip(call.outputs, moved, strict=True)
    ]


def _as_values(x):
    """Returns an array shaped like `x` whose values are channel numbers + 1.

    A value of 0 then means padding.
    """
    per_axis = [1] * len(x.shape)
    per_axis[x.axis] = -1
    values = x.numbers.astype("int32").reshape(per_axis) + 1
    sizes = [1, *(size or _ANY_SIZE for size in x.shape[1:])]
    return np.broadcast_to(values, sizes)


def _axes_read(tensor):
    """Returns the axes on which the next layers expect channels, a set."""
    rank, axes = len(tensor.shape), set()
    for call in keras_internals.calls_reading(tensor):
        rule = rule_for(call.operation)
        axis = rule and rule.ask("channel_axis", call.operation, rank)
        if axis is not None and -rank <= axis < rank:
            axes.add(axis % rank)
    return axes


def _channels_in(numbers, moved, shape, wanted):
    """Returns the `Channels` of a tensor that holds numbers from `_as_values`.

    If the channels lie on several axes at once (between the reshapings of a
    channel shuffle), they are tied until they lie on one axis: where the next
    layer reads channels, or else the axis that leaves the most distinct.

    Args:
        numbers: The `Numbers`.
        moved: Int array.
        shape: The shape of the tensor.
        wanted: Set of the axes on which the next layers expect channels.
    """
    if not moved.size or not _fits(moved.shape, shape):
        raise NotFollowed("its output does not have the size it was built for")
    best, most = None, 0
    for axis in sorted(
        range(1, moved.ndim), key=lambda i: (i not in wanted, -i)
    ):
        rows = np.moveaxis(moved, axis, -1).reshape(-1, moved.shape[axis])
        vector = rows.max(axis=0, initial=0)
        if shape[axis] is None or not vector.all():
            continue
        if len(np.unique(vector)) <= most:  # Ties only lower this number.
            continue
        if len(rows) > 1:
            rows = np.unique(rows, axis=0)
        differ = (rows > 0) & (rows != vector)
        tie = np.broadcast_to(vector, rows.shape)[differ] - 1, rows[differ] - 1
        left = len(np.unique(merge(numbers.count, [tie])[vector - 1]))
        if left > most:
            best, most = (vector - 1, axis, tie), left
            if axis in wanted and left > 1:
                break
    if best is None:
        raise NotFollowed("its channels end up on no axis of its output")
    vector, axis, tie = best
    numbers.tie(*tie)
    return Channels(vector.astype(int), axis, shape)


def _fits(sizes, shape):
    return len(sizes) == len(shape) and all(
        expected in (None, size)
        for size, expected in zip(sizes[1:], shape[1:], strict=True)
    )


def repeats(rule: layer_rule.LayerRule, layer: keras.Operation) -> int:
    """Returns how many output channels `layer` makes of an input channel."""
    return rule.ask("repeats", layer) or 1


FLOWS = {
    layer_rule.PRODUCES: _produces,
    layer_rule.CARRIES: _carries,
    layer_rule.JOINS: _joins,
    layer_rule.CONCATENATES: _concatenates,
    layer_rule.MOVES: _moves,
    layer_rule.REDUCES: _reduces,
    layer_rule.READS: _reads,
    layer_rule.MIXES: _mixes,
}
