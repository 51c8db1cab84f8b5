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

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.flows import FLOWS, Channels, merge, repeats
from keras_prunetrain.channels.layer_rule import PRODUCES
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

    def magnitudes(self) -> np.ndarray:
        """Returns the largest weight magnitude at each index of the axis.

        Float array, shape `(channels,)`.
        """
        weight = keras_internals.values_of(self.weight)
        others = tuple(i for i in range(weight.ndim) if i != self.axis)
        # Without a third copy for the absolute values.
        return np.maximum(weight.max(axis=others), -weight.min(axis=others))


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
        calls: List with the `Channels` that each call reads, a list, and those
            that it writes, in running order; nested models are taken apart.
        frozen: Dict from a number that must stay to the reason, a string.
    """

    size: int
    layers: dict
    labels: list
    inputs: dict
    outputs: dict
    calls: list
    frozen: dict

    def kernels(self, side: str | None = None) -> list[Label]:
        """Returns the labels of the kernels, on both sides or on one.

        Args:
            side: `"in"` for the channels that kernels read, `"out"` for those
                that they write. Defaults to `None`, both.
        """
        return [
            label
            for label in self.labels
            if label.is_kernel and side in (None, label.side)
        ]

    def keys_within(self, key: str) -> list[str]:
        """Returns the keys of a layer and of all layers nested in it."""
        return [
            other
            for other in self.layers
            if other == key or other.startswith(f"{key}/")
        ]


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
        self.count = 0
        self.ties = []  # Pairs of arrays whose numbers are equal.
        self._frozen = []  # Pairs of numbers and the reason why they stay.
        self._labels = {}
        self._layers = {}
        self._inputs = {}
        self.outputs = {}
        self._calls = []
        self._first_calls = {}  # id of a layer -> what its first call passes.

    def run(self, model, inputs, prefix):
        def visit(call, values):
            return self._follow(call, values, prefix)

        return keras_internals.run_graph(model, inputs, visit)

    def result(self):
        numbers = merge(self.count, self.ties)

        def merged(channels):
            return [x._replace(numbers=numbers[x.numbers]) for x in channels]

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
            inputs={key: merged(x) for key, x in self._inputs.items()},
            outputs={key: merged(x) for key, x in self.outputs.items()},
            calls=[tuple(map(merged, call)) for call in self._calls],
            frozen=frozen,
        )

    def new_numbers(self, size):
        self.count += size
        return np.arange(self.count - size, self.count)

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
        self._inputs.setdefault(key, inputs)
        if keras_internals.is_graph(layer):
            # Called twice, it has one set of inputs for both calls.
            self._tie_calls(layer, inputs)
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
        elif rule.flow == PRODUCES and not rule.in_axis:
            # No weight says what a channel of its input counts for.
            reason = (
                f"{key} ({type(layer).__name__}): it reads without a kernel"
            )
            for channels in inputs:
                self.freeze(channels, reason)
        elif rule.holds is not None and rule.holds(layer) is not None:
            reason = f"{key} ({type(layer).__name__}): {rule.holds(layer)}"
            for channels in outputs:
                self.freeze(channels, reason)
        self.outputs.setdefault(key, outputs)
        self._calls.append((inputs, outputs))
        if rule is not None and (
            rule.shape_argument
            or rule.channel_arguments
            or rule.cuts_argument
            or rule.indexes
        ):
            self._tie_calls(layer, inputs)
        return outputs

    def _tie_calls(self, layer, channels):
        """Ties what all calls read of a layer that has one config."""
        # By the layer: one that stands in two models has two keys.
        first = self._first_calls.setdefault(id(layer), channels)
        for a, b in zip(first, channels, strict=False):
            if len(a.numbers) == len(b.numbers):
                self.ties.append((a.numbers, b.numbers))

    def _on_expected_axis(self, layer, rule, inputs):
        """Returns `inputs` as `layer` reads them, and why it can't, if so."""
        if rule.channel_axis is None:
            return inputs, None
        read = []
        for x in inputs:
            axis = rule.channel_axis(layer, len(x.shape))
            if axis not in (None, x.axis):
                if not x.fixed or not 0 < axis < len(x.shape):
                    return inputs, (
                        "its channel axis is not that of its input: "
                        f"{axis}, not {x.axis}"
                    )
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
        outputs = FLOWS[rule.flow](self, call, rule, inputs, key)
        if outputs is None or len(outputs) != len(call.outputs):
            return None, "its channels could not be followed"
        if any(x.shape[x.axis] != len(x.numbers) for x in outputs):
            return None, "its rule gives a wrong number of output channels"
        return outputs, None

    def _label(self, key, layer, rule, inputs, outputs):
        """Labels the axes of the layer's weights; returns why not, if not."""
        labels = []
        for weight in getattr(layer, "weights", ()):
            name = keras_internals.weight_name(weight)
            sides = [
                (side, axes[name], channels)
                for side, axes, channels in (
                    ("in", rule.in_axis, inputs[0]),
                    ("out", rule.out_axis, outputs[0]),
                )
                if name in axes
            ]
            if not sides and (rule.in_axis or rule.out_axis or not rule.holds):
                return f"its rule does not say where '{name}' lies"
            for side, axis, channels in sides:
                if axis is None:
                    axis = channels.axis - 1
                ndim = len(weight.shape)
                if not -ndim <= axis < ndim:
                    return (
                        f"its rule names axis {axis} of '{name}', which "
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
                        f"{axis} of '{name}', which has shape "
                        f"{tuple(weight.shape)}"
                    )
        for label in labels:
            place = (id(label.weight), label.axis)
            known = self._labels.setdefault(place, label)
            # A weight that is used twice has one channel for both uses.
            self.ties.append((known.numbers, label.numbers))
        return None


def _as_read(numbers, layer, rule, size):
    """Returns the channel numbers along an input axis of a weight."""
    if rule.groups is not None:  # All groups read what the first one reads.
        return numbers[: len(numbers) // rule.groups(layer)]
    if len(numbers) != size:  # Behind a depthwise kernel, of its outputs.
        return np.repeat(numbers, repeats(rule, layer))
    return numbers
