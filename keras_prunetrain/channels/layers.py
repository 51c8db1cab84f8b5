"""The rules of the layers of Keras: one row for each class.

A rule says how channels pass through a layer, on which axes of its weights
they lie, and what a call costs.
"""

import dataclasses
import re

import keras
import numpy as np
from keras import layers, ops

from keras_prunetrain import keras_internals
from keras_prunetrain.channels import macs, resizing
from keras_prunetrain.channels.layer_rule import (
    CARRIES,
    CONCATENATES,
    JOINS,
    MIXES,
    MOVES,
    OUTPUT,
    PRODUCES,
    READS,
    LayerRule,
    by_data_format,
    frozen,
    refused,
)
from keras_prunetrain.channels.operations import POINTWISE

# Attribute of a convolution whose groups go as a whole.
WHOLE_GROUPS = "prunes_whole_groups"


def _last(layer, rank):
    del layer
    return rank - 1


def _by_axis(layer, rank):
    # A list of axes has no single channel axis: 0, the batch, never fits.
    axis = layer.axis
    return axis if isinstance(axis, int) else 0


def _after_time(layer, rank):
    """Returns the channel axis of a recurrent layer that reads images."""
    return rank - 1 if layer.data_format == "channels_last" else 2


def _rescaled_by_array(layer):
    if max(np.ndim(layer.scale), np.ndim(layer.offset)) > 1:
        return "its scale or offset is neither a number nor a list"
    return None


def _rescaled_axis(layer, rank):
    if np.ndim(layer.scale) == np.ndim(layer.offset) == 0:
        return None
    return rank - 1


def _mixing_activation(layer):
    """Returns why the channels stay if an activation may mix them."""
    if _is_pointwise(layer.activation):
        return None
    name = getattr(layer.activation, "__name__", repr(layer.activation))
    return f"its activation {name} may mix channels"


def _is_pointwise(activation):
    """Whether each output value is known to depend on one input value only.

    A `functools.partial` is not looked into: Keras cannot serialize it, so the
    layer could not be made anew with fewer channels.
    """
    if isinstance(activation, keras.Operation):  # `activation=LeakyReLU(0.1)`
        rule = LAYER_RULES.get(type(activation))
        return (
            rule is not None
            and rule.constants == "pointwise"
            and not (rule.out_axis or rule.resize)
            and rule.ask("freezes", activation) is None
        )
    # TensorFlow's functions, such as `tf.nn.relu`, are known by their names.
    module = getattr(activation, "__module__", None) or ""
    if module.startswith("tensorflow."):
        return activation.__name__ in _POINTWISE_NAMES
    return any(activation is known for known in _POINTWISE_FUNCTIONS)


def _saved_by_activation(layer):
    """Returns which values the gradient of an activation needs."""
    if layer.activation is keras.activations.linear:
        return "nothing"
    return "outputs" if layer.activation in _GRADIENT_OF_OUTPUT else "inputs"


def _folds_into(layer):
    """Returns where to add what a kernel without a border makes of constants.

    To the bias; without one, to the output, if there is no activation.
    """
    if layer.bias is not None:
        return "bias"
    return OUTPUT if layer.activation is keras.activations.linear else None


def _convolution_folds_into(layer):
    at_border = layer.padding != "valid" and set(layer.kernel_size) != {1}
    if at_border or layer.groups > 1:
        return None
    return _folds_into(layer)


def _groups(layer):
    return layer.groups


def _multiplier(layer):
    return layer.depth_multiplier


def _by_group(layer):
    """Returns the rule of a convolution whose groups go as a whole.

    A group of one input channel can only do so; `prune_whole_groups` lets
    larger ones.
    """
    is_depthwise = layer.groups > 1 and layer.kernel.shape[-2] == 1
    # The last group of those that go as a whole stays whole.
    if not (is_depthwise or hasattr(layer, WHOLE_GROUPS)):
        return None
    return LayerRule(
        CARRIES,
        ("filters", "groups"),
        out_axis={"kernel": -1, "bias": -1},
        channel_axis=by_data_format,
        groups=_groups,
        repeats=lambda layer: layer.filters // layer.groups,
        freezes=_mixing_activation,
    )


def _einsum(layer):
    """Returns the rule of a layer whose equation says where channels lie.

    The channels are the last axis that the layer reads and the last one that
    it writes. The other axes of a kernel, the heads of an attention, stay as
    they are.
    """
    read, axes, written = re.split(",|->", layer.equation.replace(" ", ""))
    source, result = read[-1], written[-1]
    if source not in axes or source in written or result in read:
        return None
    bias = {}
    if layer.bias is not None:
        kept = [axis for axis in written if axis in layer.bias_axes]
        if result in kept:
            bias = {"bias": kept.index(result)}
    return LayerRule(
        PRODUCES,
        in_axis={"kernel": axes.index(source)},
        out_axis={"kernel": axes.index(result), **bias},
        channel_axis=_last,
        resize=resizing.shape("output_shape"),
        freezes=_mixing_activation,
    )


def _known_cell(layer):
    """Returns the rule of an `RNN` whose only cell is one of Keras's own."""
    if type(layer.cell) in _named("GRUCell LSTMCell SimpleRNNCell"):
        return _RECURRENT
    return None


def _attended_shape(layer, config, outputs, keeps):
    """Resizes the `output_shape` of an attention, which may be `None`."""
    sizes = config.get("output_shape") or (None,)
    return {"output_shape": (*sizes[:-1], len(keeps[0]))}


def _beside_its_kernels(layer):
    """Returns why all channels stay if the projections have other weights."""
    names = {keras_internals.weight_name(x) for x in layer.weights}
    others = sorted(names - {"kernel", "bias"})
    if others:
        return f"its projections have other weights ({', '.join(others)})"
    return None


def _instance_norm(layer):
    """Returns the rule of a normalization with one channel in each group."""
    if layer.gamma is not None:
        channels = layer.gamma.shape[0]
    elif layer.beta is not None:
        channels = layer.beta.shape[0]
    else:
        return None
    if layer.groups != channels:
        return None
    return LayerRule(
        CARRIES,
        ("groups",),
        out_axis={"gamma": -1, "beta": -1},
        channel_axis=_by_axis,
    )


def _noise_shape(layer):
    # With 1 or `None`, the mask fits an axis of any size.
    if all(size in (None, 1) for size in layer.noise_shape or ()):
        return None
    return "it has a noise_shape"


def _named(*names):
    # By name, because the oldest supported Keras lacks some of the layers.
    names = " ".join(names).split()
    return [getattr(layers, name) for name in names if hasattr(layers, name)]


_POINTWISE_NAMES = {
    *POINTWISE.split(),
    *("exponential", "hard_swish", "linear", "mish", "swish", "threshold"),
}
_POINTWISE_FUNCTIONS = [
    getattr(module, name)
    for module in (keras.activations, ops)
    for name in sorted(_POINTWISE_NAMES)
    if hasattr(module, name)
]

# The gradient of these activations can be computed from their outputs.
_GRADIENT_OF_OUTPUT = (
    keras.activations.relu,
    keras.activations.relu6,
    keras.activations.sigmoid,
    keras.activations.softmax,
    keras.activations.tanh,
)

_CONVOLUTION = LayerRule(
    PRODUCES,
    ("filters",),
    in_axis={"kernel": -2},
    out_axis={"kernel": -1, "bias": -1},
    channel_axis=by_data_format,
    freezes=_mixing_activation,
    macs=macs.at_outputs,
)
# The kernel has the gates one after the other, and each reads all that the cell
# computed in the step before.
_RECURRENT = LayerRule(
    READS,
    in_axis={"kernel": -2},
    channel_axis=_last,
    freezes=lambda layer: "it reads what it computes, in all its gates",
)
_ATTENTION = refused("attention mixes all channels")


def _in_attention(axis, *projections):
    """Returns `axis` for the weights: (channels, heads, channels of a head)."""
    names = "kernel", "bias"
    return {f"{x}/{name}": axis for x in projections for name in names}


def _attended(axis):
    """Returns `axis` for the kernel: (heads, channels of a head, channels)."""
    return {"attention_output/kernel": axis}


# Projections of an attention, and the arguments of the call that they read.
_READ_BY = {
    "query": ("query",),
    "gate": ("query",),
    "key": ("key", "value"),
    "value": ("value",),
}
_HEADS = _in_attention(-2, "key", "value", "query", "gate"), _attended(0)
_MULTI_HEAD = LayerRule(
    MIXES,
    inner={
        "num_heads": _HEADS,
        # With fewer channels of queries and keys, the scores would be divided
        # by another number.
        "value_dim": (_in_attention(-1, "value", "gate"), _attended(1)),
    },
    in_axis={f"{x}/kernel": 0 for x in _READ_BY},
    out_axis={"attention_output/kernel": -1, "attention_output/bias": -1},
    reads={f"{x}/kernel": names for x, names in _READ_BY.items()},
    channel_axis=_last,
    resize=_attended_shape,
    refuses=_beside_its_kernels,
    macs=macs.attention,
)

LAYER_RULES = {
    **dict.fromkeys(
        _named("Conv1D Conv2D Conv3D"),
        dataclasses.replace(
            _CONVOLUTION,
            groups=_groups,
            folds_into=_convolution_folds_into,
            variant=_by_group,
        ),
    ),
    **dict.fromkeys(
        _named("Conv1DTranspose Conv2DTranspose Conv3DTranspose"),
        dataclasses.replace(
            _CONVOLUTION,
            in_axis={"kernel": -1},
            out_axis={"kernel": -2, "bias": -1},
            macs=macs.at_inputs,
        ),
    ),
    **dict.fromkeys(
        _named("DepthwiseConv1D DepthwiseConv2D"),
        LayerRule(
            CARRIES,
            in_axis={"kernel": -2},
            out_axis={"bias": -1},
            channel_axis=by_data_format,
            repeats=_multiplier,
            freezes=_mixing_activation,
            macs=macs.at_outputs,
        ),
    ),
    **dict.fromkeys(
        _named("SeparableConv1D SeparableConv2D"),
        dataclasses.replace(
            _CONVOLUTION,
            in_axis={"depthwise_kernel": -2, "pointwise_kernel": -2},
            out_axis={"pointwise_kernel": -1, "bias": -1},
            repeats=_multiplier,
            macs=macs.separable,
        ),
    ),
    layers.Dense: dataclasses.replace(
        _CONVOLUTION,
        size_arguments=("units",),
        channel_axis=_last,
        folds_into=_folds_into,
        macs=macs.dense,
    ),
    layers.EinsumDense: dataclasses.replace(
        frozen("its equation says of no axis that it is that of the channels"),
        variant=_einsum,
        macs=macs.einsum,
    ),
    layers.Embedding: LayerRule(
        PRODUCES,
        ("output_dim",),
        out_axis={"embeddings": -1},
        channel_axis=_last,
        macs=macs.none,
    ),
    layers.BatchNormalization: LayerRule(
        CARRIES,
        out_axis=dict.fromkeys(
            ("gamma", "beta", "moving_mean", "moving_variance"), -1
        ),
        channel_axis=_by_axis,
        constants="pointwise",
        subtracts="moving_mean",
    ),
    layers.GroupNormalization: dataclasses.replace(
        frozen("it normalizes groups of channels together"),
        variant=_instance_norm,
    ),
    **dict.fromkeys(
        _named("LayerNormalization RMSNormalization UnitNormalization"),
        frozen("it normalizes across channels"),
    ),
    layers.Normalization: frozen(
        "its statistics belong to these very channels"
    ),
    layers.Rescaling: LayerRule(
        CARRIES,
        channel_axis=_rescaled_axis,
        resize=resizing.per_channel("scale", "offset"),
        constants="pointwise",
        freezes=_rescaled_by_array,
        saved="nothing",
    ),
    layers.Activation: LayerRule(
        CARRIES,
        constants="pointwise",
        freezes=_mixing_activation,
        saved=_saved_by_activation,
    ),
    layers.PReLU: LayerRule(CARRIES, out_axis={"alpha": None}, macs=macs.none),
    layers.ReLU: LayerRule(CARRIES, constants="pointwise", saved="outputs"),
    layers.Identity: LayerRule(CARRIES, constants="pointwise", saved="nothing"),
    layers.Softmax: dataclasses.replace(
        frozen("it mixes channels"), saved="outputs"
    ),
    **dict.fromkeys(
        _named("Dropout AlphaDropout"),
        LayerRule(CARRIES, constants="pointwise", freezes=_noise_shape),
    ),
    **dict.fromkeys(
        _named(
            "LeakyReLU ELU ActivityRegularization GaussianDropout "
            " GaussianNoise SpatialDropout1D SpatialDropout2D "
            "SpatialDropout3D"
        ),
        LayerRule(CARRIES, constants="pointwise"),
    ),
    **dict.fromkeys(
        _named(
            *(
                f"{kind}Pooling{n}D"
                for n in (1, 2, 3)
                for kind in ("Max", "AdaptiveMax", "GlobalMax")
            ),
        ),
        LayerRule(CARRIES, channel_axis=by_data_format, constants="pass"),
    ),
    **dict.fromkeys(
        _named(
            *(
                f"{kind}Pooling{n}D"
                for n in (1, 2, 3)
                for kind in ("Average", "AdaptiveAverage", "GlobalAverage")
            ),
            "Cropping2D Cropping3D UpSampling2D UpSampling3D",
        ),
        LayerRule(
            CARRIES,
            channel_axis=by_data_format,
            constants="pass",
            saved="nothing",
        ),
    ),
    **dict.fromkeys(
        _named(
            # Augmentations that keep the colour channels apart.
            "CenterCrop RandomCrop RandomFlip RandomRotation RandomShear "
            "RandomPerspective RandomElasticTransform RandomErasing "
            "RandomTranslation RandomZoom RandomGaussianBlur Resizing",
        ),
        LayerRule(CARRIES, channel_axis=by_data_format),
    ),
    **dict.fromkeys(
        _named("ZeroPadding2D ZeroPadding3D"),
        LayerRule(
            CARRIES,
            channel_axis=by_data_format,
            constants="zeros",
            saved="nothing",
        ),
    ),
    **dict.fromkeys(
        _named("Cropping1D UpSampling1D"),
        LayerRule(
            CARRIES, channel_axis=_last, constants="pass", saved="nothing"
        ),
    ),
    layers.RepeatVector: LayerRule(
        CARRIES, channel_axis=_last, constants="pass", saved="nothing"
    ),
    layers.Masking: frozen("it skips steps by the values of all channels"),
    layers.Dot: refused("it adds up products of channels"),
    layers.ZeroPadding1D: LayerRule(
        CARRIES, channel_axis=_last, constants="zeros", saved="nothing"
    ),
    **dict.fromkeys(
        _named(
            "RandomBrightness RandomColorDegeneration RandomColorJitter "
            "RandomContrast RandomGrayscale RandomHue RandomInvert "
            "RandomPosterization RandomSaturation RandomSharpness AugMix "
            "AutoContrast CutMix Equalization MixUp RandAugment Solarization "
            "ContrastLimitedAdaptiveHistogramEqualization"
        ),
        frozen("it mixes colours"),
    ),
    **dict.fromkeys(
        _named(
            "CategoryEncoding Discretization HashedCrossing Hashing "
            "IntegerLookup StringLookup TextVectorization MaxNumBoundingBoxes "
            "MelSpectrogram STFTSpectrogram"
        ),
        refused("it makes other data of its input, not channel by channel"),
    ),
    **dict.fromkeys(_named("Multiply Maximum Minimum"), LayerRule(JOINS)),
    **dict.fromkeys(
        _named("Subtract Average"), LayerRule(JOINS, saved="nothing")
    ),
    layers.Add: LayerRule(JOINS, constants="add", saved="nothing"),
    layers.Concatenate: LayerRule(CONCATENATES, saved="nothing"),
    **dict.fromkeys(
        _named("Flatten Permute"),
        LayerRule(MOVES, constants="pass", saved="nothing"),
    ),
    layers.Reshape: LayerRule(
        MOVES,
        resize=resizing.shape("target_shape"),
        constants="pass",
        saved="nothing",
    ),
    **dict.fromkeys(
        _named("GRU LSTM SimpleRNN"),
        dataclasses.replace(_RECURRENT, macs=macs.recurrent),
    ),
    **dict.fromkeys(
        _named("ConvLSTM1D ConvLSTM2D ConvLSTM3D"),
        dataclasses.replace(
            _RECURRENT, channel_axis=_after_time, macs=macs.recurrent_images
        ),
    ),
    layers.RNN: dataclasses.replace(
        refused("the package does not know how its cell reads channels"),
        variant=_known_cell,
        macs=macs.recurrent,
    ),
    layers.MultiHeadAttention: _MULTI_HEAD,
    **dict.fromkeys(
        _named("GroupQueryAttention"),
        dataclasses.replace(
            _MULTI_HEAD,
            # A head of keys and values, with all heads of queries that read it.
            inner={("num_key_value_heads", "num_query_heads"): _HEADS},
            repeats=lambda layer: layer.num_repeats,
            resize=None,  # It writes as many channels as its queries have.
        ),
    ),
    **dict.fromkeys(
        _named("AdditiveAttention Attention"),
        dataclasses.replace(_ATTENTION, macs=macs.none),
    ),
    # Layer classes that modules of `keras.applications` define themselves.
    **{
        layer_class: rule
        for module, name, rule in (
            (
                "convnext",
                "LayerScale",
                LayerRule(
                    CARRIES,
                    ("projection_dim",),
                    out_axis={"variable": -1},  # The weight has no name.
                    channel_axis=_last,
                    constants="pointwise",
                ),
            ),
            (
                "convnext",
                "StochasticDepth",
                LayerRule(CARRIES, constants="pointwise"),
            ),
            ("inception_resnet_v2", "CustomScaleLayer", LayerRule(JOINS)),
        )
        if (layer_class := keras_internals.application_layer(module, name))
    },
}
