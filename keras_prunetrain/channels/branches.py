"""Which branches compute nothing any more.

The paper's layer removal: once all channels inside a residual branch are dead,
the branch adds the same constant to every image and every pixel, namely what
its last normalization makes of zero. The addition then needs no branch.
"""

import collections
from typing import NamedTuple

import numpy as np
from keras import ops

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.rules import rule_for


class Branch(NamedTuple):
    """What becomes of an addition with inputs that are constant.

    Attributes:
        name: Key of the addition's layer.
        stay: Positions of the inputs that are no constants.
        constant: Float array, shape `(channels,)`: the sum of the inputs that
            leave, at inference.
    """

    name: str
    stay: tuple[int, ...]
    constant: np.ndarray


def constant_branches(model, numbering, alive, skip=()):
    """Finds the additions whose inputs are constants, and what goes with them.

    Args:
        model: A functional model.
        numbering: Its `Numbering`.
        alive: Bool array, shape `(numbering.size,)`.
        skip: Keys of layers that may not go, nor what is nested in them.

    Returns:
        Dict from the `id` of an addition's output tensor to its `Branch`, and
        the frozenset of the keys of all layers that the outputs of `model` do
        not need any more.
    """
    dead = {
        label.layer
        for label in numbering.labels
        if label.is_kernel and not alive[label.numbers].any()
    }
    if not dead:
        return {}, frozenset()
    search = _Search(numbering, dead, set(map(id, model.outputs)))
    search.run(model, [None] * len(model.inputs), "")
    skipped = {
        key
        for key in numbering.layers
        if any(key == k or key.startswith(f"{k}/") for k in skip)
    }
    branches = {
        output: branch
        for output, branch in search.branches().items()
        if skipped.isdisjoint(_unneeded(model, numbering, {output: branch}))
    }
    return branches, _unneeded(model, numbering, branches)


def needed_calls(model, branches):
    """Returns the calls of `model` that its outputs need, in running order.

    Only of this very graph; not those of models nested in it.
    """
    needed = set(map(id, model.outputs))
    result = []
    for call in reversed(keras_internals.calls(model)):
        if needed.isdisjoint(map(id, call.outputs)):
            continue
        result.append(call)
        branch = branches.get(id(call.outputs[0]))
        stay = range(len(call.inputs)) if branch is None else branch.stay
        needed.update(id(call.inputs[i]) for i in stay)
    return result[::-1]


def _unneeded(model, numbering, branches):
    needed = set(_needed_layers(model, branches, ""))
    return frozenset(numbering.layers) - needed


def _needed_layers(model, branches, prefix):
    for call in needed_calls(model, branches):
        key = prefix + call.operation.name
        yield key
        if keras_internals.is_graph(call.operation):
            yield from _needed_layers(call.operation, branches, f"{key}/")


class _Search:
    """Runs the graph on constants: arrays `(1, ..., channels, ...)` or None."""

    def __init__(self, numbering, dead, outputs):
        self._found = {}  # Output's id -> the addition's id, and its `Branch`.
        self._visits = collections.Counter()  # By the id of the layer.
        self._outputs = outputs  # Whose layers give the outputs their names.
        self._numbering = numbering
        self._dead = dead

    def branches(self):
        # What is called twice may not lose a branch in both of its calls.
        return {
            output: branch
            for output, (layer, branch) in self._found.items()
            if self._visits[layer] == 1
        }

    def run(self, model, values, prefix):
        def visit(call, values):
            return self._visit(call, values, prefix)

        return keras_internals.run_graph(model, values, visit)

    def _visit(self, call, values, prefix):
        layer = call.operation
        key = prefix + layer.name
        if keras_internals.is_graph(layer):
            return self.run(layer, values, f"{key}/")
        self._visits[id(layer)] += 1
        rule = rule_for(layer)
        # Calling a layer with an activity regularizer would add to its losses.
        active = getattr(layer, "activity_regularizer", None) is not None
        if rule is None or active or len(call.outputs) != 1:
            return [None] * len(call.outputs)
        constant = None
        if key in self._dead:
            axis = self._numbering.outputs[key][0].axis
            constant = _of_dead_layer(layer, call, axis)
        elif all(value is not None for value in values):
            if (rule.pointwise or rule.sums) and not _in_training(call):
                constant = _call(call, values)
        elif rule.sums and id(call.outputs[0]) not in self._outputs:
            self._remember(key, call, values)
        return [constant]

    def _remember(self, key, call, values):
        stay = tuple(i for i, value in enumerate(values) if value is None)
        shapes = {x.shape for x in (*call.inputs, *call.outputs)}
        axis = self._numbering.outputs[key][0].axis
        if len(stay) < len(values) and len(shapes) == 1:
            constant = sum(value for value in values if value is not None)
            # An offset per channel can be added on the last axis only.
            if axis == constant.ndim - 1 or not constant.any():
                branch = Branch(key, stay, constant.reshape(-1))
                self._found[id(call.outputs[0])] = id(call.operation), branch


def _in_training(call):
    """Whether `call` behaves as in training, always: Monte Carlo dropout."""
    stand_ins = dict.fromkeys(map(id, call.inputs))
    _, kwargs = keras_internals.arguments_with(call, stand_ins)
    return bool(kwargs.get("training"))


def _of_dead_layer(layer, call, axis):
    """Returns what a layer with a kernel of zeros makes of any input.

    That is what it makes of zeros: its bias, behind its activation.
    """
    shape = call.inputs[0].shape[1:]
    if None in shape:
        return None
    output = _call(call, [np.zeros((1, *shape))])
    place = [slice(0, 1)] * output.ndim
    place[axis] = slice(None)
    return output[tuple(place)]


def _call(call, values):
    """Returns, as an array, what the layer of `call` makes of `values`."""
    dtype = getattr(call.operation, "compute_dtype", None)
    tensors = {
        id(x): ops.convert_to_tensor(value, dtype)
        for x, value in zip(call.inputs, values, strict=True)
    }
    args, kwargs = keras_internals.arguments_with(call, tensors)
    output = call.operation(*args, **kwargs)
    return ops.convert_to_numpy(output).astype("float64")
