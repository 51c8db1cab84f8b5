"""Finds constant channels to remove, and the variables that take them over.

A channel whose own kernel is dead is a constant. What another layer's kernel
makes of the constant can be added to that layer's bias, or subtracted from the
moving mean of the next batch normalization. This goes beyond the paper, which
keeps a channel as long as any kernel reads the channel.
"""

import collections

import keras
import numpy as np
from keras import ops

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.constants import Constant, follow_constants
from keras_prunetrain.channels.labels import Label, Numbering
from keras_prunetrain.channels.layer_rule import MIXES, OUTPUT
from keras_prunetrain.channels.rules import rule_for


class Folding:
    """Which channels can be folded in a model, and into which variables.

    Attributes:
        foldable: Bool array, shape `(numbering.size,)`: constant channels that
            kernels read, and that all these kernels can do without.
    """

    def __init__(
        self,
        model: keras.Model,
        numbering: Numbering,
        living: list[np.ndarray | None],
    ):
        """Follows the constants through a model.

        Args:
            model: A functional model.
            numbering: Its `Numbering`.
            living: For each label, the channels it keeps alive; see `Plan`.
        """
        self._numbering = numbering
        visits = follow_constants(model, numbering, _silent(numbering, living))
        self._visits = collections.defaultdict(list)
        self._readers = collections.defaultdict(list)
        for visit in visits:
            # By the layer's `id`: a layer in two models has two keys.
            self._visits[id(visit.call.operation)].append(visit)
            for x in visit.call.inputs:
                self._readers[id(x)].append(visit)
        graphs = (visit.call.operation for visit in visits)
        self._outputs = {
            id(x)
            for graph in (model, *filter(keras_internals.is_graph, graphs))
            for x in graph.outputs
        }
        read = np.zeros(numbering.size, bool)
        self.foldable = np.ones(numbering.size, bool)
        self.foldable[list(numbering.frozen)] = False
        for label in numbering.kernels("in"):
            read[label.numbers] = True
            self.foldable[label.numbers[~self._dispensable(label)]] = False
        self.foldable &= read

    def offsets(self, folded: np.ndarray) -> dict[int, np.ndarray]:
        """Returns the values to add to the variables that take over constants.

        Args:
            folded: Bool array, shape `(numbering.size,)`: the channels that are
                removed although a kernel reads them.

        Returns:
            Dict from the `id` of a variable to a float array of its shape.
        """
        out_axes = {
            id(label.weight): label.axis
            for label in self._numbering.kernels("out")
        }
        offsets = {}
        for label in self._numbering.kernels("in"):
            constant = self._constant(label)
            if constant is None:
                continue
            values = np.where(folded[label.numbers], constant.values, 0.0)
            if values.any():
                kernel = ops.convert_to_numpy(label.weight)
                axes = label.axis, out_axes[id(label.weight)]
                kernel = np.moveaxis(kernel, axes, (-2, -1))
                pixels = tuple(range(kernel.ndim - 2))
                made = values @ kernel.sum(axis=pixels, dtype="float64")
                variable, sign = self._taker(label)
                before = offsets.get(id(variable), 0.0)
                offsets[id(variable)] = before + sign * made
        return offsets

    def _visits_of(self, label):
        return self._visits[id(self._numbering.layers[label.layer])]

    def _constant(self, label: Label) -> Constant | None:
        """Returns the `Constant` that a kernel reads, if equal in all calls."""
        rule = rule_for(self._numbering.layers[label.layer])
        if rule.flow == MIXES:
            return None  # It may read another input than the first.
        (first, *others) = self._visits_of(label)
        constant = first.inputs[0]
        same = constant is not None and all(
            visit.inputs[0] is not None
            and np.array_equal(visit.inputs[0].values, constant.values)
            and np.array_equal(visit.inputs[0].known, constant.known)
            for visit in others
        )
        # The input channels of a grouped kernel, or of a kernel behind a
        # depthwise one, may differ from those of the layer.
        if not same or len(constant.values) != len(label.numbers):
            return None
        return constant

    def _dispensable(self, label: Label) -> np.ndarray:
        """Returns which of its input channels a kernel can do without.

        Bool array, shape of `label.numbers`.
        """
        constant = self._constant(label)
        if constant is None:
            return np.zeros(len(label.numbers), bool)
        if self._taker(label)[0] is not None:
            return constant.known
        return constant.known & (constant.values == 0.0)

    def _taker(self, label):
        """Returns the variable that takes over a constant, and with which sign.

        `(None, 0)` if no variable can, for example because padding changes the
        result at the border.
        """
        layer = self._numbering.layers[label.layer]
        target = rule_for(layer).ask("folds_into", layer)
        if target is None:
            return None, 0
        if target != OUTPUT:
            return _weight(layer, target), 1
        (visit, *others) = self._visits_of(label)
        output = visit.call.outputs[0]
        readers = self._readers[id(output)]
        if others or len(readers) != 1 or id(output) in self._outputs:
            return None, 0
        (reader,) = readers
        norm = reader.call.operation
        rule = rule_for(norm)
        if (
            rule is None
            or rule.subtracts is None
            or len(self._visits[id(norm)]) > 1
            or self._numbering.calls[reader.site].written[0].any_axis
        ):
            return None, 0
        return _weight(norm, rule.subtracts), -1


def _weight(layer, name):
    """Returns the weight of `layer` that the layer's rule calls `name`."""
    for weight in layer.weights:
        if keras_internals.weight_name(weight) == name:
            return weight
    raise ValueError(
        f"The rule for {type(layer).__name__} folds constants into the weight "
        f"'{name}', which '{layer.name}' does not have."
    )


def _silent(numbering, living):
    """Returns which output channels are dead in all kernels of a layer.

    Dict from the key of a layer to a bool array, shape `(output channels,)`.
    """
    silent = {}
    for label, lives in zip(numbering.labels, living, strict=True):
        if label.is_inner:
            continue  # What it writes are not the layer's outputs.
        if label.is_kernel and label.side == "out":
            dead = np.zeros(label.numbers.shape, bool)
            if lives is not None:
                dead = ~lives
            silent[label.layer] = dead & silent.get(label.layer, True)
    return silent
