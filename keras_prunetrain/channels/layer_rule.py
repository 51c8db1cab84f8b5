"""Describes how channels pass through a layer."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np

from keras_prunetrain.channels.macs import Shapes
from keras_prunetrain.channels.numbers import Channels
from keras_prunetrain.channels.rule_values import ANSWERS, FIELDS, one_of

PRODUCES = "produces"  # Computes channels of its own: `Conv2D`.
CARRIES = "carries"  # Output channel i depends on input channel i: `ReLU`.
JOINS = "joins"  # Carries several inputs, channel by channel: `Add`.
CONCATENATES = "concatenates"  # Appends its inputs: `Concatenate`.
MOVES = "moves"  # Only rearranges values: `Flatten`.
REDUCES = "reduces"  # Carries the channels, drops other axes: `ops.mean`.
READS = "reads"  # Reads channels with kernels; its own stay: `LSTM`.
MIXES = "mixes"  # Reads several inputs with kernels: `MultiHeadAttention`.
Flow = Literal[
    "produces",
    "carries",
    "joins",
    "concatenates",
    "moves",
    "reduces",
    "reads",
    "mixes",
]

# The values of the forward pass that a gradient needs.
Saved = Literal["inputs", "outputs", "nothing"]
# (layer, its config, channels of each output, positions that stay in each)
Resize = Callable[
    [Any, dict[str, Any], list[Channels], list[np.ndarray]], dict[str, Any]
]
# (layer, shapes that a call reads, shapes that the call writes)
Macs = Callable[[Any, Shapes, Shapes], int]

# Constructor arguments -> axes that write, and axes that read.
Inner = Mapping[str | tuple[str, ...], tuple[Mapping[str, int], ...]]

# Result of `LayerRule.folds_into`: the constant is added to the layer's output.
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
            `"concatenates"`; `"moves"` if it only rearranges values;
            `"reduces"` if it carries the channels and drops other axes;
            `"reads"` if it reads channels with kernels and all channels that it
            computes must stay; `"mixes"` if each of several inputs has
            kernels of its own. What no weight of `in_axis` or `out_axis` reads
            or writes then stays.
        size_arguments: Constructor arguments that count the output channels
            (`"filters"`, `"units"`), or something in proportion to them
            (`"groups"` of a depthwise convolution).
        in_axis: Weight name -> axis of its input channels. A weight with both
            an input and an output axis is a kernel: its magnitude decides
            which channels are alive. A producing layer without a kernel
            freezes its input channels. Of a layer that reads, the weights named
            here are its kernels, and the other weights are never cut. Of a
            layer that mixes, paths of weights: `"query/kernel"`.
        out_axis: Weight name -> axis of its output channels; `None` for a
            weight with the shape of one input example. A weight without a name
            is called `"variable"`. Of a layer that mixes, paths of the weights
            that write the first output. Its channels are those of the inputs,
            which then go together, if no constructor argument counts them.
        reads: Of a layer that mixes: path of a weight of `in_axis` -> names of
            arguments of the call. The weight reads the first of them that is a
            tensor. A weight that is not named here reads the first input.
        inner: Constructor argument that counts what the layer computes for
            itself (`"num_heads"`), or a tuple of it and of others in proportion
            to it -> two dicts: path of a weight (`"query/kernel"`) -> axis on
            which it writes them, and the same for those that read them. They
            have numbers as channels have, and go like channels. Kernels decide
            which are alive. The first stay if the layer has further outputs;
            all stay where one of these, or a mask, has an axis of so many.
        channel_axis: Function of the layer and of the rank of its input
            (batch included) that returns the axis on which the layer expects
            the channels. `None`, or a result of `None`: any axis will do.
        resize: Function of the layer, its config, the list of the `Channels`
            of each output, and the list of the positions that stay in each
            output. The function returns a dict of the further constructor
            arguments that change; see `channels/resizing.py`.
        reindex: For an operation that indexes its input, as `x[key]` does:
            function that returns the operation's arguments for the channels
            that are left; see `channels/indexing.py`.
        repeats: Function of the layer that returns how many adjacent output
            channels it makes of each input channel (or of each group, if it
            carries groups), such as the multiplier of a depthwise convolution;
            or how many adjacent indices of later inner axes belong to one index
            of the first. `None`: 1.
        groups: Function of the layer that returns its number of channel
            groups. The groups stay equally large, so the channels at the same
            position in all groups are removed together. Of a layer that
            carries, the channels of a group are. `None`: 1.
        constants: What happens, at inference, to a constant channel, which has
            one value at every pixel of every image. `"pointwise"`: the channel
            is constant again, because every output value depends only on the
            input value at the same place. `"pass"`: the channel keeps its
            value, as in pooling. `"zeros"`: only a zero keeps its value, as in
            padding. `"add"`: the layer adds its inputs, so a constant input
            can be left out and added afterwards. `None`: unknown.
        folds_into: Function of a layer with a kernel that returns where the
            kernel's result for constant channels can be added: the name of a
            weight, or `"output"` for the layer's output; `None` if the result
            differs between pixels. `None`: nowhere.
        subtracts: Name of a weight that the layer subtracts from its input at
            inference: a constant that leaves the input is taken off the weight.
        freezes: Function of the layer that returns why all its output channels
            must stay, or `None`.
        refuses: Function of the layer that returns why this rule does not fit
            it, or `None`. The layer is then treated as one without a rule.
        variant: Function of the layer that returns another rule to use for
            this instance, such as a depthwise `Conv2D`, or `None`. `macs` and
            `saved` of that other rule are ignored.
        macs: Function of the layer, the list of the shapes that one call reads
            and the list of those that the call writes (tuples without the
            batch). The function returns the multiply-accumulates of the
            layer's kernels for one example, an integer; flops are twice that
            number. `None`: as for the layer's base class.
        saved: `"inputs"`, `"outputs"` or `"nothing"`: the values of the forward
            pass that the gradient of the layer needs; or a function of the
            layer that returns one of them. `None`: as for the layer's base
            class, or else the inputs.

    Raises:
        ValueError: If an attribute is of the wrong kind.
    """

    flow: Flow
    size_arguments: tuple[str, ...] = ()
    in_axis: Mapping[str, int] = dataclasses.field(default_factory=dict)
    out_axis: Mapping[str, int | None] = dataclasses.field(default_factory=dict)
    reads: Mapping[str, tuple[str, ...]] = dataclasses.field(
        default_factory=dict
    )
    inner: Inner = dataclasses.field(default_factory=dict)
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
        unread = self.reads.keys() - self.in_axis.keys()
        if self.reads and (self.flow != MIXES or unread):
            raise ValueError(
                "`reads` of a `LayerRule` is for weights of `in_axis`, with "
                f"the flow 'mixes'. Received: flow={self.flow!r}, "
                f"reads={self.reads!r}"
            )
        if self.flow == MIXES and None in self.out_axis.values():
            raise ValueError(
                "`out_axis` of a `LayerRule` with the flow 'mixes' must have "
                f"integers. Received: out_axis={self.out_axis!r}"
            )

    def ask(
        self, name: str, layer: Any, /, *arguments: Any, **options: Any
    ) -> Any:
        """Calls one of this rule's functions on a layer; checks the result.

        Args:
            name: Name of the field that holds the function.
            layer: The layer, or other operation.
            *arguments: Further arguments of the function.
            **options: Likewise, by name.

        Returns:
            The function's result; `None` if the field is `None`.

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
            raise  # The error already names the layer in a wrapper.
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


def writes_what_it_reads(rule: LayerRule) -> bool:
    """Whether a mixing layer writes as many channels as it reads.

    Nothing then tells the layer how many, and the same ones go everywhere.
    """
    return rule.flow == MIXES and not (rule.resize or rule.size_arguments)


def by_data_format(layer: Any, rank: int) -> int:
    """Returns the channel axis of a layer that has a `data_format`."""
    return rank - 1 if layer.data_format == "channels_last" else 1


_FLOWS = get_args(Flow)
_FIELDS = {
    "flow": (
        lambda x: x is not None and one_of(*_FLOWS)(x),
        f"one of {_FLOWS}",
    ),
    **FIELDS,
}
_ANSWERS = {
    **ANSWERS,
    "variant": (
        lambda x: isinstance(x, LayerRule | None),
        "a `LayerRule` or `None`",
    ),
}
