"""The private part of TensorFlow that keeps the gradients of traced functions.

A `tf.custom_gradient` that is traced (`keras.ops.custom_gradient`,
`tf.nn.silu`, the exchange between replicas in an optimizer's step) adds a
function to a global registry, forever. The function refers to the graph in
which it was traced, and the graph refers to the memory of every variable that
it reads: the weights of a deleted model stay in memory.
"""

import importlib
import weakref
from collections.abc import Sequence

import keras

_COLLECTION = "keras_prunetrain/gradients"


def release_gradients(variables: Sequence[keras.Variable]) -> None:
    """Lets the traced functions that read `variables` be freed once unused.

    The registry holds the gradients that were added while these functions were
    traced; now the graphs of the functions hold these gradients instead. A
    function that is still in use can be differentiated as before. When its last
    reference goes, its gradients leave the memory and the registry.

    Args:
        variables: List of `keras.Variable`s.
    """
    if keras.backend.backend() != "tensorflow":
        return
    registry = _registry()
    handles = {id(handle) for handle in _handles(variables)}
    for name in list(registry):
        gradient = registry[name]["type"]
        graph = _graph_of(gradient)
        if graph is not None and _reads(graph, handles):
            graph.add_to_collection(_COLLECTION, gradient)
            registry[name]["type"] = _borrowed(gradient)
            weakref.finalize(graph, registry.pop, name, None).atexit = False


def _registry():
    """Returns the registry: for each name, a dict with the gradient as "type".

    The public `tf.RegisterGradient` can only add gradients to the registry.
    """
    ops = importlib.import_module("tensorflow.python.framework.ops")
    return ops.gradient_registry._registry


def _handles(variables):
    """Yields the tensors that refer to the memory of `variables`."""
    for variable in variables:
        # A variable of several replicas has one handle on each of them.
        for value in getattr(variable.value, "values", [variable.value]):
            yield value.handle


def _graph_of(gradient):
    """Returns the graph of a `tf.custom_gradient`; `None` for other gradients.

    The graph can only be reached by the variables of the function's closure.
    """
    result = _closure(_closure(gradient).get("tape_grad_fn")).get("result")
    for tensor in keras.tree.flatten(result):
        if hasattr(tensor, "graph"):
            return tensor.graph
    return None


def _closure(function):
    """Returns the variables that a nested function closes over, a dict."""
    cells = getattr(function, "__closure__", None)
    if not cells:
        return {}
    names = function.__code__.co_freevars
    return {
        name: cell.cell_contents
        for name, cell in zip(names, cells, strict=True)
    }


def _reads(graph, handles):
    """Whether `graph`, or a graph around it, captured one of `handles`."""
    while hasattr(graph, "external_captures"):
        if any(id(tensor) in handles for tensor in graph.external_captures):
            return True
        graph = graph.outer_graph
    return False


def _borrowed(gradient):
    """Returns a function that calls `gradient` by a weak reference."""
    reference = weakref.ref(gradient)
    return lambda *arguments: reference()(*arguments)
