"""What a model costs as a function of the channels that stay.

The cost is a sum of terms. Each term is a product: a kernel's flops are
proportional to the number of channels that it reads times the number that it
writes, a weight's size is to those along its axes, and an activation's bytes to
those of the tensor. So the cost after a cut is known without making the cut.
"""

import collections
from collections.abc import Mapping
from typing import NamedTuple

import keras
import numpy as np

from keras_prunetrain.channels import macs
from keras_prunetrain.channels.labels import Numbering
from keras_prunetrain.channels.rules import rule_for, saved_by
from keras_prunetrain.cost import Cost, model_cost
from keras_prunetrain.example_shapes import InputShapes, layer_calls

# Attributes of `Cost`, and the number of channel numbers that are not frozen.
QUANTITIES = ("forward_flops", "parameters", "activation_bytes", "channels")


class _Term(NamedTuple):
    """A part of the cost, proportional to the channels of each vector."""

    cost: float
    vectors: tuple[np.ndarray, ...]


class ChannelCosts:
    """One quantity of the cost of a model, for each choice of channels.

    The result is exact where the flops of each kernel of a layer are
    proportional to its size, as those of all layers of Keras are.

    Args:
        model: A functional model.
        numbering: Its `Numbering`.
        quantity: One of `QUANTITIES`.
        input_shapes: Shape of one example, as of `model_cost`.

    Attributes:
        total: Number, the cost of the model as it is.

    Raises:
        ValueError: As `model_cost`.
    """

    def __init__(
        self,
        model: keras.Model,
        numbering: Numbering,
        quantity: str,
        input_shapes: InputShapes = None,
    ):
        self._size = numbering.size
        if quantity == "channels":
            free = np.setdiff1d(
                np.arange(numbering.size), list(numbering.frozen)
            )
            self.total = len(free)
            self._terms = [_Term(self.total, (free,))] if len(free) else []
            return
        cost = model_cost(model, input_shapes)
        self.total = getattr(cost, quantity)
        if quantity == "forward_flops":
            projections = _projections(model, input_shapes)
            self._terms = _flops(numbering, cost, projections)
        elif quantity == "parameters":
            self._terms = _parameters(numbering, self.total)
        else:
            self._terms = _activations(model, numbering, input_shapes)

    def of(self, alive: np.ndarray) -> float:
        """Returns the cost of the model that keeps the channels `alive`.

        Args:
            alive: Bool array, shape `(numbering.size,)`.
        """
        return sum(
            term.cost * np.prod([alive[v].mean() for v in term.vectors])
            for term in self._terms
        )

    def shares(self, alive: np.ndarray) -> np.ndarray:
        """Returns what the removal of each channel alone saves, a fraction.

        Args:
            alive: Bool array, shape `(numbering.size,)`: the channels of the
                model from which the channel is removed.

        Returns:
            Float array, shape `(numbering.size,)`, in parts of the cost of the
            model that keeps `alive`.
        """
        saved = np.zeros(self._size)
        for term in self._terms:
            kept = [alive[v].mean() for v in term.vectors]
            for i, vector in enumerate(term.vectors):
                others = np.prod(kept[:i] + kept[i + 1 :])
                each = term.cost * others / len(vector)
                np.add.at(saved, vector, each)
        return saved / max(self.of(alive), 1e-300)


def _projections(model, input_shapes):
    """Returns a dict from the `id` of a kernel of an attention to its flops.

    Queries and values may differ in length, so the kernels differ in how often
    they are applied.
    """
    flops = collections.Counter()
    for _, operation, read, _ in layer_calls(model, input_shapes):
        rule = rule_for(operation)
        if rule is not None and rule.macs is macs.attention:
            shapes = [x.shape for x in read]
            for kernel, count in macs.of_projections(operation, shapes).items():
                flops[kernel] += 2 * count
    return flops


def _flops(
    numbering: Numbering, cost: Cost, projections: Mapping[int, int]
) -> list[_Term]:
    """Splits the flops of each layer between its kernels, by their sizes.

    Args:
        numbering: The `Numbering` of the model.
        cost: The `Cost` of the model.
        projections: As of `_projections`, for kernels that sizes do not tell.
    """
    kernels = _by_weight(
        x
        for x in numbering.labels
        # A depthwise kernel has one labelled axis; so has a matrix of state.
        if x.is_kernel or len(x.weight.shape) >= 3
    )
    labelled = {id(x.weight) for x in numbering.labels}
    sizes = {
        layer: sum(
            int(np.prod(weight.shape))
            for weight in numbering.layers[layer].weights
            if id(weight) in kernels or _is_fixed_kernel(weight, labelled)
        )
        for layer in {labels[0].layer for _, labels in kernels.values()}
    }
    flops = collections.Counter()  # A layer in two models has two keys.
    for key, layer_cost in cost.per_layer.items():
        flops[id(numbering.layers[key])] += layer_cost.forward_flops
    terms = []
    for weight, labels in kernels.values():
        layer = labels[0].layer
        share = int(np.prod(weight.shape)) / sizes[layer]
        of_layer = flops[id(numbering.layers[layer])]
        terms.append(
            _term(projections.get(id(weight), of_layer * share), labels)
        )
    counted = sum(term.cost for term in terms)
    return [*terms, _Term(cost.forward_flops - counted, ())]


def _is_fixed_kernel(weight, labelled):
    """Whether a weight takes flops that no cut changes: a recurrent kernel."""
    return (
        id(weight) not in labelled
        and len(weight.shape) >= 2
        and weight.name != "bias"  # Of a `GRU`, it is a matrix.
    )


def _parameters(numbering: Numbering, total: int) -> list[_Term]:
    terms = [
        _term(int(np.prod(weight.shape)), labels)
        for weight, labels in _by_weight(numbering.labels).values()
    ]
    counted = sum(term.cost for term in terms)
    return [*terms, _Term(total - counted, ())]


def _activations(
    model: keras.Model, numbering: Numbering, input_shapes: InputShapes
) -> list[_Term]:
    """Returns a term for each tensor that the backward pass needs, once."""
    kept = {}
    calls = layer_calls(model, input_shapes)
    for call, channels in zip(calls, numbering.calls.values(), strict=True):
        _, operation, read, written = call
        saved = saved_by(operation)
        if saved == "nothing":
            continue
        features, vectors = (
            (read, channels.read)
            if saved == "inputs"
            else (written, channels.written)
        )
        for feature, vector in zip(features, vectors, strict=True):
            size = feature.bytes(operation)
            before = kept.get(feature, (0, ()))[0]
            numbers = (vector.numbers,) if len(vector.numbers) else ()
            kept[feature] = (max(size, before), numbers)
    return [_Term(*entry) for entry in kept.values()]


def _by_weight(labels):
    """Returns a dict from the `id` of a weight to it and its labels."""
    found = {}
    for label in labels:
        entry = found.setdefault(id(label.weight), (label.weight, []))
        entry[1].append(label)
    return found


def _term(cost, labels):
    return _Term(cost, tuple(x.numbers for x in labels if len(x.numbers)))
