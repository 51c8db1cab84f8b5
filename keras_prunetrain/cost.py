"""What one example costs to compute, to train on and to keep in memory.

The cost model is the one behind the paper's numbers: only multiplications with
kernels are flops, a training step is three forward passes (forward, gradient
of the weights, gradient of the data), and BN costs memory traffic instead.
"""

import dataclasses
from collections.abc import Mapping

import keras

from keras_prunetrain.channels.rules import macs_of, saved_by
from keras_prunetrain.checks import is_count, is_number
from keras_prunetrain.example_shapes import layer_calls
from keras_prunetrain.keras_internals import is_graph


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


def model_cost(model, input_shapes=None):
    """Counts what a model costs, in total and layer by layer.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model_cost(model).forward_flops
    64

    Args:
        model: A functional or `Sequential` model. A layer that is called twice
            costs twice, but has its parameters once. A nested model costs what
            it does for the sizes that it is called with.
        input_shapes: Sizes of one example, without the batch, for a model that
            takes any: a tuple, `(224, 224, 3)`, or a list with one for each of
            `model.inputs`. Defaults to `None`, the sizes of its inputs.

    Returns:
        A `Cost`. Layers with a kernel whose `LayerRule` does not say how many
        multiply-accumulates they take count 0 flops, and a warning is logged.

    Raises:
        ValueError: If `model` has no graph, if `input_shapes` does not fit its
            inputs, if a size is not known, or if a `LayerRule` counts wrongly.
    """
    if not is_graph(model):
        raise ValueError(
            "`model_cost` follows a model's graph, which only functional and "
            "built Sequential models have. Build the model with "
            "`keras.Model(inputs, outputs)`, or give the Sequential an "
            f"`Input`. Received: model={model}"
        )
    tallies = {}
    for path, operation, read, written in layer_calls(model, input_shapes):
        _check_sizes(path, read + written)
        tally = tallies.setdefault(path, _Tally(operation))
        tally.add_call(read, written)
    return _total(model, tallies)


def cost_if_known(model, input_shapes=None):
    """Returns `model_cost(model, input_shapes)`, `None` if sizes are unknown.

    A model may train on images of any size, or on different ones.
    """
    try:
        return model_cost(model, input_shapes)
    except _UnknownSizes:
        return None


class _UnknownSizes(ValueError):
    """A model's cost depends on sizes that nobody knows."""


def communication_bytes(gradient_bytes, devices, devices_per_machine=None):
    """Returns the bytes that each device sends in one update.

    A ring all-reduce passes each gradient around twice, in as many parts as
    there are devices: `2 * (devices - 1) / devices` of it leave each device. In
    the hierarchical one (paper, figure 11), the devices of a machine first add
    up among themselves, each then exchanges its part with its counterparts on
    the other machines, and last with its own machine again. That is as much in
    all, but only a part of it goes over the slow links between machines.

    Args:
        gradient_bytes: Number, at least 0. `gradient_bytes(model)`.
        devices: Integer, at least 1. All devices together; a single one sends
            nothing.
        devices_per_machine: Integer that divides `devices`: only the bytes that
            go to other machines, in a hierarchical all-reduce, are counted.
            Defaults to `None`, all of them.

    Returns:
        Float.

    Raises:
        ValueError: If an argument is out of its range.
    """
    if not is_number(gradient_bytes) or gradient_bytes < 0:
        raise ValueError(
            "`gradient_bytes` must be a number of at least 0, that of "
            "`keras_prunetrain.gradient_bytes(model)`. Received: "
            f"gradient_bytes={gradient_bytes}"
        )
    group = 1 if devices_per_machine is None else devices_per_machine
    if not (is_count(devices, 1) and is_count(group, 1)) or devices % group:
        raise ValueError(
            "There must be at least one device, and each machine must have as "
            f"many. Received: devices={devices}, devices_per_machine="
            f"{devices_per_machine}"
        )
    machines = devices // group
    return 2 * (gradient_bytes / group) * (machines - 1) / machines


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
            raise _UnknownSizes(
                "`model_cost` can only count with known sizes. Give the "
                "model's `Input` a fixed shape, for example "
                "`keras.Input((32, 32, 3))`, or pass `input_shapes`. Received: "
                f"a tensor of shape {(None, *feature.shape)} at layer '{path}'"
            )
