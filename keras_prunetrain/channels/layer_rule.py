"""What can be said about how channels pass through a layer."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

PRODUCES = "produces"  # Computes channels of its own: `Conv2D`.
CARRIES = "carries"  # Output channel i depends on input channel i: `ReLU`.
JOINS = "joins"  # Carries several inputs, channel by channel: `Add`.
CONCATENATES = "concatenates"  # Lines its inputs up: `Concatenate`.
MOVES = "moves"  # Only puts values elsewhere: `Flatten`.
REDUCES = "reduces"  # Carries the channels, drops other axes: `ops.mean`.


@dataclasses.dataclass(frozen=True)
class LayerRule:
    """How channels pass through a layer, and where they lie in its variables.

    Attributes:
        flow: One of `"produces"`, `"carries"`, `"joins"`, `"concatenates"`,
            `"moves"`, `"reduces"`.
        size_arguments: Constructor arguments that count the output channels
            (`"filters"`, `"units"`), or something in proportion to them
            (`"groups"` of a depthwise convolution).
        in_axis: Weight name -> axis of its input channels. A weight with both
            an input and an output axis is a kernel: its magnitude decides
            which channels are alive. A layer that produces channels without
            one holds those that it reads.
        out_axis: Weight name -> axis of its output channels; `None` for a
            weight of the shape of one input example. A weight that the layer
            gave no name is "variable".
        channel_axis: Function of the layer and of the rank of its input
            (batch included) that returns the axis on which the layer expects
            the channels. `None`, also as its result, if any axis will do.
        channel_arguments: Constructor arguments that may hold one number per
            channel.
        shape_argument: Constructor argument that holds the output's shape,
            with or without the batch.
        cuts_argument: Constructor argument that says where the outputs are
            cut apart, as `ops.split` takes it.
        indexes: Whether it is `x[key]`, whose key counts channels.
        repeats: Function of the layer that returns how many channels it makes
            of each input channel, one after the other: a depthwise
            convolution's multiplier. `None` for one.
        groups: Function of the layer that returns in how many groups its
            channels come. The groups stay equally large, so channels at the
            same place in each group go together. `None` for one.
        pointwise: Whether every output value depends, at inference, on the one
            input value at its place only, so that a constant stays one.
        keeps: `"constants"` if a channel that has one value everywhere still
            has that value behind the layer, as behind a pooling; `"zeros"` if
            only a zero stays one, as behind a padding.
        sums: Whether the output is the sum of the inputs, so that an input
            that is constant can be left out and its value added instead.
        holds: Function of the layer that returns why all its output channels
            must stay, or `None`.
        refuses: Function of the layer that returns why this rule does not fit
            it, or `None`. The layer is then treated as one without a rule.
        variant: Function of the layer that returns the rule to use instead,
            for one that is in truth another kind of layer, or `None`. What it
            returns does not say `macs` and `saved` anew.
        macs: Function of the layer, of the shapes that one call reads and of
            those that it writes (lists of tuples: the sizes of one example,
            without the batch) that returns the multiply-accumulates of the
            layer's kernels for one example, an integer. `None`: as the base
            class of the layer. Flops are twice that.
        saved: `"inputs"`, `"outputs"` or `"nothing"`: the values of the forward
            pass that the gradient of the layer needs; or a function of the
            layer that returns one of them. `None`: as the base class of the
            layer, or the inputs.
    """

    flow: Literal[
        "produces", "carries", "joins", "concatenates", "moves", "reduces"
    ]
    size_arguments: tuple[str, ...] = ()
    in_axis: Mapping[str, int] = dataclasses.field(default_factory=dict)
    out_axis: Mapping[str, int | None] = dataclasses.field(default_factory=dict)
    channel_axis: Callable | None = None
    channel_arguments: tuple[str, ...] = ()
    shape_argument: str | None = None
    cuts_argument: str | None = None
    indexes: bool = False
    repeats: Callable | None = None
    groups: Callable | None = None
    pointwise: bool = False
    keeps: Literal["constants", "zeros"] | None = None
    sums: bool = False
    holds: Callable | None = None
    refuses: Callable | None = None
    variant: Callable | None = None
    macs: Callable[[Any, list, list], int] | None = None
    saved: Literal["inputs", "outputs", "nothing"] | Callable | None = None


def held(reason):
    """Returns the rule of a layer whose channels must stay, for `reason`."""
    return LayerRule(CARRIES, holds=lambda layer: reason)


def refused(reason):
    """Returns the rule of a layer that cannot be followed, for `reason`."""
    return LayerRule(PRODUCES, refuses=lambda layer: reason)


def by_data_format(layer, rank):
    """Returns the channel axis of a layer that has a `data_format`."""
    return rank - 1 if layer.data_format == "channels_last" else 1
