"""What can be said about how channels pass through a layer."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from keras_prunetrain.channels.macs import Shapes
from keras_prunetrain.channels.numbers import Channels
from keras_prunetrain.checks import is_count, is_integer

PRODUCES = "produces"  # Computes channels of its own: `Conv2D`.
CARRIES = "carries"  # Output channel i depends on input channel i: `ReLU`.
JOINS = "joins"  # Carries several inputs, channel by channel: `Add`.
CONCATENATES = "concatenates"  # Lines its inputs up: `Concatenate`.
MOVES = "moves"  # Only puts values elsewhere: `Flatten`.
REDUCES = "reduces"  # Carries the channels, drops other axes: `ops.mean`.

# The values of the forward pass that a gradient needs.
Saved = Literal["inputs", "outputs", "nothing"]
# Of a layer, its config, its output's channels, and the positions that stay.
Resize = Callable[
    [Any, dict[str, Any], list[Channels], list[np.ndarray]], dict[str, Any]
]
# Of a layer, and the shapes that a call reads and writes.
Macs = Callable[[Any, Shapes, Shapes], int]

# Where `LayerRule.folds_into` puts what a layer without a bias computes.
OUTPUT = "output"


class RuleError(ValueError):
    """A function of a rule fails, or returns a value of the wrong kind."""


@dataclasses.dataclass(frozen=True)
class LayerRule:
    """How channels pass through a layer, and where they lie in its weights.

    Attributes:
        flow: `"produces"` if the layer computes channels of its own;
            `"carries"` if output channel i depends on input channel i and on
            no other; `"joins"` if it does so for several inputs;
            `"concatenates"`; `"moves"` if it only puts values elsewhere;
            `"reduces"` if it carries the channels and drops other axes.
        size_arguments: Constructor arguments that count the output channels
            (`"filters"`, `"units"`), or something in proportion to them
            (`"groups"` of a depthwise convolution).
        in_axis: Weight name -> axis of its input channels. A weight with both
            an input and an output axis is a kernel: its magnitude decides
            which channels are alive. A producing layer without a kernel
            freezes its input channels.
        out_axis: Weight name -> axis of its output channels; `None` for a
            weight of the shape of one input example. A weight that the layer
            gave no name is "variable".
        channel_axis: Function of the layer and of the rank of its input
            (batch included) that returns the axis on which the layer expects
            the channels. `None`, also as its result, if any axis will do.
        resize: Function of the layer, its config, the list of the `Channels`
            of each output, and the list of the positions that stay in each
            that returns a dict of the further constructor arguments that
            change; see `channels/resizing.py`.
        reindex: Function of an operation that indexes its input, as `x[key]`
            does, that returns the arguments for the channels that are left;
            see `channels/indexing.py`.
        repeats: Function of the layer that returns how many channels it makes
            of each input channel, one after the other: a depthwise
            convolution's multiplier. `None` for one.
        groups: Function of the layer that returns in how many groups its
            channels come. The groups stay equally large, so channels at the
            same place in each group go together. `None` for one.
        constants: What becomes, at inference, of a channel that has one value
            at every pixel of every image. `"pointwise"`: the channel has one
            value again, because every output value depends on the one input
            value at its place only. `"pass"`: it has the same value, as behind
            a pooling. `"zeros"`: only a zero stays one, as behind a padding.
            `"add"`: the layer adds its inputs, so that a constant input can be
            left out and added later. `None`: unknown.
        folds_into: Function of a layer with a kernel that returns where to add
            what the kernel makes of constant channels: the name of a weight,
            or `"output"` if it can be added to what the layer returns; `None`
            if it is not the same at every pixel. `None`: never.
        subtracts: Name of a weight that the layer subtracts from its input at
            inference: a constant in front of the layer can be taken off it.
        freezes: Function of the layer that returns why all its output channels
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

    Raises:
        ValueError: If an attribute is of the wrong kind.
    """

    flow: Literal[
        "produces", "carries", "joins", "concatenates", "moves", "reduces"
    ]
    size_arguments: tuple[str, ...] = ()
    in_axis: Mapping[str, int] = dataclasses.field(default_factory=dict)
    out_axis: Mapping[str, int | None] = dataclasses.field(default_factory=dict)
    channel_axis: Callable[[Any, int], int | None] | None = None
    resize: Resize | None = None
    reindex: Callable[..., tuple[Any, ...]] | None = None
    repeats: Callable[[Any], int] | None = None
    groups: Callable[[Any], int] | None = None
    constants: Literal["pointwise", "pass", "zeros", "add"] | None = None
    folds_into: Callable[[Any], str | None] | None = None
    subtracts: str | None = None
    freezes: Callable[[Any], str | None] | None = None
    refuses: Callable[[Any], str | None] | None = None
    variant: Callable[[Any], "LayerRule | None"] | None = None
    macs: Macs | None = None
    saved: Saved | Callable[[Any], Saved] | None = None

    def __post_init__(self):
        for name, (fits, expected) in _FIELDS.items():
            value = getattr(self, name)
            if not fits(value):
                raise ValueError(
                    f"`{name}` of a `LayerRule` must be {expected}. Received: "
                    f"{name}={value!r}"
                )

    def ask(
        self, name: str, layer: Any, /, *arguments: Any, **options: Any
    ) -> Any:
        """Returns what one of this rule's functions says of a layer.

        Args:
            name: Name of the field that holds the function.
            layer: The layer, or other operation.
            *arguments: Further arguments of the function.
            **options: Likewise, by name.

        Returns:
            What the function returns; `None` if the field is `None`.

        Raises:
            ValueError: If the function fails, or returns a value of the wrong
                kind.
        """
        function = getattr(self, name)
        if function is None:
            return None
        where = f"in the rule for {type(layer).__name__}, of '{layer.name}'"
        try:
            answer = function(layer, *arguments, **options)
        except RuleError:
            raise  # Of the layer in a wrapper, and named already.
        except Exception as error:
            raise RuleError(
                f"`{name}` {where}, fails with {error!r}. Mend the function "
                "that `register_rule` was given."
            ) from error
        fits, expected = _ANSWERS[name]
        if not fits(answer):
            raise RuleError(
                f"`{name}` {where}, must return {expected}. "
                f"Received: {answer!r}"
            )
        return answer


def frozen(reason: str) -> LayerRule:
    """Returns the rule of a layer whose channels must stay, for `reason`."""
    return LayerRule(CARRIES, freezes=lambda layer: reason)


def refused(reason: str) -> LayerRule:
    """Returns the rule of a layer that cannot be followed, for `reason`."""
    return LayerRule(PRODUCES, refuses=lambda layer: reason)


def by_data_format(layer: Any, rank: int) -> int:
    """Returns the channel axis of a layer that has a `data_format`."""
    return rank - 1 if layer.data_format == "channels_last" else 1


def _one_of(*values):
    return lambda x: x is None or (isinstance(x, str) and x in values)


def _is_text(value):
    return value is None or (isinstance(value, str) and value != "")


def _is_function(value):
    return value is None or callable(value)


def _is_axis(value):
    return value is None or is_integer(value)


def _are_names(value):
    return isinstance(value, tuple | list) and all(
        isinstance(name, str) for name in value
    )


def _are_axes(value):
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and _is_axis(axis) for name, axis in value.items()
    )


_FLOWS = (PRODUCES, CARRIES, JOINS, CONCATENATES, MOVES, REDUCES)
_CONSTANTS = ("pointwise", "pass", "zeros", "add")
_SAVED = ("inputs", "outputs", "nothing")

# Field -> test of its value, and in words.
_FIELDS = {
    "flow": (lambda x: isinstance(x, str) and x in _FLOWS, f"one of {_FLOWS}"),
    "size_arguments": (
        _are_names,
        "a tuple of names of constructor arguments",
    ),
    "in_axis": (
        lambda x: _are_axes(x) and None not in x.values(),
        "a dict from names of weights to integers",
    ),
    "out_axis": (
        _are_axes,
        "a dict from names of weights to integers or `None`",
    ),
    "constants": (_one_of(*_CONSTANTS), f"one of {_CONSTANTS}, or `None`"),
    "subtracts": (_is_text, "the name of a weight, or `None`"),
    "saved": (
        lambda x: callable(x) or _one_of(*_SAVED)(x),
        f"one of {_SAVED}, a function of the layer, or `None`",
    ),
    **dict.fromkeys(
        (
            *("channel_axis", "repeats", "groups", "folds_into", "freezes"),
            *("refuses", "reindex", "resize", "variant", "macs"),
        ),
        (_is_function, "a function of the layer, or `None`"),
    ),
}

# Field -> test of what its function returns, and in words.
_COUNT = functools.partial(is_count, minimum=1), "an integer of at least 1"
_REASON = _is_text, "the reason, a string, or `None`"
_ANSWERS = {
    "channel_axis": (_is_axis, "an axis, an integer, or `None`"),
    "repeats": _COUNT,
    "groups": _COUNT,
    "folds_into": (_is_text, "the name of a weight, 'output' or `None`"),
    "freezes": _REASON,
    "refuses": _REASON,
    "variant": (
        lambda x: isinstance(x, LayerRule | None),
        "a `LayerRule` or `None`",
    ),
    "resize": (
        lambda x: isinstance(x, dict) and _are_names([*x]),
        "a dict of constructor arguments",
    ),
    "reindex": (
        lambda x: isinstance(x, tuple),
        "a tuple, the arguments of the operation",
    ),
    "macs": (is_count, "an integer of at least 0"),
    "saved": (
        lambda x: x is not None and _one_of(*_SAVED)(x),
        f"one of {_SAVED}",
    ),
}
