"""Small networks whose dead channels are written out by hand.

Nothing here asks the package which channels belong together: `dead` says so.
"""

from typing import NamedTuple

import keras
import numpy as np
import pytest
from keras import layers

from keras_prunetrain import keras_internals, prune_whole_groups

TINY = 1e-6  # Below the default threshold, and yet not zero.


class Network(NamedTuple):
    """A model, and what of it is to die.

    Attributes:
        model: An uncompiled `keras.Model`.
        writes: Dict from a layer to its dead output channels.
        reads: Dict from a layer to its dead input channels.
        carries: Dict from a BN to its dead channels.
        dies: Dict from the path of any other weight that says which channels
            live to a dict from an axis to its dead channels.
        goes: The same for weights that have no say.
    """

    model: keras.Model
    writes: dict
    reads: dict
    carries: dict
    dies: dict = {}  # noqa: RUF012
    goes: dict = {}  # noqa: RUF012


def find(model, path):
    """The layer at `path`: `"inner/conv"` is `conv` in the model `inner`."""
    for name in path.split("/"):
        model = model.get_layer(name)
    return model


def shake(model, seed=0):
    """Draws every weight so that outputs depend on inputs, and BN is awake."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        value = rng.normal(size=weight.shape)
        if weight.name == "kernel":
            fan_in = np.prod(weight.shape[:-1])
            # No entry is near the threshold.
            value = (value + 0.1 * np.sign(value)) / np.sqrt(fan_in)
        elif weight.name in ("gamma", "moving_variance"):
            value = rng.uniform(0.5, 1.5, weight.shape)
        else:
            value = 0.5 * value
        weight.assign(value)


def kill(model, writes=None, reads=None, value=0.0):
    """Sets slices of kernels, by output and by input channel, to +-`value`."""
    for axis, dead in ((-1, writes or {}), (-2, reads or {})):
        for path, channels in dead.items():
            kernel = find(model, path).kernel
            array = keras.ops.convert_to_numpy(kernel).copy()
            place = [slice(None)] * array.ndim
            place[axis] = channels
            array[tuple(place)] = np.copysign(value, array[tuple(place)])
            kernel.assign(array)


def weight_at(model, path):
    """The weight at `path`: `"inner/conv/bias"`."""
    layer, _, name = path.rpartition("/")
    try:
        found = [w for w in find(model, layer).weights if w.name == name]
    except AttributeError:  # It lies in a part of a layer.
        found = [w for w in model.weights if w.path == path]
    (weight,) = found
    return weight


def kill_all(network, value=0.0):
    kill(network.model, network.writes, network.reads, value)
    for path, axes in network.dies.items():
        weight = weight_at(network.model, path)
        array = keras.ops.convert_to_numpy(weight).copy()
        for axis, dead in axes.items():
            place = [slice(None)] * array.ndim
            place[axis] = dead
            array[tuple(place)] = np.copysign(value, array[tuple(place)])
        weight.assign(array)


def surviving(network):
    """Dict from a weight's path to its positions that stay, per axis."""
    result = {}
    for dead, names, axis in (
        (network.writes, ("kernel", "bias"), -1),
        (network.reads, ("kernel",), -2),
        (network.carries, None, -1),
    ):
        for path, channels in dead.items():
            for weight in find(network.model, path).weights:
                if names is None or weight.name in names:
                    axis_ = axis % len(weight.shape)
                    keep = np.delete(np.arange(weight.shape[axis_]), channels)
                    result.setdefault(weight.path, {})[axis_] = keep
    for path, axes in {**network.dies, **network.goes}.items():
        weight = weight_at(network.model, path)
        for axis, dead in axes.items():
            axis_ = axis % len(weight.shape)
            keep = np.delete(np.arange(weight.shape[axis_]), dead)
            result.setdefault(weight.path, {})[axis_] = keep
    return result


def take(value, keep):
    value = keras.ops.convert_to_numpy(value)
    for axis, positions in keep.items():
        value = np.take(value, positions, axis)
    return value


def images(count=6, shape=(6, 6, 2), seed=1):
    return np.random.default_rng(seed).normal(size=(count, *shape))


def targets(count=6, classes=3, seed=2):
    return np.random.default_rng(seed).normal(size=(count, classes))


def outputs(model, x, training=False):
    """What `model` makes of `x`; fails if that does not depend on `x`."""
    y = keras.ops.convert_to_numpy(model(x, training=training))
    assert np.isfinite(y).all()
    assert np.ptp(y, axis=0).max() > 0.05, "the output hardly depends on x"
    return y


def compiled_outputs(model, x):
    """As `outputs`, by XLA, which convolves channels_first on every CPU."""
    import tensorflow as tf

    return outputs(tf.function(model, autograph=False, jit_compile=True), x)


def conv(x, channels, name, size=3, **kwargs):
    return layers.Conv2D(channels, size, padding="same", name=name, **kwargs)(x)


def conv_bn(x, channels, name, size=3, relu=True, **kwargs):
    x = conv(x, channels, name, size, use_bias=False, **kwargs)
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def head(x):
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return layers.Dense(3, name="logits")(x)


def plain():
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 6, "a")
    x = conv(x, 5, "b", activation="relu")
    return Network(
        keras.Model(image, head(x)),
        writes={"a": [1, 4], "b": [0]},
        reads={"b": [1, 4], "logits": [0]},
        carries={"a_bn": [1, 4]},
    )


def residual():
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 6, "stem")
    branch = conv_bn(x, 4, "conv1")
    branch = conv_bn(branch, 6, "conv2", relu=False)
    x = layers.ReLU()(layers.Add(name="add")([branch, x]))
    return Network(
        keras.Model(image, head(x)),
        writes={"stem": [1, 4], "conv1": [2], "conv2": [1, 4]},
        reads={"conv1": [1, 4], "conv2": [2], "logits": [1, 4]},
        carries={"stem_bn": [1, 4], "conv1_bn": [2], "conv2_bn": [1, 4]},
    )


def projection():
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 4, "stem")
    branch = conv_bn(x, 3, "conv1", strides=2)
    branch = conv_bn(branch, 6, "conv2", relu=False)
    x = conv_bn(x, 6, "shortcut", size=1, relu=False, strides=2)
    x = layers.ReLU()(layers.Add(name="add")([branch, x]))
    return Network(
        keras.Model(image, head(x)),
        writes={"stem": [3], "conv1": [0], "conv2": [0, 5], "shortcut": [0, 5]},
        reads={"conv1": [3], "shortcut": [3], "conv2": [0], "logits": [0, 5]},
        carries={
            "stem_bn": [3],
            "conv1_bn": [0],
            "conv2_bn": [0, 5],
            "shortcut_bn": [0, 5],
        },
    )


def bottleneck():
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 8, "stem")
    branch = conv_bn(x, 4, "conv1", size=1)
    branch = conv_bn(branch, 4, "conv2")
    branch = conv_bn(branch, 8, "conv3", size=1, relu=False)
    x = layers.ReLU()(layers.Add(name="add")([branch, x]))
    return Network(
        keras.Model(image, head(x)),
        writes={"stem": [7], "conv1": [0, 1], "conv2": [3], "conv3": [7]},
        reads={"conv1": [7], "conv2": [0, 1], "conv3": [3], "logits": [7]},
        carries={
            "stem_bn": [7],
            "conv1_bn": [0, 1],
            "conv2_bn": [3],
            "conv3_bn": [7],
        },
    )


def concatenating():
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 4, "stem")
    x = layers.Concatenate()([x, conv(x, 3, "conv1")])
    x = layers.ReLU()(layers.BatchNormalization(name="bn1")(x))
    x = layers.Concatenate()([x, conv(x, 3, "conv2")])
    x = layers.ReLU()(layers.BatchNormalization(name="bn2")(x))
    return Network(
        keras.Model(image, head(x)),
        # In the end: 4 channels of the stem, 3 of conv1, 3 of conv2.
        writes={"stem": [1], "conv1": [2], "conv2": [0]},
        reads={"conv1": [1], "conv2": [1, 6], "logits": [1, 6, 7]},
        carries={"stem_bn": [1], "bn1": [1, 6], "bn2": [1, 6, 7]},
    )


def nested():
    shape = keras.Input((6, 6, 5))
    x = conv_bn(shape, 6, "a")
    x = conv_bn(x, 5, "b", relu=False)
    inner = keras.Model(shape, layers.Add()([x, shape]), name="inner")
    neck = keras.Sequential(
        [
            keras.Input((6, 6, 5)),
            layers.Conv2D(4, 3, name="c"),
            layers.BatchNormalization(name="c_bn"),
            layers.ReLU(),
        ],
        name="neck",
    )
    image = keras.Input((6, 6, 2))
    x = conv(image, 5, "stem")
    return Network(
        keras.Model(image, head(neck(inner(x)))),
        writes={"stem": [2], "inner/a": [0, 5], "inner/b": [2], "neck/c": [1]},
        reads={
            "inner/a": [2],
            "inner/b": [0, 5],
            "neck/c": [2],
            "logits": [1],
        },
        carries={"inner/a_bn": [0, 5], "inner/b_bn": [2], "neck/c_bn": [1]},
    )


def shared():
    """One convolution, called twice, and so reading its own channels."""
    image = keras.Input((6, 6, 2))
    twice = layers.Conv2D(5, 3, padding="same", name="twice")
    relu = layers.ReLU()
    x = relu(twice(relu(twice(conv(image, 5, "stem")))))
    return Network(
        keras.Model(image, head(x)),
        writes={"stem": [2, 3], "twice": [2, 3]},
        reads={"twice": [2, 3], "logits": [2, 3]},
        carries={},
    )


def sequential():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(5, 3, name="a"),
            layers.BatchNormalization(name="a_bn"),
            layers.Activation("tanh"),
            layers.Conv2D(4, 3, name="b"),
            layers.GlobalMaxPooling2D(),
            layers.Dense(3, name="logits"),
        ]
    )
    return Network(
        model,
        writes={"a": [0, 4], "b": [2]},
        reads={"b": [0, 4], "logits": [2]},
        carries={"a_bn": [0, 4]},
    )


def flattening():
    image = keras.Input((6, 6, 2))
    x = layers.AveragePooling2D(3)(conv_bn(image, 4, "a"))
    x = layers.Dense(5, "tanh", name="b")(layers.Flatten()(x))
    return Network(
        keras.Model(image, layers.Dense(3, name="logits")(x)),
        writes={"a": [2], "b": [3]},
        # Four pixels of four channels each.
        reads={"b": [2, 6, 10, 14], "logits": [3]},
        carries={"a_bn": [2]},
    )


def squeezing():
    """Squeeze and excitation: a factor for each channel, by `Reshape`."""
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 6, "stem")
    s = layers.GlobalAveragePooling2D()(x)
    s = layers.Reshape((1, 1, 6))(s)
    s = conv(s, 3, "squeeze", size=1, activation="relu")
    s = conv(s, 6, "excite", size=1, activation="sigmoid")
    return Network(
        keras.Model(image, head(layers.Multiply()([x, s]))),
        writes={"stem": [1, 4], "squeeze": [0], "excite": [1, 4]},
        reads={"squeeze": [1, 4], "excite": [0], "logits": [1, 4]},
        carries={"stem_bn": [1, 4]},
    )


def depthwise():
    """Two output channels for each input channel; the kernel has no say."""
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 4, "stem")
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depth")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(x))
    return Network(
        keras.Model(image, head(x)),
        writes={"stem": [1, 2]},
        reads={"logits": [2, 3, 4, 5]},
        carries={"stem_bn": [1, 2], "bn": [2, 3, 4, 5]},
        goes={
            "depth/kernel": {-2: [1, 2]},
            "depth/bias": {0: [2, 3, 4, 5]},
        },
    )


def separable():
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 4, "stem")
    x = layers.SeparableConv2D(5, 3, depth_multiplier=2, name="sep")(x)
    return Network(
        keras.Model(image, head(layers.ReLU()(x))),
        writes={"stem": [1]},
        reads={"logits": [0, 4]},
        carries={"stem_bn": [1]},
        dies={"sep/pointwise_kernel": {-2: [2, 3], -1: [0, 4]}},
        goes={"sep/depthwise_kernel": {-2: [1]}, "sep/bias": {0: [0, 4]}},
    )


def grouped():
    """Three groups: of two channels each read, of three each written."""
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 6, "stem")
    x = conv(x, 9, "groups", groups=3)
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(x))
    return Network(
        keras.Model(image, head(x)),
        writes={"stem": [1, 3, 5]},  # The second one of each group.
        reads={"logits": [0, 3, 6]},  # The first one of each group.
        carries={"stem_bn": [1, 3, 5], "bn": [0, 3, 6]},
        dies={"groups/kernel": {-2: [1], -1: [0, 3, 6]}},
        goes={"groups/bias": {0: [0, 3, 6]}},
    )


def whole_groups():
    """Groups that go as a whole: what they read, compute and write."""
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 6, "stem")
    x = conv(x, 9, "groups", groups=3)
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(x))
    model = keras.Model(image, head(x))
    return Network(
        prune_whole_groups(model),
        writes={"stem": [2, 3]},
        reads={"logits": [3, 4, 5]},
        carries={"stem_bn": [2, 3], "bn": [3, 4, 5]},
        goes={
            "groups/kernel": {-1: [3, 4, 5]},
            "groups/bias": {0: [3, 4, 5]},
        },
    )


def grouped_depthwise():
    """A depthwise convolution, as `Conv2D` with a group for each channel."""
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 4, "stem")
    x = conv(x, 8, "depth", groups=4)
    x = conv(x, 8, "depth2", groups=8, activation="relu")
    return Network(
        keras.Model(image, head(x)),
        writes={"stem": [0]},
        reads={"logits": [0, 1]},
        carries={"stem_bn": [0]},
        goes={
            "depth/kernel": {-1: [0, 1]},
            "depth/bias": {0: [0, 1]},
            "depth2/kernel": {-1: [0, 1]},
            "depth2/bias": {0: [0, 1]},
        },
    )


def transposed():
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 4, "stem")
    x = layers.Conv2DTranspose(5, 2, strides=2, name="up")(x)
    return Network(
        keras.Model(image, head(layers.ReLU()(x))),
        writes={"stem": [1]},
        reads={"logits": [0, 4]},
        carries={"stem_bn": [1]},
        dies={"up/kernel": {-1: [1], -2: [0, 4]}},
        goes={"up/bias": {0: [0, 4]}},
    )


def einsum():
    """Two heads of three channels; the heads stay, the channels may go."""
    image = keras.Input((6, 6, 2))
    x = conv(image, 4, "stem")
    x = layers.Reshape((36, 4))(x)
    x = layers.EinsumDense(
        "abc,cde->abde", (36, 2, 3), bias_axes="de", name="a"
    )(x)
    x = layers.Activation("tanh")(x)
    x = layers.EinsumDense(
        "abde,def->abf", (None, 5), bias_axes="f", name="b", activation="relu"
    )(x)
    x = layers.GlobalAveragePooling1D()(x)
    return Network(
        keras.Model(image, layers.Dense(3, name="logits")(x)),
        writes={"stem": [2]},
        reads={"logits": [4]},
        carries={},
        dies={"a/kernel": {0: [2], 2: [1]}, "b/kernel": {1: [1], 2: [4]}},
        goes={"a/bias": {1: [1]}, "b/bias": {0: [4]}},
    )


def normalized_each():
    """Instance normalization, and a learned slope for each value."""
    image = keras.Input((6, 6, 2))
    x = conv(image, 4, "stem")
    x = layers.GroupNormalization(groups=-1, name="norm")(x)
    x = layers.PReLU(name="slope")(x)
    x = layers.PReLU(shared_axes=[1, 2], name="slopes")(conv(x, 3, "a"))
    x = layers.PReLU(shared_axes=[1, 2, 3], name="one")(x)
    return Network(
        keras.Model(image, head(x)),
        writes={"stem": [1, 3], "a": [0]},
        reads={"a": [1, 3], "logits": [0]},
        carries={"norm": [1, 3], "slope": [1, 3], "slopes": [0]},
    )


def shuffling():
    """A channel shuffle: what comes from both groups goes together."""
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 6, "stem")
    x = layers.Reshape((6, 6, 2, 3))(x)
    x = layers.Permute((1, 2, 4, 3))(x)
    x = layers.Reshape((6, 6, 6))(x)
    x = conv(x, 5, "a")
    return Network(
        keras.Model(image, head(layers.ReLU()(x))),
        writes={"stem": [1, 4], "a": [2]},
        reads={"a": [2, 3], "logits": [2]},
        carries={"stem_bn": [1, 4]},
    )


def splitting():
    """`ops.split`, an index, a step backwards, and `ops.concatenate`."""
    ops = keras.ops
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 6, "stem")
    left, right = ops.split(x, 2, axis=-1)
    left = conv(left, 3, "a") + 1.0
    x = ops.concatenate([left, right[..., 1:], x[:, :, :, ::-2]], axis=-1)
    x = ops.mean(ops.relu(x), axis=(1, 2))
    return Network(
        keras.Model(image, layers.Dense(3, name="logits")(x)),
        # Left 0, 1, 2; right 3, 4, 5, of which 4 and 5 are read; and 5, 3, 1.
        writes={"stem": [1, 4], "a": [0]},
        reads={"a": [1], "logits": [0, 3, 7]},
        carries={"stem_bn": [1, 4]},
    )


def operating():
    """Residual blocks and squeeze and excitation, without a single layer."""
    ops = keras.ops
    image = keras.Input((6, 6, 2))
    x = ops.relu(conv(image, 5, "stem"))
    x = x + 0.5 * conv(x, 5, "a")
    scale = ops.mean(x, axis=[1, 2], keepdims=True)
    x = x * ops.sigmoid(conv(scale, 5, "b", size=1)) - ops.max(
        scale, axis=1, keepdims=True
    )
    x = ops.pad(x, [(0, 0), (1, 0), (0, 1), (0, 0)])
    x = ops.transpose(x, (0, 3, 1, 2))
    x = ops.reshape(x, (-1, 5, 49))
    x = ops.clip(ops.sum(ops.tanh(x), axis=-1), -5.0, 5.0)
    return Network(
        keras.Model(image, layers.Dense(3, name="logits")(x)),
        writes={"stem": [1, 3], "a": [1, 3], "b": [1, 3]},
        reads={"a": [1, 3], "b": [1, 3], "logits": [1, 3]},
        carries={},
    )


def wrapped():
    """Convolutions of the lines of an image, each by itself, and by norm."""
    each = layers.TimeDistributed
    image = keras.Input((6, 6, 2))
    x = each(layers.Conv1D(4, 3, name="kernel"), name="a")(image)
    x = each(layers.BatchNormalization(), name="a_bn")(x)
    x = each(layers.SeparableConv1D(5, 3, depth_multiplier=2), name="sep")(x)
    norm = layers.SpectralNormalization
    x = norm(layers.Conv2D(4, 2, activation="tanh"), name="b")(x)
    x = norm(layers.Conv2DTranspose(6, 2), name="up")(x)
    return Network(
        keras.Model(image, head(x)),
        writes={},
        reads={"logits": [5]},
        carries={"a_bn": [1]},
        dies={
            "a/kernel": {-1: [1]},
            "sep/pointwise_kernel": {-2: [2, 3], -1: [0, 4]},
            "b/kernel": {-2: [0, 4], -1: [1, 2]},
            "up/kernel": {-2: [5], -1: [1, 2]},
        },
        goes={
            "a/bias": {0: [1]},
            "sep/depthwise_kernel": {-2: [1]},
            "sep/bias": {0: [0, 4]},
            "b/bias": {0: [1, 2]},
            "b/vector_u": {-1: [1, 2]},
            "up/bias": {0: [5]},
            "up/vector_u": {-1: [1, 2]},
        },
    )


def lines():
    """What there is for sequences."""
    image = keras.Input((6, 6, 2))
    x = layers.Reshape((36, 2))(image)
    x = layers.Conv1D(4, 3, name="a")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="a_bn")(x))
    x = layers.ZeroPadding1D(2)(layers.SpatialDropout1D(0.0)(x))
    x = layers.DepthwiseConv1D(2, depth_multiplier=2, name="depth")(x)
    x = layers.MaxPooling1D(2)(layers.LeakyReLU()(x))
    x = layers.SeparableConv1D(5, 2, name="sep")(x)
    x = layers.Cropping1D(1)(layers.UpSampling1D(2)(layers.ELU()(x)))
    x = layers.Conv1DTranspose(4, 2, name="up")(x)
    x = layers.GlobalMaxPooling1D()(layers.AveragePooling1D(2)(x))
    return Network(
        keras.Model(image, layers.Dense(3, name="logits")(x)),
        writes={"a": [1]},
        reads={"logits": [2]},
        carries={"a_bn": [1]},
        dies={
            "sep/pointwise_kernel": {-2: [2, 3], -1: [0, 4]},
            "up/kernel": {-1: [0, 4], -2: [2]},
        },
        goes={
            "depth/kernel": {-2: [1]},
            "depth/bias": {0: [2, 3]},
            "sep/depthwise_kernel": {-2: [2, 3]},
            "sep/bias": {0: [0, 4]},
            "up/bias": {0: [2]},
        },
    )


def volumes():
    """What there is for volumes, but pooling: that has no float64 on a CPU."""
    image = keras.Input((6, 6, 2))
    x = layers.Reshape((6, 3, 2, 2))(image)
    x = layers.Conv3D(4, 2, name="a")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="a_bn")(x))
    x = layers.ZeroPadding3D(1)(layers.SpatialDropout3D(0.0)(x))
    x = layers.Conv3DTranspose(5, 2, name="up")(x)
    x = layers.Cropping3D(1)(layers.UpSampling3D(2)(layers.ELU()(x)))
    x = layers.GlobalMaxPooling3D()(x)
    return Network(
        keras.Model(image, layers.Dense(3, name="logits")(x)),
        writes={"a": [0, 2]},
        reads={"logits": [3]},
        carries={"a_bn": [0, 2]},
        dies={"up/kernel": {-1: [0, 2], -2: [3]}},
        goes={"up/bias": {0: [3]}},
    )


def passing():
    """What leaves each channel of an image by itself."""
    image = keras.Input((6, 6, 2))
    x = layers.LeakyReLU()(conv(image, 4, "stem"))
    x = layers.MaxPooling2D(2, strides=1)(layers.ZeroPadding2D(1)(x))
    x = layers.Cropping2D(1)(layers.UpSampling2D(2)(x))
    x = layers.Resizing(9, 9)(layers.CenterCrop(8, 8)(x))
    x = layers.Rescaling([0.5, 1.0, 1.5, 2.0], [0.1, 0.2, 0.3, 0.4])(x)
    for layer_class in (
        *(layers.Dropout, layers.AlphaDropout, layers.SpatialDropout2D),
        *(layers.GaussianDropout, layers.GaussianNoise),
    ):
        x = layer_class(0.0)(x)
    x = conv(layers.Identity()(layers.ELU()(x)), 5, "a", activation="tanh")
    return Network(
        keras.Model(image, head(x)),
        writes={"stem": [0, 2], "a": [4]},
        reads={"a": [0, 2], "logits": [4]},
        carries={},
    )


def augmenting():
    """Random transforms of all channels alike, and pooling to a given size."""
    image = keras.Input((6, 6, 2))
    x = conv(image, 4, "stem")
    dtype = keras.config.floatx()  # TensorFlow shifts no bfloat16 backwards.
    for layer in (
        layers.RandomFlip(seed=1),
        layers.RandomTranslation(0.2, 0.2, seed=2, dtype=dtype),
        layers.RandomCrop(5, 5, seed=3),
    ):
        x = layer(x)
    x = layers.AdaptiveMaxPooling2D(4)(conv(x, 5, "a", activation="tanh"))
    x = layers.AdaptiveAveragePooling2D(2)(x)
    return Network(
        keras.Model(image, head(x)),
        writes={"stem": [0, 2], "a": [4]},
        reads={"a": [0, 2], "logits": [4]},
        carries={},
    )


def applying():
    """The layers that `keras.applications` defines for itself."""
    layer_scale, depth, scale = (
        keras_internals.application_layer(*name)
        for name in (
            ("convnext", "LayerScale"),
            ("convnext", "StochasticDepth"),
            ("inception_resnet_v2", "CustomScaleLayer"),
        )
    )
    image = keras.Input((6, 6, 2))
    x = conv(image, 4, "stem")
    branch = layer_scale(0.5, 4, name="gamma")(conv(x, 4, "a"))
    # In training it multiplies by float32, whatever the policy.
    x = layers.Add()([x, depth(0.0, dtype=keras.config.floatx())(branch)])
    x = scale(0.5)([x, conv(x, 4, "b")])
    names = ["stem", "a", "b"]
    return Network(
        keras.Model(image, head(layers.ReLU()(x))),
        writes=dict.fromkeys(names, [1, 3]),
        reads=dict.fromkeys(["a", "b", "logits"], [1, 3]),
        carries={"gamma": [1, 3]},
    )


def joining():
    """Every way in which two tensors become one of the same channels."""
    image = keras.Input((6, 6, 2))
    x = conv(image, 4, "stem")
    for join in (
        *(layers.Subtract, layers.Average),
        *(layers.Maximum, layers.Minimum, layers.Multiply, layers.Add),
    ):
        name = join.__name__.lower()
        x = join(name=f"{name}_join")([x, conv(image, 4, name)])
    names = [
        *("stem", "subtract", "average"),
        *("maximum", "minimum", "multiply", "add"),
    ]
    return Network(
        keras.Model(image, head(x)),
        writes={name: [1, 2] for name in names},
        reads={"logits": [1, 2]},
        carries={},
    )


def recurrent():
    """Recurrent layers, which read with a kernel and keep what they compute."""
    image = keras.Input((6, 6, 2))
    x = layers.Reshape((2, 72))(conv(image, 4, "stem"))
    x = layers.TimeDistributed(layers.Dense(5, name="each"), name="steps")(x)
    x = layers.GRU(4, return_sequences=True, name="gru")(x)
    x = layers.Dense(5, name="mixed")(x)
    x = layers.LSTM(3, activation="tanh", name="lstm")(x)
    return Network(
        keras.Model(image, layers.Dense(3, name="logits")(x)),
        writes={"mixed": [0, 3]},
        reads={},
        carries={},
        dies={
            "steps/kernel": {-1: [1, 2]},
            "gru/kernel": {0: [1, 2]},
            "lstm/kernel": {0: [0, 3]},
        },
        goes={"steps/bias": {-1: [1, 2]}},
    )


def attending():
    """All that leaves an attention: inputs, heads, values, and outputs."""
    image = keras.Input((6, 6, 2))
    x = layers.Reshape((12, 12))(conv(image, 4, "stem"))
    x = layers.Dense(6, name="steps")(x)
    y = layers.MultiHeadAttention(3, 2, name="self")(x, x)
    y = layers.MultiHeadAttention(2, 2, value_dim=3, name="cross")(
        layers.Dense(6, name="query")(y), layers.Add()([x, y])
    )
    x = layers.Dense(6, activation="relu", name="up")(y)
    x = layers.GlobalAveragePooling1D()(x)
    written = "query", "key", "value"
    return Network(
        keras.Model(image, layers.Dense(3, name="logits")(x)),
        writes={"steps": [3, 5], "query": [0], "up": [1, 4]},
        reads={"query": [3, 5], "up": [2], "logits": [1, 4]},
        carries={},
        dies={
            **{f"self/{x}/kernel": {0: [3, 5], 1: [0, 2]} for x in written},
            "self/attention_output/kernel": {0: [0, 2], 2: [3, 5]},
            "cross/query/kernel": {0: [0], 1: [1]},
            "cross/key/kernel": {0: [3, 5], 1: [1]},
            "cross/value/kernel": {0: [3, 5], 1: [1], 2: [0]},
            "cross/attention_output/kernel": {0: [1], 1: [0], 2: [2]},
        },
        goes={
            **{f"self/{x}/bias": {0: [0, 2]} for x in written},
            "self/attention_output/bias": {0: [3, 5]},
            **{f"cross/{x}/bias": {0: [1]} for x in written},
            "cross/value/bias": {0: [1], 1: [0]},
            "cross/attention_output/bias": {0: [2]},
        },
    )


def sharing_heads():
    """Heads of queries, in pairs that read one head of keys and values."""
    image = keras.Input((6, 6, 2))
    x = layers.Reshape((12, 12))(conv(image, 4, "stem"))
    x = layers.Dense(6, name="steps")(x)
    y = layers.GroupQueryAttention(2, 6, 3, name="shared")(x, x)
    x = layers.Dense(6, activation="relu", name="up")(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling1D()(x)
    gone = {"query": [0, 1, 4, 5], "key": [0, 2], "value": [0, 2]}
    return Network(
        keras.Model(image, layers.Dense(3, name="logits")(x)),
        writes={"steps": [2], "up": [1, 4]},
        reads={"up": [2], "logits": [1, 4]},
        carries={},
        dies={
            **{
                f"shared/{x}/kernel": {0: [2], 1: heads}
                for x, heads in gone.items()
            },
            "shared/attention_output/kernel": {0: [0, 1, 4, 5], 2: [2]},
        },
        goes={
            **{f"shared/{x}/bias": {0: heads} for x, heads in gone.items()},
            "shared/attention_output/bias": {0: [2]},
        },
    )


ALL = [
    recurrent,
    attending,
    lines,
    volumes,
    passing,
    augmenting,
    applying,
    joining,
    wrapped,
    depthwise,
    separable,
    grouped,
    grouped_depthwise,
    whole_groups,
    transposed,
    einsum,
    normalized_each,
    shuffling,
    splitting,
    operating,
    plain,
    residual,
    projection,
    bottleneck,
    concatenating,
    nested,
    shared,
    sequential,
    flattening,
    squeezing,
    sharing_heads,
]

# Of each kind one: these are enough to say once more, in another way, what
# has been said of all of them.
_SOME = {
    *(recurrent, lines, wrapped, depthwise, grouped, einsum, splitting),
    *(residual, concatenating, nested, flattening),
}


def sampled(*values):
    """Returns parameters: all networks, with each of `values` if there are any.

    Some of each kind are for `make test`; the others say the same of more
    networks, which `make test-long` does.
    """
    return [
        pytest.param(
            *(build, *value), marks=() if build in _SOME else pytest.mark.long
        )
        for value in ([(v,) for v in values] or [()])
        for build in ALL
    ]


def paired(first, second):
    """Returns parameters: each network with one of two values, in turns.

    Both values meet networks of every kind, at half the price of all pairs.
    """
    return [(build, (first, second)[i % 2]) for i, build in enumerate(ALL)]
