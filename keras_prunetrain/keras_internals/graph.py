"""The private parts of Keras that describe a functional model's graph."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras


class Call(NamedTuple):
    """One call of an operation in a functional graph.

    Attributes:
        operation: The `keras.Operation` (mostly a layer) that was called.
        inputs: List of the `KerasTensor`s it was called with, in the order of
            the arguments of its `call`.
        outputs: List of the `KerasTensor`s it returned.
        arguments: All arguments; see `arguments_with`.
    """

    operation: keras.Operation
    inputs: list[keras.KerasTensor]
    outputs: list[keras.KerasTensor]
    arguments: Any


def is_graph(operation: Any) -> bool:
    """Whether `operation` is a model whose layers form a known graph."""
    return _function(operation) is not None


def graph_of(model: keras.Operation) -> keras.Model | None:
    """Returns the functional model that holds the graph of `model`.

    This is `model` itself, or the functional model inside of a `Sequential`;
    `None` if `model` has no graph.
    """
    return _function(model)


def calls(model: keras.Model) -> list[Call]:
    """Returns the `Call`s of a functional model, in order of execution.

    The public `Model.operations` has each operation once, but an operation may
    be called twice, or in several models. Only `Function._nodes_by_depth` says
    which calls make up this model.
    """
    nodes_by_depth = _function(model)._nodes_by_depth
    return [
        _call(node)
        for depth in sorted(nodes_by_depth, reverse=True)
        for node in nodes_by_depth[depth]
        if not node.is_input
    ]


def calls_of(operation: keras.Operation) -> list[Call]:
    """Returns the `Call`s of one operation in all models."""
    return [_call(x) for x in operation._inbound_nodes if not x.is_input]


def calls_reading(tensor: keras.KerasTensor) -> list[Call]:
    """Returns the `Call`s that read a symbolic tensor, in all models."""
    nodes = producer(tensor)._outbound_nodes
    return [
        _call(x) for x in nodes if any(y is tensor for y in x.input_tensors)
    ]


def _call(node):
    return Call(node.operation, _inputs(node), node.outputs, node.arguments)


def _inputs(node):
    """Returns the tensors that a node reads, in the order of the arguments.

    In `input_tensors`, named arguments are sorted by their names.
    """
    args, kwargs = node.arguments.args, node.arguments.kwargs
    if not any(map(keras.backend.is_keras_tensor, _flat(kwargs))):
        return node.input_tensors
    bound = _bound(node.operation, args, kwargs)
    if not bound:
        return node.input_tensors
    values = _flat(list(bound.values()))
    return [*filter(keras.backend.is_keras_tensor, values)]


def _flat(value):
    return keras.tree.flatten(value)


def _bound(operation, args, kwargs):
    """Returns a dict from the names of arguments to them, in `call`'s order."""
    try:
        signature = inspect.signature(operation.call)
        return signature.bind_partial(*args, **kwargs).arguments
    except (TypeError, ValueError):  # `call` has no signature, or another.
        return {}


def arguments_with(
    call: Call, values: Mapping[int, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns `(args, kwargs)` of `call` with its tensors replaced.

    Args:
        call: A `Call`.
        values: Dict from the `id` of each `KerasTensor` to its replacement.
    """
    return call.arguments.fill_in(values)


def has_array_arguments(call: Call) -> bool:
    """Whether `call` was made with an array or tensor that is not symbolic."""
    stand_ins = dict.fromkeys(map(id, call.inputs))
    return any(
        getattr(leaf, "shape", ())
        for leaf in keras.tree.flatten(arguments_with(call, stand_ins))
    )


def mask_position(call: Call) -> int | None:
    """Returns the index in `call.inputs` of the mask, `None` without a mask.

    Keras adds the mask of an `Embedding` or of a `Masking` to the arguments of
    the layers behind it, as `mask=`, and so to the inputs of their calls.
    """
    tensors = {id(x): x for x in call.inputs}
    _, kwargs = arguments_with(call, tensors)
    for i, x in enumerate(call.inputs):
        if x is kwargs.get("mask"):
            return i
    return None


def argument_position(call: Call, names: Sequence[str]) -> int | None:
    """Returns the index in `call.inputs` of an argument of the call.

    Args:
        call: A `Call` of a layer.
        names: Names of arguments. The first of them that is a tensor, and no
            list of tensors, counts.

    Returns:
        The index; `None` if none of these arguments is a tensor.
    """
    args, kwargs = arguments_with(call, {id(x): x for x in call.inputs})
    position, positions = 0, {}
    for name, value in _bound(call.operation, args, kwargs).items():
        tensors = [*filter(keras.backend.is_keras_tensor, _flat(value))]
        if tensors == [value]:
            positions[name] = position
        position += len(tensors)
    found = (positions[name] for name in names if name in positions)
    return next(found, None)


def operation_class(tensors: Any) -> type[keras.Operation]:
    """Returns the class of the operation that returned `tensors`.

    The functions of `keras.ops` are public; the classes of the operations that
    they add to a functional graph are private.

    Args:
        tensors: A `KerasTensor`, or a list of the outputs of one operation.
    """
    return type(producer(keras.tree.flatten(tensors)[0]))


def application_layer(
    module: str, name: str
) -> type[keras.layers.Layer] | None:
    """Returns a layer class of `keras.applications`, `None` if there is none.

    Layer classes that an architecture defines for itself have no public name.
    """
    path = f"keras.src.applications.{module}"
    try:
        return getattr(importlib.import_module(path), name, None)
    except ImportError:
        return None


def producer(tensor: keras.KerasTensor) -> keras.Operation:
    """Returns the operation that returned a `KerasTensor`."""
    return tensor._keras_history.operation


def structures(model: keras.Model) -> tuple[Any, Any]:
    """Returns the nested inputs and outputs of a functional model."""
    function = _function(model)
    return function._inputs_struct, function._outputs_struct


def _function(model):
    """Returns the functional model that holds a graph, `None` if none does.

    A `Sequential` keeps its graph in a functional model of its own.
    """
    if isinstance(model, keras.Sequential):
        return model._functional
    return model if hasattr(model, "_nodes_by_depth") else None
