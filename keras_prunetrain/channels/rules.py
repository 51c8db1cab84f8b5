"""What is known of each layer class: one row in one table.

A rule says how channels pass through a layer and on which axes of its weights
they lie. Everything else in the package reads the rules; nothing else knows a
layer class. A layer without a rule is never guessed at: the channels that it
touches stay.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import keras
import numpy as np
from keras import layers

PRODUCES = "produces"  # Computes channels of its own: `Conv2D`.
CARRIES = "carries"  # Output channel i depends on input channel i: `ReLU`.
JOINS = "joins"  # Carries several inputs, channel by channel: `Add`.
CONCATENATES = "concatenates"  # Lines its inputs up: `Concatenate`.
MOVES = "moves"  # Only puts values elsewhere: `Flatten`.


@dataclasses.dataclass(frozen=True)
class LayerRule:
    """How channels pass through a layer, and where they lie in its variables.

    Attributes:
        flow: One of `"produces"`, `"carries"`, `"joins"`, `"concatenates"`,
            `"moves"`.
        size_argument: Constructor argument that holds the number of output
            channels (`"filters"`, `"units"`), or `None` if it is inferred.
        in_axis: Weight name -> axis of its input channels. A weight with both
            an input and an output axis is a kernel: its magnitude decides
            which channels are alive.
        out_axis: Weight name -> axis of its output channels.
        channel_axis: Function of the layer and of the rank of its input
            (batch included) that returns the axis on which the layer expects
            the channels. `None`, also as its result, if any axis will do.
        channel_arguments: Constructor arguments that may hold one number per
            channel.
        shape_argument: Constructor argument that holds the output's shape
            without the batch.
        pointwise: Whether every output value depends, at inference, on the one
            input value at its place only, so that a constant stays one.
        sums: Whether the output is the sum of the inputs, so that an input
            that is constant can be left out and its value added instead.
        holds: Function of the layer that returns why all its output channels
            must stay, or `None`.
        refuses: Function of the layer that returns why this rule does not fit
            it, or `None`. The layer is then treated as one without a rule.
    """

    flow: Literal["produces", "carries", "joins", "concatenates", "moves"]
    size_argument: str | None = None
    in_axis: Mapping[str, int] = dataclasses.field(default_factory=dict)
    out_axis: Mapping[str, int] = dataclasses.field(default_factory=dict)
    channel_axis: Callable | None = None
    channel_arguments: tuple[str, ...] = ()
    shape_argument: str | None = None
    pointwise: bool = False
    sums: bool = False
    holds: Callable | None = None
    refuses: Callable | None = None


def rule_for(operation):
    """Returns the `LayerRule` for the class of `operation`, or `None`.

    The very class counts: a subclass may do something else with its channels.
    """
    return _RULES.get(type(operation))


def register_rule(layer_class, rule):
    """Teaches the package about `layer_class`, or replaces what it knew.

    Args:
        layer_class: A subclass of `keras.layers.Layer`. Its subclasses need
            rules of their own.
        rule: A `LayerRule`.

    Raises:
        ValueError: If `layer_class` is not a layer class or `rule` not a
            `LayerRule`.

    Example:

    >>> class Scale(keras.layers.Layer):  # One learned factor per channel.
    ...     def build(self, shape):
    ...         self.scale = self.add_weight((shape[-1],), name="scale")
    ...
    ...     def call(self, x):
    ...         return x * self.scale
    >>> register_rule(Scale, LayerRule("carries", out_axis={"scale": -1}))
    """
    if not (
        isinstance(layer_class, type) and issubclass(layer_class, layers.Layer)
    ):
        raise ValueError(
            "`register_rule` expects a subclass of keras.layers.Layer, the "
            f"class itself and no instance. Received: {layer_class!r}"
        )
    if not isinstance(rule, LayerRule):
        raise ValueError(
            f"The rule for {layer_class.__name__} must be a "
            f"keras_prunetrain.LayerRule. Received: {rule!r}"
        )
    _RULES[layer_class] = rule


def _by_data_format(layer, rank):
    return rank - 1 if layer.data_format == "channels_last" else 1


def _last(layer, rank):
    del layer
    return rank - 1


def _by_axis(layer, rank):
    # A list of axes has no single channel axis: -1 equals none.
    axis = layer.axis
    return axis % rank if isinstance(axis, int) else -1


def _rescaled_by_array(layer):
    if max(np.ndim(layer.scale), np.ndim(layer.offset)) > 1:
        return "its scale or offset is neither a number nor a list"
    return None


def _rescaled_axis(layer, rank):
    if np.ndim(layer.scale) == np.ndim(layer.offset) == 0:
        return None
    return rank - 1


def _mixing_activation(layer):
    """Names an activation that is not known to work value by value."""
    if layer.activation in _ELEMENTWISE:
        return None
    name = getattr(layer.activation, "__name__", repr(layer.activation))
    return f"its activation {name} may mix channels"


def _groups(layer):
    return "its channels come in groups" if layer.groups > 1 else None


def _noise_shape(layer):
    return "it has a noise_shape" if layer.noise_shape is not None else None


def _held(reason):
    return LayerRule(CARRIES, holds=lambda layer: reason)


def _named(*names):
    # By name: some of the layers are younger than the oldest Keras supported.
    names = " ".join(names).split()
    return [getattr(layers, name) for name in names if hasattr(layers, name)]


# Softmax, log_softmax, sparsemax and glu are missing: they mix channels.
_ELEMENTWISE = {
    getattr(module, name)
    for module in (keras.activations, keras.ops)
    for name in (
        *("celu", "elu", "exponential", "gelu", "hard_shrink", "hard_sigmoid"),
        *("hard_silu", "hard_swish", "hard_tanh", "leaky_relu", "linear"),
        *("log_sigmoid", "mish", "relu", "relu6", "selu", "sigmoid", "silu"),
        *("soft_shrink", "softplus", "softsign", "sparse_plus"),
        *("sparse_sigmoid", "squareplus", "swish", "tanh", "tanh_shrink"),
        "threshold",
    )
    if hasattr(module, name)
}

_CONVOLUTION = LayerRule(
    PRODUCES,
    "filters",
    in_axis={"kernel": -2},
    out_axis={"kernel": -1, "bias": -1},
    channel_axis=_by_data_format,
    holds=_mixing_activation,
    refuses=_groups,
)

_RULES = {
    **dict.fromkeys(_named("Conv1D Conv2D Conv3D"), _CONVOLUTION),
    layers.Dense: dataclasses.replace(
        _CONVOLUTION, size_argument="units", channel_axis=_last, refuses=None
    ),
    layers.BatchNormalization: LayerRule(
        CARRIES,
        out_axis=dict.fromkeys(
            ("gamma", "beta", "moving_mean", "moving_variance"), -1
        ),
        channel_axis=_by_axis,
        pointwise=True,
    ),
    layers.LayerNormalization: _held("it normalizes across channels"),
    layers.Normalization: _held("its statistics belong to these very channels"),
    layers.Rescaling: LayerRule(
        CARRIES,
        channel_axis=_rescaled_axis,
        channel_arguments=("scale", "offset"),
        pointwise=True,
        holds=_rescaled_by_array,
    ),
    layers.Activation: LayerRule(
        CARRIES, pointwise=True, holds=_mixing_activation
    ),
    layers.PReLU: LayerRule(
        CARRIES, out_axis={"alpha": -1}, channel_axis=_last
    ),
    layers.Softmax: _held("it mixes channels"),
    **dict.fromkeys(
        _named("Dropout AlphaDropout"),
        LayerRule(CARRIES, pointwise=True, holds=_noise_shape),
    ),
    **dict.fromkeys(
        _named(
            "ReLU LeakyReLU ELU ActivityRegularization Identity "
            "GaussianDropout GaussianNoise SpatialDropout1D SpatialDropout2D "
            "SpatialDropout3D"
        ),
        LayerRule(CARRIES, pointwise=True),
    ),
    **dict.fromkeys(
        _named(
            *(
                f"{kind}Pooling{n}D"
                for n in (1, 2, 3)
                for kind in (
                    *("Max", "Average", "AdaptiveMax", "AdaptiveAverage"),
                    *("GlobalMax", "GlobalAverage"),
                )
            ),
            "ZeroPadding2D ZeroPadding3D Cropping2D Cropping3D "
            "UpSampling2D UpSampling3D",
            # Augmentation that works on places and not on colours.
            "CenterCrop RandomCrop RandomFlip RandomRotation RandomShear "
            "RandomPerspective RandomElasticTransform RandomErasing "
            "RandomTranslation RandomZoom RandomGaussianBlur Resizing",
        ),
        LayerRule(CARRIES, channel_axis=_by_data_format),
    ),
    **dict.fromkeys(
        _named("ZeroPadding1D Cropping1D UpSampling1D"),
        LayerRule(CARRIES, channel_axis=_last),
    ),
    **dict.fromkeys(
        _named(
            "RandomBrightness RandomColorDegeneration RandomColorJitter "
            "RandomContrast RandomGrayscale RandomHue RandomInvert "
            "RandomPosterization RandomSaturation RandomSharpness AugMix "
            "AutoContrast CutMix Equalization MixUp RandAugment Solarization"
        ),
        _held("it mixes colours"),
    ),
    **dict.fromkeys(
        _named("Subtract Multiply Average Maximum Minimum"), LayerRule(JOINS)
    ),
    layers.Add: LayerRule(JOINS, sums=True),
    layers.Concatenate: LayerRule(CONCATENATES),
    **dict.fromkeys(_named("Flatten Permute"), LayerRule(MOVES)),
    layers.Reshape: LayerRule(MOVES, shape_argument="target_shape"),
}
