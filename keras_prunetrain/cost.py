"""What one example costs to compute, to train on and to keep in memory.

The cost model is the one behind the paper's numbers: only multiplications with
kernels are flops, a training step is three forward passes (forward, gradient
of the weights, gradient of the data), and BN costs memory traffic instead.
"""

import dataclasses
import math
from collections.abc import Mapping

import keras

from keras_prunetrain.channels.rules import macs_of, saved_by
from keras_prunetrain.keras_internals import calls, is_graph
from keras_prunetrain.variables import item_bytes


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of a model or layer; all but `parameters` are for one example.

    The two gradients cost as many flops as the forward pass, each, as the paper
    counts: also for layers that do not train, whose weights need no gradient,
    and for those that read the model's input, which needs none.

    Attributes:
        parameters: Number of weights, trainable or not.
        forward_flops: 2 x multiply-accumulates of the kernels.
        weight_gradient_flops: Those of the gradient of the kernels.
        data_gradient_flops: Those of the gradient of what the kernels read.
        training_flops: The sum of the three.
        activation_bytes: Size of the activations that the forward pass keeps
            for the backward pass. A tensor that several layers keep is one
            tensor in the model's cost, so the layers' numbers add up to at
            least the model's.
        normalization_bytes: Traffic of `BatchNormalization`: its input read
            or written 8 times, 3 of them forward.
        per_layer: Dict from the name of each layer to its own `Cost`, over
            all of its calls. Layers of a nested model are named
            `"model/layer"`.
    """

    parameters: int
    forward_flops: int
    weight_gradient_flops: int
    data_gradient_flops: int
    training_flops: int = dataclasses.field(init=False)
    activation_bytes: int
    normalization_bytes: int
    per_layer: Mapping[str, "Cost"] = dataclasses.field(
        default_factory=dict, repr=False
    )

    def __post_init__(self):
        gradients = self.weight_gradient_flops + self.data_gradient_flops
        training_flops = self.forward_flops + gradients
        object.__setattr__(self, "training_flops", training_flops)


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
        A `Cost`. Layers with a kernel whose `LayerRule` does not say how many
        multiply-accumulates they take count 0 flops, and a warning is logged.
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
        shapes = [[x.shape for x in features] for features in (read, written)]
        self.macs += macs_of(self.operation, *shapes)
        if isinstance(self.operation, keras.layers.BatchNormalization):
            self.normalization_bytes += 8 * read[0].bytes(self.operation)
        for feature in _saved(self.operation, read, written):
            self.kept[feature] = feature.bytes(self.operation)

    def cost(self):
        is_layer = isinstance(self.operation, keras.layers.Layer)
        return Cost(
            parameters=self.operation.count_params() if is_layer else 0,
            forward_flops=2 * self.macs,
            # Each multiplies the gradient of the output with one factor of the
            # forward pass: what the kernel has read, and the kernel.
            weight_gradient_flops=2 * self.macs,
            data_gradient_flops=2 * self.macs,
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
    summed = (
        *("forward_flops", "weight_gradient_flops", "data_gradient_flops"),
        "normalization_bytes",
    )
    return Cost(
        parameters=model.count_params(),
        activation_bytes=sum(kept.values()),
        per_layer=per_layer,
        **{
            name: sum(getattr(cost, name) for cost in per_layer.values())
            for name in summed
        },
    )


def _saved(operation, read, written):
    """Returns the features that the backward pass of a call needs."""
    return {"inputs": read, "outputs": written, "nothing": []}[
        saved_by(operation)
    ]


def _check_sizes(path, features):
    for feature in features:
        if None in feature.shape:
            raise ValueError(
                "`model_cost` can only count with fixed sizes. Give the "
                "model's `Input` a fixed shape, for example "
                "`keras.Input((32, 32, 3))`. Received: a tensor of shape "
                f"{feature.tensor.shape} at layer '{path}'"
            )
