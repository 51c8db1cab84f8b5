"""The cost of one example: flops, memory, and the gradients to exchange.

The counts are those behind the paper's numbers: only multiplications with
kernels are flops, a training step takes three times the forward pass (forward,
gradient of the weights, gradient of the data), and batch normalization costs
memory traffic instead.
"""

import dataclasses
from collections.abc import Mapping

import keras

from keras_prunetrain.channels.rules import macs_of, saved_by
from keras_prunetrain.checks import check_model, is_count, is_number
from keras_prunetrain.example_shapes import InputShapes, layer_calls
from keras_prunetrain.keras_internals import is_graph
from keras_prunetrain.sdgp.emulation import kept_share


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of a model or layer; all but `parameters` are for one example.

    As in the paper, each of the two gradients costs as many flops as the
    forward pass. This includes layers that do not train, whose weights need no
    gradient, and layers that read the model's input, which needs none.

    Attributes:
        parameters: Number of weights, trainable or not.
        forward_flops: 2 x multiply-accumulates of the kernels.
        weight_gradient_flops: Flops of the gradient of the kernels.
        data_gradient_flops: Flops of the gradient of the kernels' inputs. Of a
            layer that `with_sdgp` has changed, those that hardware for n:m
            sparsity computes.
        training_flops: Sum of the three.
        emulated_flops: Flops of the data gradients that only hardware for n:m
            sparsity leaves out. Elsewhere they are computed as well, with zeros
            (emulation), and add to `training_flops`. 0 for a dense training.
        activation_bytes: Size of the activations that the forward pass keeps
            for the backward pass. A tensor that several layers keep counts once
            for the model and once for each of the layers.
        normalization_bytes: Memory traffic of `BatchNormalization`: its input
            is read or written 8 times, 3 of them in the forward pass.
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
    emulated_flops: int = 0
    per_layer: Mapping[str, "Cost"] = dataclasses.field(
        default_factory=dict, repr=False
    )

    def __post_init__(self):
        gradients = self.weight_gradient_flops + self.data_gradient_flops
        training_flops = self.forward_flops + gradients
        object.__setattr__(self, "training_flops", training_flops)


def model_cost(model: keras.Model, input_shapes: InputShapes = None) -> Cost:
    """Counts what a model costs, in total and layer by layer.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model_cost(model).forward_flops
    64

    Args:
        model: A functional or `Sequential` model. A layer that is called twice
            costs twice, but has its parameters once. A nested model is counted
            at the sizes with which it is called.
        input_shapes: Shape of one example, without the batch, for a model that
            takes images of any size: a tuple, `(224, 224, 3)`, or a list of one
            for each of `model.inputs`. Defaults to `None`, the shapes of the
            model's inputs.

    Returns:
        A `Cost`. A layer that has a kernel and no `LayerRule.macs` counts 0
        flops, and a warning is logged. The pruned data gradients of
        `with_sdgp` count n / m of the dense ones, which needs n:m hardware:
        see `Cost.emulated_flops`.

    Raises:
        ValueError: If `model` is no model or has no graph, if `input_shapes`
            does not fit its inputs, if a size is not known, or if a
            `LayerRule` returns no number.
    """
    check_model(model)
    if not is_graph(model):
        raise ValueError(
            "`model_cost` follows a model's graph, which only functional and "
            "built Sequential models have. Build the model with "
            "`keras.Model(inputs, outputs)`, or give the Sequential an "
            "`Input`. Of a model that trains functional models that it holds, "
            f"pass one of these. Received: model={model}"
        )
    tallies = {}
    for path, operation, read, written in layer_calls(model, input_shapes):
        _check_sizes(path, read + written)
        tally = tallies.setdefault(path, _Tally(operation))
        tally.add_call(read, written)
    return _total(model, tallies)


def cost_if_known(
    model: keras.Model, input_shapes: InputShapes = None
) -> Cost | None:
    """Returns `model_cost(model, input_shapes)`, `None` if sizes are unknown.

    Training does not need the cost: a model may train on images of any size.
    """
    try:
        return model_cost(model, input_shapes)
    except _UnknownSizes:
        return None


class _UnknownSizes(ValueError):
    """The cost depends on sizes that neither the model nor the caller gives."""


def communication_bytes(
    gradient_bytes: float, devices: int, devices_per_machine: int | None = None
) -> float:
    """Returns the bytes that each device sends in one update.

    A ring all-reduce cuts the gradients into as many parts as there are devices
    and passes each part around twice: every device sends
    `2 * (devices - 1) / devices` of the gradients. In a hierarchical all-reduce
    (paper, figure 11), the devices of each machine first share the sums of
    their machine, each device then exchanges its part of the sums with its
    counterparts on the other machines, and the devices of each machine share
    the result. A device sends as many bytes in all, but only a part of them
    over the slow links between machines.

    Args:
        gradient_bytes: Number, at least 0: `gradient_bytes(model)`.
        devices: Integer, at least 1: the devices of all machines. A single
            device sends nothing.
        devices_per_machine: Integer that divides `devices`. With it, only the
            bytes that go to other machines in a hierarchical all-reduce count.
            Defaults to `None`, all bytes.

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
    are_counts = is_count(devices, 1) and is_count(group, 1)
    # `is_number` refuses an integer that no float can hold.
    if not are_counts or not is_number(devices) or devices % group:
        raise ValueError(
            "`devices` must be an integer of at least 1, and "
            "`devices_per_machine` an integer that divides it. Received: "
            f"devices={devices}, devices_per_machine={devices_per_machine}"
        )
    machines = devices // group
    return 2 * (float(gradient_bytes) / group) * (machines - 1) / machines


class _Tally:
    """Sums up the calls of one operation."""

    def __init__(self, operation):
        self.operation = operation
        self.macs = 0
        self.normalization_bytes = 0
        self.kept = {}

    def add_call(self, read, written):
        """Adds a call that reads and writes these lists of `Feature`s."""
        shapes = [[x.shape for x in features] for features in (read, written)]
        self.macs += macs_of(self.operation, *shapes)
        if isinstance(self.operation, keras.layers.BatchNormalization):
            self.normalization_bytes += 8 * read[0].bytes(self.operation)
        for feature in _saved(self.operation, read, written):
            self.kept[feature] = feature.bytes(self.operation)

    def cost(self):
        """Returns the `Cost` of the operation over all of its calls."""
        is_layer = isinstance(self.operation, keras.layers.Layer)
        left = round(2 * self.macs * kept_share(self.operation))
        return Cost(
            parameters=self.operation.count_params() if is_layer else 0,
            forward_flops=2 * self.macs,
            # Each gradient is the gradient of the output times the kernel's
            # input, or times the kernel.
            weight_gradient_flops=2 * self.macs,
            data_gradient_flops=left,
            emulated_flops=2 * self.macs - left,
            activation_bytes=sum(self.kept.values()),
            normalization_bytes=self.normalization_bytes,
        )


def _total(model, tallies):
    """Returns the `Cost` of a model from the tallies of its operations.

    A tensor that several operations keep counts once, at the largest size.
    """
    per_layer = {path: tally.cost() for path, tally in tallies.items()}
    kept = {}
    for tally in tallies.values():
        for feature, size in tally.kept.items():
            kept[feature] = max(size, kept.get(feature, 0))
    summed = (
        *("forward_flops", "weight_gradient_flops", "data_gradient_flops"),
        *("normalization_bytes", "emulated_flops"),
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
    saved = saved_by(operation)
    return {"inputs": read, "outputs": written, "nothing": []}[saved]


def _check_sizes(path, features):
    """Raises an error that names a layer whose tensors have no known size."""
    for feature in features:
        if None in feature.shape:
            raise _UnknownSizes(
                "`model_cost` can only count with known sizes. Give the "
                "model's `Input` a fixed shape, for example "
                "`keras.Input((32, 32, 3))`, or pass `input_shapes`. Received: "
                f"a tensor of shape {(None, *feature.shape)} at layer '{path}'"
            )
