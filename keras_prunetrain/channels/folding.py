"""Channels that are constants, and the biases that can take them over.

Beyond the paper, which removes a channel only if no kernel reads it either: a
channel that nothing computes any more is a constant, and what a kernel makes of
a constant can be added to its bias, or taken off the moving mean of the batch
normalization behind it.
"""

import collections

import keras
import numpy as np
from keras import ops

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.constants import follow_constants


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

        `(None, 0)` if there is none, or if the kernel makes something else of a
        constant at the border, where it reads padding.
        """
        layer = self._numbering.layers[label.layer]
        if not _is_even(layer):
            return None, 0
        if layer.bias is not None:
            return layer.bias, 1
        (visit, *others) = self._visits_of(label)
        output = visit.call.outputs[0]
        readers = self._readers[id(output)]
        if others or len(readers) != 1 or id(output) in self._outputs:
            return None, 0
        norm = readers[0].call.operation
        if (
            type(norm) is keras.layers.BatchNormalization
            and len(self._visits[id(norm)]) == 1
            and layer.activation is keras.activations.linear
        ):
            return norm.moving_mean, -1
        return None, 0


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


def _is_even(layer):
    """Whether a kernel makes the same of a constant at every pixel."""
    if type(layer) is keras.layers.Dense:
        return True
    convolutions = keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D
    if type(layer) not in convolutions or layer.groups > 1:
        return False
    return layer.padding == "valid" or set(layer.kernel_size) == {1}
