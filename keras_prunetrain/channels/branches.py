"""Residual branches that only add a constant, and what leaves with them.

The paper's layer removal: once all channels inside a residual branch are dead,
the branch adds the same constant to every image and every pixel, the output of
its last normalization for zeros. The addition then needs no branch.
"""

import collections
from typing import NamedTuple

import numpy as np

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.constants import follow_constants
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
    """Finds the additions with constant inputs, and the layers that can leave.

    Args:
        model: A functional model.
        numbering: Its `Numbering`.
        alive: Bool array, shape `(numbering.size,)`.
        skip: Keys of layers and nested models that must stay as they are.

    Returns:
        Dict from the `id` of an addition's output tensor to its `Branch`, and
        the frozenset of the keys of all layers that the outputs of `model` do
        not need any more.
    """
    dead = {
        label.layer
        for label in numbering.kernels()
        if not alive[label.numbers].any()
    }
    if not dead:
        return {}, frozenset()
    found = _constant_summands(model, numbering, dead)
    skipped = {k for key in skip for k in numbering.keys_within(key)}
    branches = {
        output: branch
        for output, branch in found.items()
        if skipped.isdisjoint(_unneeded(model, numbering, {output: branch}))
    }
    return branches, _unneeded(model, numbering, branches)


def needed_calls(model, branches):
    """Returns the calls of `model` that its outputs need, in running order.

    Calls inside nested models are not among them.

    Args:
        model: A functional model.
        branches: The dict that `constant_branches` returns.
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
    """Returns the keys of the layers that no output of `model` needs."""
    layers = numbering.layers
    # By the layer: one that also stands in another model has two keys.
    needed = {id(layers[key]) for key in _needed_layers(model, branches, "")}
    return frozenset(key for key in layers if id(layers[key]) not in needed)


def _needed_layers(model, branches, prefix):
    for call in needed_calls(model, branches):
        key = prefix + call.operation.name
        yield key
        if keras_internals.is_graph(call.operation):
            yield from _needed_layers(call.operation, branches, f"{key}/")


def _constant_summands(model, numbering, dead):
    """Returns a dict from the `id` of an addition's output to its `Branch`.

    Only of additions that an input can leave.
    """
    silent = {
        key: np.ones(len(numbering.outputs[key][0].numbers), bool)
        for key in dead
    }
    visits = follow_constants(model, numbering, silent)
    # An operation that is called twice may not lose a branch in both calls.
    times = collections.Counter(id(x.call.operation) for x in visits)
    # The name of an output is that of its layer, which stays for that reason.
    outputs = set(map(id, model.outputs))
    found = {}
    for key, call, inputs, _ in visits:
        rule = rule_for(call.operation)
        output = call.outputs[0]
        shapes = {x.shape for x in (*call.inputs, output)}
        constants = [x is not None and bool(x.known.all()) for x in inputs]
        if (
            rule is None
            or rule.constants != "add"
            or not any(constants)
            or all(constants)
            or len(shapes) > 1
            or id(output) in outputs
            or times[id(call.operation)] > 1
        ):
            continue
        constant = sum(
            x.values
            for x, is_constant in zip(inputs, constants, strict=True)
            if is_constant
        )
        # An offset per channel can be added on the last axis only.
        axis = numbering.outputs[key][0].axis
        if axis == len(output.shape) - 1 or not constant.any():
            stay = tuple(i for i, x in enumerate(constants) if not x)
            found[id(output)] = Branch(key, stay, constant)
    return found
