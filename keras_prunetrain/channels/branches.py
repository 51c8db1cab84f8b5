"""Finds the residual branches that only add a constant and can be removed.

This is the paper's layer removal. Once all channels inside a residual branch
are dead, the branch adds the same constant at every pixel of every image: the
output of its last normalization for zeros. That constant replaces the branch.
"""

import collections
from collections.abc import Iterable
from typing import NamedTuple

import keras
import numpy as np

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.constants import follow_constants
from keras_prunetrain.channels.labels import Numbering
from keras_prunetrain.channels.rules import rule_for


class Addition(NamedTuple):
    """An addition after its constant inputs are removed.

    Attributes:
        key: Key of the addition's layer.
        keep: Positions of the inputs that stay: those that are not constant.
        constant: Float array, shape `(channels,)`: the sum of the removed
            inputs, at inference.
    """

    key: str
    keep: tuple[int, ...]
    constant: np.ndarray


def constant_branches(
    model: keras.Model,
    numbering: Numbering,
    alive: np.ndarray,
    skip: Iterable[str] = (),
) -> tuple[dict[int, Addition], frozenset[str]]:
    """Finds additions with constant inputs, and the layers that can be removed.

    Args:
        model: A functional model.
        numbering: Its `Numbering`.
        alive: Bool array, shape `(numbering.size,)`.
        skip: Keys of layers and nested models that must stay as they are.

    Returns:
        Dict from the `id` of an addition's output tensor to the `Addition` that
        is left, and the frozenset of the keys of all layers that the outputs of
        `model` then no longer need.
    """
    dead = _dead_layers(numbering, alive)
    if not dead:
        return {}, frozenset()
    found = _constant_summands(model, numbering, dead)
    skipped = {k for key in skip for k in numbering.keys_within(key)}
    additions = {
        output: addition
        for output, addition in found.items()
        if skipped.isdisjoint(_unneeded(model, numbering, {output: addition}))
    }
    return additions, _unneeded(model, numbering, additions)


def _dead_layers(numbering, alive):
    """Returns the keys of the layers whose writing kernels are all dead.

    An attention whose queries are dead goes on computing from its values.
    """
    dead = {
        id(label.weight)
        for label in numbering.kernels()
        if not alive[label.numbers].any()
    }
    writing = collections.defaultdict(set)
    for label in numbering.kernels("out"):
        if not label.is_inner:
            writing[label.layer].add(id(label.weight))
    return {key for key, kernels in writing.items() if kernels <= dead}


def needed_calls(
    model: keras.Model, additions: dict[int, Addition]
) -> list[keras_internals.Call]:
    """Returns the calls of `model` that its outputs need, in running order.

    Calls inside nested models are left out.

    Args:
        model: A functional model.
        additions: The dict that `constant_branches` returns.
    """
    needed = set(map(id, model.outputs))
    result = []
    for call in reversed(keras_internals.calls(model)):
        if needed.isdisjoint(map(id, call.outputs)):
            continue
        result.append(call)
        addition = additions.get(id(call.outputs[0]))
        keep = range(len(call.inputs)) if addition is None else addition.keep
        needed.update(id(call.inputs[i]) for i in keep)
    return result[::-1]


def _unneeded(model, numbering, additions):
    """Returns the keys of the layers that no output of `model` needs."""
    layers = numbering.layers
    # Layers are compared by `id`: a layer in two models has two keys.
    needed = {id(layers[key]) for key in _needed_layers(model, additions, "")}
    return frozenset(key for key in layers if id(layers[key]) not in needed)


def _needed_layers(model, additions, prefix):
    for call in needed_calls(model, additions):
        key = prefix + call.operation.name
        yield key
        if keras_internals.is_graph(call.operation):
            yield from _needed_layers(call.operation, additions, f"{key}/")


def _constant_summands(model, numbering, dead):
    """Returns a dict from the `id` of an addition's output to its `Addition`.

    Additions whose inputs must all stay are left out.
    """
    silent = {
        key: np.ones(len(numbering.outputs[key][0].numbers), bool)
        for key in dead
    }
    visits = follow_constants(model, numbering, silent)
    # An operation called twice may have a constant branch in one call only.
    times = collections.Counter(id(x.call.operation) for x in visits)
    # Outputs of the model are named after their layers, so those layers stay.
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
        # `Rescaling` can add an offset per channel on the last axis only.
        axis = numbering.outputs[key][0].axis
        if axis == len(output.shape) - 1 or not constant.any():
            keep = tuple(i for i, x in enumerate(constants) if not x)
            found[id(output)] = Addition(key, keep, constant)
    return found
