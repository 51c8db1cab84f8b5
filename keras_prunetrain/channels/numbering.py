"""Numbers every channel of a model and follows it through the graph.

Every channel that a layer computes gets a number. A tensor's channel axis is
then a vector of numbers. `Conv2D` makes new ones; `ReLU` passes them on; `Add`
declares the numbers of its inputs equal, position by position, which is the
paper's channel union; `Concatenate` concatenates them; a layer that only moves
values is asked what it does by running it on the numbers. In the end every axis
of every weight carries a label, and cutting a model is array work without a
single layer class in it.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from keras import ops, tree

from keras_prunetrain import keras_internals
from keras_prunetrain.channels import layer_rule
from keras_prunetrain.channels.rules import rule_for


class Label(NamedTuple):
    """The channel numbers along one axis of one weight.

    Attributes:
        layer: Key of the layer, see `Numbering.layers`.
        weight: The `keras.Variable`.
        axis: Int, at least 0.
        numbers: Int array, shape `(weight.shape[axis],)`.
        side: `"in"` or `"out"`.
        is_kernel: Whether the weight's magnitude says which channels live.
    """

    layer: str
    weight: Any
    axis: int
    numbers: np.ndarray
    side: str
    is_kernel: bool


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


@dataclasses.dataclass(frozen=True)
class Numbering:
    """The channel numbers of a whole model.

    Coupled channels have the same number; numbers run from 0 to `size - 1`.

    Attributes:
        size: Number of different channels.
        layers: Dict from a key to the layer. The key is the layer's name,
            behind the names of the models it is nested in: `"backbone/conv1"`.
        labels: List of `Label`, one for each channel axis of each weight.
        inputs: Dict from a layer's key to the `Channels` that it reads, a
            list, the first time it is called.
        outputs: The same for what it writes.
        frozen: Dict from a number that must stay to the reason, a string.
    """

    size: int
    layers: dict
    labels: list
    inputs: dict
    outputs: dict
    frozen: dict


def number_channels(model):
    """Returns the `Numbering` of a functional `model`.

    Raises:
        ValueError: If the layers of `model` form no known graph.
    """
    if not keras_internals.is_graph(model):
        raise ValueError(
            f"Cannot follow the channels of '{model.name}', a "
            f"{type(model).__name__}: its layers form no graph that Keras "
            "knows. Build it with the functional API, "
            "`keras.Model(inputs, outputs)`, or as a `keras.Sequential` that "
            "begins with `keras.Input(shape)`. A subclass of `keras.Model` "
            "works if its `__init__` calls `super().__init__(inputs, outputs)`."
        )
    walk = _Walk()
    inputs = [
        walk.frozen_channels(x.shape, "model input") for x in model.inputs
    ]
    for channels in walk.run(model, inputs, ""):
        walk.freeze(channels, "model output")
    return walk.result()


class _Walk:
    """Follows the channels; the one place with state."""

    def __init__(self):
        self._count = 0
        self._ties = []  # Pairs of arrays whose numbers are equal.
        self._frozen = []  # Pairs of numbers and the reason why they stay.
        self._labels = {}
        self._layers = {}
        self._inputs = {}
        self._outputs = {}

    def run(self, model, inputs, prefix):
        def visit(call, values):
            return self._follow(call, values, prefix)

        return keras_internals.run_graph(model, inputs, visit)

    def result(self):
        numbers = _merge(self._count, self._ties)

        def merged(vectors):
            return {
                key: [x._replace(numbers=numbers[x.numbers]) for x in channels]
                for key, channels in vectors.items()
            }

        frozen = {}
        for vector, reason in self._frozen:
            for number in numbers[vector]:
                frozen.setdefault(int(number), reason)
        return Numbering(
            size=int(numbers.max(initial=-1)) + 1,
            layers=self._layers,
            labels=[
                label._replace(numbers=numbers[label.numbers])
                for label in self._labels.values()
            ],
            inputs=merged(self._inputs),
            outputs=merged(self._outputs),
            frozen=frozen,
        )

    def new_numbers(self, size):
        self._count += size
        return np.arange(self._count - size, self._count)

    def freeze(self, channels, reason):
        self._frozen.append((channels.numbers, reason))

    def frozen_channels(self, shape, reason, axis=-1):
        """Returns new numbers for a tensor of which nothing is known."""
        size = shape[axis] if len(shape) > 1 else 0
        numbers = self.new_numbers(size or 0)
        axis %= max(len(shape), 1)
        channels = Channels(numbers, axis, tuple(shape), True)
        self.freeze(channels, reason)
        return channels

    def _follow(self, call, inputs, prefix):
        layer = call.operation
        key = prefix + layer.name
        self._layers[key] = layer
        read = self._inputs.setdefault(key, inputs)
        if keras_internals.is_graph(layer):
            # Called twice, it has one set of inputs for both calls.
            self._tie_calls(read, inputs)
            return self.run(layer, inputs, f"{key}/")
        rule = rule_for(layer)
        outputs, reason = None, "no rule for this class, see register_rule"
        if rule is not None:
            inputs, reason = self._on_expected_axis(layer, rule, inputs)
        if reason is None:
            outputs, reason = self._flow(call, rule, inputs, key)
        if reason is None:
            reason = self._label(key, layer, rule, inputs, outputs)
        if reason is not None:
            reason = f"{key} ({type(layer).__name__}): {reason}"
            # Also what it would have computed: those numbers are out.
            for channels in (*inputs, *(outputs or ())):
                self.freeze(channels, reason)
            outputs = [
                self.frozen_channels(x.shape, reason) for x in call.outputs
            ]
        elif rule.holds is not None and rule.holds(layer) is not None:
            reason = f"{key} ({type(layer).__name__}): {rule.holds(layer)}"
            for channels in outputs:
                self.freeze(channels, reason)
        known = self._outputs.setdefault(key, outputs)
        if rule is not None and (
            rule.shape_argument
            or rule.channel_arguments
            or rule.cuts_argument
            or rule.indexes
        ):
            self._tie_calls(read, inputs)
            self._tie_calls(known, outputs)
        return outputs

    def _tie_calls(self, known, outputs):
        """Ties the channels of two calls of a layer that has one config."""
        for a, b in zip(known, outputs, strict=True):
            if len(a.numbers) == len(b.numbers):
                self._ties.append((a.numbers, b.numbers))

    def _on_expected_axis(self, layer, rule, inputs):
        """Returns `inputs` as `layer` reads them, and why it can't, if so."""
        if rule.channel_axis is None:
            return inputs, None
        read = []
        for x in inputs:
            axis = rule.channel_axis(layer, len(x.shape))
            if axis not in (None, x.axis):
                if not x.fixed or not 0 < axis < len(x.shape):
                    return inputs, "its channel axis is not that of its input"
                x = self.frozen_channels(x.shape, "unknown layout", axis)
            read.append(x)
        return read, None

    def _flow(self, call, rule, inputs, key):
        """Returns the outputs' `Channels`, or `None` and why not."""
        layer = call.operation
        if keras_internals.has_array_arguments(call):
            return None, "an array of fixed size is among its arguments"
        if rule.refuses is not None and rule.refuses(layer) is not None:
            return None, rule.refuses(layer)
        outputs = _FLOWS[rule.flow](self, call, rule, inputs, key)
        if outputs is None or len(outputs) != len(call.outputs):
            return None, "its channels could not be followed"
        if any(x.shape[x.axis] != len(x.numbers) for x in outputs):
            return None, "its rule gives a wrong number of output channels"
        return outputs, None

    def _produces(self, call, rule, inputs, key):
        shape = tuple(call.outputs[0].shape)
        axis = inputs[0].axis - len(inputs[0].shape) + len(shape)
        if key in self._outputs:  # A layer called twice computes the same.
            numbers = self._outputs[key][0].numbers
        else:
            numbers = self.new_numbers(shape[axis])
        if rule.groups is not None:
            groups = rule.groups(call.operation)
            self._tie_groups(inputs[0].numbers, groups)
            self._tie_groups(numbers, groups)
        return [Channels(numbers, axis, shape)]

    def _tie_groups(self, numbers, groups):
        first, *others = numbers.reshape(groups, -1)
        self._ties += [(first, other) for other in others]

    def _carries(self, call, rule, inputs, key):
        x = inputs[0]
        shape = tuple(call.outputs[0].shape)
        # What pools a whole image drops its axes and leaves the channels.
        axis = x.axis if len(shape) == len(x.shape) else len(shape) - 1
        numbers = np.repeat(x.numbers, _repeats(rule, call.operation))
        return [x._replace(numbers=numbers, axis=axis, shape=shape)]

    def _reduces(self, call, rule, inputs, key):
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

    def _joins(self, call, rule, inputs, key):
        # Inputs of different rank meet at their last axes, as in NumPy.
        from_end = {x.axis - len(x.shape) for x in inputs}
        if len(from_end) > 1:
            return None
        size = max(len(x.numbers) for x in inputs)
        whole = [x.numbers for x in inputs if len(x.numbers) == size]
        for numbers in whole[1:]:
            self._ties.append((whole[0], numbers))
        for x in inputs:
            if len(x.numbers) != size:  # One channel, spread over all.
                self.freeze(x, "spread over all channels")
        shape = tuple(call.outputs[0].shape)
        return [Channels(whole[0], from_end.pop() + len(shape), shape)]

    def _concatenates(self, call, rule, inputs, key):
        shape = tuple(call.outputs[0].shape)
        axes = {x.axis for x in inputs}
        if len(axes) > 1:
            return None
        axis = axes.pop()
        if getattr(call.operation, "axis", axis) % len(shape) != axis:
            return self._joins(call, rule, inputs, key)
        numbers = np.concatenate([x.numbers for x in inputs])
        return [Channels(numbers, axis, shape)]

    def _moves(self, call, rule, inputs, key):
        x = inputs[0]
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
            found = self._vector_in(ops.convert_to_numpy(moved_numbers), shape)
            if found is None:
                return None
            outputs.append(found)
        return outputs

    def _vector_in(self, moved, shape):
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
            rows = np.unique(rows, axis=0)
            vector = rows.max(axis=0, initial=0)
            if shape[axis] is None or not vector.all():
                continue
            ties = [
                (vector[row > 0] - 1, row[row > 0] - 1)
                for row in rows
                if (row[row > 0] != vector[row > 0]).any()
            ]
            left = len(np.unique(_merge(self._count, ties)[vector - 1]))
            if left > most:
                best, most = (vector - 1, axis, ties), left
        if best is None:
            return None
        vector, axis, ties = best
        self._ties += ties
        return Channels(vector.astype(int), axis, shape)

    def _label(self, key, layer, rule, inputs, outputs):
        """Labels the axes of the layer's weights; returns why not, if not."""
        labels = []
        for weight in getattr(layer, "weights", ()):
            sides = [
                (side, axes[weight.name], channels)
                for side, axes, channels in (
                    ("in", rule.in_axis, inputs[0]),
                    ("out", rule.out_axis, outputs[0]),
                )
                if weight.name in axes
            ]
            if not sides and (rule.in_axis or rule.out_axis or not rule.holds):
                return f"its rule does not say where '{weight.name}' lies"
            for side, axis, channels in sides:
                if axis is None:
                    axis = channels.axis - 1
                ndim = len(weight.shape)
                if not -ndim <= axis < ndim:
                    return (
                        f"its rule names axis {axis} of '{weight.name}', which "
                        f"has shape {tuple(weight.shape)}"
                    )
                size = weight.shape[axis]
                numbers = channels.numbers
                if side == "in":
                    numbers = _as_read(numbers, layer, rule, size)
                if len(numbers) == size:
                    is_kernel = len(sides) == 2
                    labels.append(
                        Label(
                            key, weight, axis % ndim, numbers, side, is_kernel
                        )
                    )
                elif size != 1:  # 1: shared by all channels.
                    return (
                        f"its rule expects {len(numbers)} channels on axis "
                        f"{axis} of '{weight.name}', which has shape "
                        f"{tuple(weight.shape)}"
                    )
        for label in labels:
            place = (id(label.weight), label.axis)
            known = self._labels.setdefault(place, label)
            # A weight that is used twice has one channel for both uses.
            self._ties.append((known.numbers, label.numbers))
        return None


def _repeats(rule, layer):
    return 1 if rule.repeats is None else rule.repeats(layer)


def _as_read(numbers, layer, rule, size):
    """Returns the channel numbers along an input axis of a weight."""
    if rule.groups is not None:  # All groups read what the first one reads.
        return numbers[: len(numbers) // rule.groups(layer)]
    if len(numbers) != size:  # Behind a depthwise kernel, of its outputs.
        return np.repeat(numbers, _repeats(rule, layer))
    return numbers


# What runs on numbers in the place of an image of unknown size.
_ANY_SIZE = 8

_FLOWS = {
    layer_rule.PRODUCES: _Walk._produces,
    layer_rule.CARRIES: _Walk._carries,
    layer_rule.JOINS: _Walk._joins,
    layer_rule.CONCATENATES: _Walk._concatenates,
    layer_rule.MOVES: _Walk._moves,
    layer_rule.REDUCES: _Walk._reduces,
}


def _merge(count, ties):
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
