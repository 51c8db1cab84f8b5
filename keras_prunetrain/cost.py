"""What one example costs to compute, to train on and to keep in memory.

The cost model is the one behind the paper's numbers: only multiplications with
kernels are flops, a training step is three forward passes (forward, gradient
of the weights, gradient of the data), and BN costs memory traffic instead.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping
from typing import NamedTuple

import keras

from keras_prunetrain.keras_internals import calls, is_graph
from keras_prunetrain.variables import item_bytes


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of a model or layer; all but `parameters` are for one example.

    Attributes:
        parameters: Number of weights, trainable or not.
        forward_flops: 2 x multiply-accumulates of the kernels.
        training_flops: 3 x `forward_flops`.
        activation_bytes: What the forward pass keeps for the backward pass.
            A tensor that several layers keep is one tensor in the model's
            cost, so the layers' numbers add up to at least the model's.
        normalization_bytes: Traffic of `BatchNormalization`: its input read
            or written 8 times, 3 of them forward.
        per_layer: Dict from the name of each layer to its own `Cost`, over
            all of its calls. Layers of a nested model are named
            `"model/layer"`.
    """

    parameters: int
    forward_flops: int
    training_flops: int
    activation_bytes: int
    normalization_bytes: int
    per_layer: Mapping = dataclasses.field(default_factory=dict, repr=False)


def model_cost(model):
    """Counts what a model costs, in total and layer by layer.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model_cost(model).forward_flops
    64

    Args:
        model: A functional or `Sequential` model in which all sizes but the
            batch are fixed. A layer that is called twice costs twice, but has
            its parameters once.

    Returns:
        A `Cost`. Layers of a class that has a kernel and is not known here
        count 0 flops, and a warning is logged.
    """
    if not is_graph(model):
        raise ValueError(
            "`model_cost` follows a model's graph, which only functional and "
            "built Sequential models have. Build the model with "
            "`keras.Model(inputs, outputs)`, or give the Sequential an "
            f"`Input`. Received: model={model}"
        )
    tallies = {}
    inputs = [_Feature(tensor) for tensor in model.inputs]
    for path, operation, read, written in _layer_calls(model, inputs):
        _check_sizes(path, read + written)
        tally = tallies.setdefault(path, _Tally(operation))
        tally.add_call(read, written)
    return _total(model, tallies)


def known_cost(model):
    """Returns `model_cost(model)`, `None` if it takes images of any size."""
    if any(None in x.shape[1:] for x in model.inputs):
        return None
    return model_cost(model)


def communication_bytes(gradient_bytes, devices, devices_per_machine=None):
    """Returns what each device sends in one update, in bytes.

    A ring all-reduce passes each gradient around twice, in as many parts as
    there are devices: `2 * (devices - 1) / devices` of it leave each device. In
    the hierarchical one (paper, figure 11), the devices of a machine first add
    up among themselves, each then exchanges its part with its counterparts on
    the other machines, and last with its own machine again. That is as much in
    all, but only a part of it goes over the slow links between machines.

    Args:
        gradient_bytes: Number. `gradient_bytes(model)`.
        devices: Integer. How many there are in all; 1 sends nothing.
        devices_per_machine: Integer that divides `devices`: only what goes to
            other machines, in a hierarchical all-reduce, is counted. Defaults
            to `None`, all of it.

    Raises:
        ValueError: If a number of devices is out of its range.
    """
    group = 1 if devices_per_machine is None else devices_per_machine
    if devices < 1 or group < 1 or devices % group:
        raise ValueError(
            "There must be at least one device, and each machine must have as "
            f"many. Received: devices={devices}, devices_per_machine="
            f"{devices_per_machine}"
        )
    machines = devices // group
    return 2 * (gradient_bytes / group) * (machines - 1) / machines


def _macs_at_outputs(layer, read, written):
    # A kernel is (..., in_channels / groups, out_channels): groups are in it.
    return math.prod(layer.kernel.shape) * _positions(layer, written)


def _macs_at_inputs(layer, read, written):
    return math.prod(layer.kernel.shape) * _positions(layer, read)


def _macs_separable(layer, read, written):
    kernels = layer.depthwise_kernel, layer.pointwise_kernel
    weights = sum(math.prod(kernel.shape) for kernel in kernels)
    return weights * _positions(layer, written)


def _macs_dense(layer, read, written):
    return math.prod(layer.kernel.shape) * math.prod(read[0].shape[:-1])


def _macs_einsum(layer, read, written):
    left, right = layer.equation.split("->")[0].split(",")
    sizes = dict(zip(right.strip(), layer.kernel.shape, strict=True))
    contracted = math.prod(sizes[axis] for axis in sizes if axis in left)
    repeats = math.prod(read[0].shape) // contracted
    return math.prod(layer.kernel.shape) * repeats


def _macs_each_step(wrapper, read, written):
    steps = read[0].shape[0]
    one = [[_Shape(x.shape[1:]) for x in xs] for xs in (read, written)]
    return steps * _macs(wrapper.layer, *one)


def _macs_inside(wrapper, read, written):
    return _macs(wrapper.layer, read, written)


def _no_macs(layer, read, written):
    return 0


# Layer class -> function (layer, read features, written features) -> MACs of
# one call. Subclasses inherit the row of their base.
_MACS = {
    keras.layers.Conv1D: _macs_at_outputs,
    keras.layers.Conv2D: _macs_at_outputs,
    keras.layers.Conv3D: _macs_at_outputs,
    keras.layers.DepthwiseConv1D: _macs_at_outputs,
    keras.layers.DepthwiseConv2D: _macs_at_outputs,
    keras.layers.SeparableConv1D: _macs_separable,
    keras.layers.SeparableConv2D: _macs_separable,
    keras.layers.Conv1DTranspose: _macs_at_inputs,
    keras.layers.Conv2DTranspose: _macs_at_inputs,
    keras.layers.Conv3DTranspose: _macs_at_inputs,
    keras.layers.Dense: _macs_dense,
    keras.layers.EinsumDense: _macs_einsum,
    keras.layers.TimeDistributed: _macs_each_step,
    keras.layers.SpectralNormalization: _macs_inside,
    # Their weights of rank 2 and more are looked up or applied elementwise.
    keras.layers.Embedding: _no_macs,
    keras.layers.PReLU: _no_macs,
}

# The gradient of these needs no values of the forward pass at all ...
_KEEPS_NOTHING = (
    keras.layers.Add,
    keras.layers.Average,
    keras.layers.AveragePooling1D,
    keras.layers.AveragePooling2D,
    keras.layers.AveragePooling3D,
    keras.layers.Concatenate,
    keras.layers.Cropping1D,
    keras.layers.Cropping2D,
    keras.layers.Cropping3D,
    keras.layers.Flatten,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
    keras.layers.Identity,
    keras.layers.Permute,
    keras.layers.RepeatVector,
    keras.layers.Rescaling,
    keras.layers.Reshape,
    keras.layers.Subtract,
    keras.layers.UpSampling1D,
    keras.layers.UpSampling2D,
    keras.layers.UpSampling3D,
    keras.layers.ZeroPadding1D,
    keras.layers.ZeroPadding2D,
    keras.layers.ZeroPadding3D,
)

# ... and that of these is computed from the output, which the next layer
# mostly keeps as its input anyway. All others keep their inputs.
_KEEPS_OUTPUT = (keras.layers.ReLU, keras.layers.Softmax)
_ACTIVATIONS_KEEPING_OUTPUT = (
    keras.activations.relu,
    keras.activations.relu6,
    keras.activations.sigmoid,
    keras.activations.softmax,
    keras.activations.tanh,
)


class _Shape(NamedTuple):
    """Stands in for a `_Feature` where only the sizes of one are needed."""

    shape: tuple


@dataclasses.dataclass(eq=False)
class _Feature:
    """A tensor of one call: the same symbolic tensor may stand for several.

    (A nested model that is called twice has one set of symbolic tensors.)
    """

    tensor: keras.KerasTensor

    @property
    def shape(self):
        """Sizes of one example, without the batch axis."""
        return self.tensor.shape[1:]

    def bytes(self, operation):
        """Size of one example, in the dtype that `operation` casts it to."""
        dtype = keras.backend.standardize_dtype(self.tensor.dtype)
        if "float" in dtype and isinstance(operation, keras.layers.Layer):
            dtype = operation.compute_dtype
        return math.prod(self.shape) * item_bytes(dtype)


class _Tally:
    """Sums up the calls of one operation."""

    def __init__(self, operation):
        self.operation = operation
        self.macs = 0
        self.normalization_bytes = 0
        self.kept = {}

    def add_call(self, read, written):
        self.macs += _macs(self.operation, read, written)
        if isinstance(self.operation, keras.layers.BatchNormalization):
            self.normalization_bytes += 8 * read[0].bytes(self.operation)
        for feature in _kept(self.operation, read, written):
            self.kept[feature] = feature.bytes(self.operation)

    def cost(self):
        is_layer = isinstance(self.operation, keras.layers.Layer)
        return Cost(
            parameters=self.operation.count_params() if is_layer else 0,
            forward_flops=2 * self.macs,
            training_flops=3 * 2 * self.macs,
            activation_bytes=sum(self.kept.values()),
            normalization_bytes=self.normalization_bytes,
        )


def _layer_calls(model, inputs, prefix=""):
    """Yields `(path, operation, read, written)`, nested models taken apart.

    Args:
        model: A functional model.
        inputs: List of the `_Feature`s that this call of it reads.
        prefix: String that the paths begin with.

    Returns:
        List of the `_Feature`s that this call writes.
    """
    features = dict(zip(map(id, model.inputs), inputs, strict=True))
    for call in calls(model):
        path = prefix + call.operation.name
        read = [features[id(tensor)] for tensor in call.inputs]
        if is_graph(call.operation):
            written = yield from _layer_calls(call.operation, read, f"{path}/")
        else:
            written = [_Feature(tensor) for tensor in call.outputs]
            yield path, call.operation, read, written
        features.update(zip(map(id, call.outputs), written, strict=True))
    return [features[id(tensor)] for tensor in model.outputs]


def _total(model, tallies):
    per_layer = {path: tally.cost() for path, tally in tallies.items()}
    kept = {}
    for tally in tallies.values():
        for feature, size in tally.kept.items():
            kept[feature] = max(size, kept.get(feature, 0))
    costs = per_layer.values()
    return Cost(
        parameters=model.count_params(),
        forward_flops=sum(cost.forward_flops for cost in costs),
        training_flops=sum(cost.training_flops for cost in costs),
        activation_bytes=sum(kept.values()),
        normalization_bytes=sum(cost.normalization_bytes for cost in costs),
        per_layer=per_layer,
    )


def _macs(operation, read, written):
    for layer_class in type(operation).__mro__:
        if layer_class in _MACS:
            return _MACS[layer_class](operation, read, written)
    if any(len(x.shape) >= 2 for x in getattr(operation, "weights", ())):
        _warn_unknown(type(operation))
    return 0


@functools.cache
def _warn_unknown(layer_class):
    # Cached, so that a run that counts at every interval warns only once.
    logging.getLogger("keras_prunetrain").warning(
        "`model_cost` does not know how many flops a `%s` takes and counts 0.",
        layer_class.__name__,
    )


def _kept(operation, read, written):
    if isinstance(operation, keras.layers.Activation):
        if operation.activation in _ACTIVATIONS_KEEPING_OUTPUT:
            return written
        return [] if operation.activation is keras.activations.linear else read
    if isinstance(operation, _KEEPS_OUTPUT):
        return written
    return [] if isinstance(operation, _KEEPS_NOTHING) else read


def _positions(layer, features):
    """Number of pixels (or steps, or voxels) of a layer's feature map."""
    shape = features[0].shape
    first = layer.data_format == "channels_first"
    return math.prod(shape[1:] if first else shape[:-1])


def _check_sizes(path, features):
    for feature in features:
        if None in feature.shape:
            raise ValueError(
                "`model_cost` can only count with fixed sizes. Give the "
                "model's `Input` a fixed shape, for example "
                "`keras.Input((32, 32, 3))`. Received: a tensor of shape "
                f"{feature.tensor.shape} at layer '{path}'"
            )
