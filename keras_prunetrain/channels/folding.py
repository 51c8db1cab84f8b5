"""Channels that are constants, and the biases that can take them over.

Beyond the paper, which removes a channel only if no kernel reads it either: a
channel that nothing computes any more is a constant, and what a kernel makes of
a constant can be added to its bias, or taken off the moving mean of the batch
normalization behind it.
"""

import collections

import numpy as np
from keras import ops

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.constants import follow_constants
from keras_prunetrain.channels.layer_rule import OUTPUT
from keras_prunetrain.channels.rules import rule_for


class Folding:
    """What can be folded in a model, and into what.

    Attributes:
        foldable: Bool array, shape `(numbering.size,)`.
    """

    def __init__(self, model, numbering, living):
        """Looks at a model.

        Args:
            model: A functional model.
            numbering: Its `Numbering`.
            living: For each label, which channels it holds alive; see `Plan`.
        """
        self._numbering = numbering
        visits = follow_constants(model, numbering, _silent(numbering, living))
        self._visits = collections.defaultdict(list)
        self._readers = collections.defaultdict(list)
        for visit in visits:
            # By the layer: one that is in two models has two keys.
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
            self.foldable[label.numbers[~self._can_take(label)]] = False
        self.foldable &= read

    def offsets(self, folded):
        """Returns what is to be added to which variables.

        Args:
            folded: Bool array, shape `(numbering.size,)`: the channels that go
                although a kernel reads them.

        Returns:
            Dict from the `id` of a variable to a float array of its shape.
        """
        found = {}
        for label in self._numbering.kernels("in"):
            constant = self._constant(label)
            if constant is None:
                continue
            values = np.where(folded[label.numbers], constant.values, 0.0)
            if values.any():
                kernel = ops.convert_to_numpy(label.weight)
                kernel = np.moveaxis(kernel, label.axis, -2)
                places = tuple(range(kernel.ndim - 2))
                made = values @ kernel.sum(axis=places, dtype="float64")
                variable, sign = self._taker(label)
                found[id(variable)] = sign * made
        return found

    def _visits_of(self, label):
        return self._visits[id(self._numbering.layers[label.layer])]

    def _constant(self, label):
        """Returns what is known of the channels that a kernel reads."""
        (first, *others) = self._visits_of(label)
        constant = first.inputs[0]
        same = constant is not None and all(
            visit.inputs[0] is not None
            and np.array_equal(visit.inputs[0].values, constant.values)
            and np.array_equal(visit.inputs[0].known, constant.known)
            for visit in others
        )
        # Not as they are read: in groups, or behind a depthwise kernel.
        if not same or len(constant.values) != len(label.numbers):
            return None
        return constant

    def _can_take(self, label):
        """Returns which of the channels that a kernel reads it can do without.

        Bool array, shape of `label.numbers`.
        """
        constant = self._constant(label)
        if constant is None:
            return np.zeros(len(label.numbers), bool)
        if self._taker(label)[0] is not None:
            return constant.known
        return constant.known & (constant.values == 0.0)

    def _taker(self, label):
        """Returns the variable that takes a constant over, and its sign.

        `(None, 0)` if there is none, or if padding changes the result at the
        border.
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
    """Returns the weight of that name, which a rule gives."""
    for weight in layer.weights:
        if keras_internals.weight_name(weight) == name:
            return weight
    raise ValueError(
        f"The rule for {type(layer).__name__} folds constants into the weight "
        f"'{name}', which '{layer.name}' does not have."
    )


def _silent(numbering, living):
    """Returns, for each layer, the channels that all its kernels leave dead."""
    silent = {}
    for label, lives in zip(numbering.labels, living, strict=True):
        if label.is_kernel and label.side == "out":
            dead = np.zeros(label.numbers.shape, bool)
            if lives is not None:
                dead = ~lives
            silent[label.layer] = dead & silent.get(label.layer, True)
    return silent
