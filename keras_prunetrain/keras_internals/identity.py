"""Gives objects of Keras the state of others while they keep their identity.

A user, `fit` and the callbacks refer to a model, its layers and its optimizer.
The state of such an object is its `__dict__`: with the `__dict__` of another
object it behaves like that object, and all references to it stay valid. The
private attributes named here are those by which Keras's objects refer to each
other.
"""

import collections
import importlib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras.optimizers import Optimizer

from keras_prunetrain.keras_internals.graph import is_graph
from keras_prunetrain.keras_internals.optimizer import (
    optimizer_pairs,
    optimizer_variables,
)

# The attributes that `compile` and `fit` set on a model.
TRAINER_ATTRIBUTES = frozenset(
    {
        "_compile_config",
        "_compile_loss",
        "_compile_metrics",
        "_compiled_trainable_state",
        "_distribute_reduction_method",
        "_eval_epoch_iterator",
        "_initial_epoch",
        "_jit_compile",
        "_loss_tracker",
        "_run_eagerly",
        "compiled",
        "history",
        "loss",
        "optimizer",
        "steps_per_execution",
        "stop_evaluating",
        "stop_predicting",
        "stop_training",
        "unrolled_steps_per_execution",
    }
)
# Closures over the object itself, made by `Layer.__new__`.
_CLOSURES = ("build", "quantize")


def set_states(pairs: Sequence[tuple[Any, dict[str, Any]]]) -> None:
    """Gives either all objects their new `__dict__`, or none of them.

    Python raises a `KeyboardInterrupt` between two bytecode instructions. One
    instruction sets all dicts, so no interrupt can come between two of them.

    Args:
        pairs: List of pairs of an object and its new `__dict__`.
    """
    before = [(one, vars(one)) for one, _ in pairs]
    try:
        _set_all(pairs)
    except BaseException:
        _set_all(before)
        raise


def _set_all(pairs):
    """Gives each object its `__dict__`, within one bytecode instruction."""
    objects, states = zip(*pairs, strict=True)
    # `object.__setattr__` is written in C, the methods of Keras in Python.
    setting = map(
        object.__setattr__, objects, itertools.repeat("__dict__"), states
    )
    collections.deque(setting, maxlen=0)


def operations_in(model: keras.Operation) -> list[keras.Operation]:
    """Returns a functional model and all operations in it, each once.

    The result includes the operations of nested models, and the layers inside
    of layers, which no public attribute lists.
    """
    found, waiting = {}, [model]
    while waiting:
        operation = waiting.pop()
        if id(operation) not in found:
            found[id(operation)] = operation
            waiting += getattr(operation, "_layers", ())
            waiting += [x for f in _functions(operation) for x in f._operations]
    return list(found.values())


def forget_calls(model: keras.Model) -> None:
    """Removes the calls that make up `model` from the lists of its layers.

    An input stays: another model may have it as well.
    """
    for function in _functions(model):
        for node in itertools.chain(*function._nodes_by_depth.values()):
            if node.is_input:
                continue
            _remove(node.operation, "_inbound_nodes", node)
            for tensor in node.input_tensors:
                reader = tensor._keras_history.operation
                _remove(reader, "_outbound_nodes", node)


def _remove(operation, name, node):
    """Removes one call from a list of an operation's calls."""
    nodes = getattr(operation, name)
    left = [x for x in nodes if x is not node]
    # TensorFlow cannot save a `ListWrapper` from which an item was removed.
    if type(nodes).__name__ == "ListWrapper":
        vars(operation)[name] = left
    else:
        nodes[:] = left


def broken_state(model: keras.Model, message: str) -> dict[str, Any]:
    """Returns a `__dict__` with which `model` raises when it is called."""

    def call(*args, **kwargs):
        raise ValueError(message)

    return {**vars(model), "call": call}


def successors(
    pairs: Sequence[tuple[keras.Operation, keras.Operation]],
    others: Iterable[tuple[Any, Any]] = (),
) -> list[tuple[keras.Operation, dict[str, Any]]]:
    """Returns pairs for `set_states` that turn old operations into new ones.

    The new operations are modified: their references to each other become
    references to the old ones, and new models train as the old models do.

    Args:
        pairs: List of pairs of an old and a new operation. The old operations
            are not modified.
        others: List of pairs of an old and a new object of another kind.
    """
    twins = {id(new): old for old, new in [*pairs, *others]}
    for old, new in pairs:
        if isinstance(old, keras.Model):
            _keep_trainer(old, new, twins)
    for _, new in pairs:
        for node in new._inbound_nodes:
            node.operation = _twin(node.operation, twins)
            for tensor in node.outputs:
                history = tensor._keras_history
                tensor._keras_history = history._replace(
                    operation=_twin(history.operation, twins)
                )
    for old, new in pairs:
        for function in _functions(new):
            _relink_function(function, twins)
            _relink_attributes(function, twins)
        _relink_attributes(new, twins)
        vars(new).update({x: vars(old)[x] for x in _CLOSURES if x in vars(old)})
    return [(old, vars(new)) for old, new in pairs]


def _functions(operation):
    """Returns a list of the graph of `operation`, empty if it has none."""
    if not is_graph(operation):
        return []
    is_sequential = isinstance(operation, keras.Sequential)
    return [operation._functional if is_sequential else operation]


def _twin(value, twins):
    return twins.get(id(value), value)


def _keep_trainer(old, new, twins):
    """Lets `new` train as `old` does: loss, metrics and their values."""
    # Loss and metrics hold this list as well. The list refers to the tracker of
    # the old model, and would keep all the old layers in memory.
    names = getattr(old, "output_names", None)
    if hasattr(names, "tracker"):
        names.tracker = None
    kept = {x: vars(old)[x] for x in TRAINER_ATTRIBUTES if x in vars(old)}
    flags = kept.get("_compiled_trainable_state")
    if flags is not None:
        layers = [(_twin(x, twins), x) for x in new._flatten_layers()]
        kept["_compiled_trainable_state"] = {
            layer: flags.get(layer, x.trainable) for layer, x in layers
        }
    _set_untracked(new, kept)


def _relink_function(function, twins):
    """Replaces new operations in a functional model's graph by their twins."""
    by_depth = collections.defaultdict(list)
    for depth, operations in function._operations_by_depth.items():
        by_depth[depth] = [_twin(x, twins) for x in operations]
    make_node_key = importlib.import_module(
        "keras.src.ops.function"
    ).make_node_key
    nodes = itertools.chain(*function._nodes_by_depth.values())
    _set_untracked(
        function,
        {
            "_operations": [_twin(x, twins) for x in function._operations],
            "_operations_by_depth": by_depth,
            "_nodes": {
                make_node_key(
                    node.operation, node.outputs[0]._keras_history.node_index
                )
                for node in nodes
            },
        },
    )


def _relink_attributes(operation, twins):
    """Replaces new objects in the attributes of `operation` by their twins."""
    tracker = getattr(operation, "_tracker", None)
    if tracker is not None:  # An operation such as `x + y` has no tracker.
        for name, (_, store) in tracker.config.items():
            store[:] = [_twin(x, twins) for x in store]
            tracker.stored_ids[name] = set(map(id, store))
    for name, value in list(vars(operation).items()):
        relinked = _relinked(value, twins)
        if relinked is not value:
            # TensorFlow's own bookkeeping.
            if name.startswith("_self_"):
                vars(operation)[name] = relinked
            else:
                setattr(operation, name, relinked)


def _relinked(value, twins):
    """Returns `value`, or a copy in which twins replace the new objects."""
    if not isinstance(value, list | tuple | set | dict):
        return _twin(value, twins)
    items = (
        [x for pair in value.items() for x in pair]
        if (isinstance(value, dict))
        else list(value)
    )
    relinked = [_relinked(x, twins) for x in items]
    if all(x is y for x, y in zip(items, relinked, strict=True)):
        return value
    if isinstance(value, dict):
        pairs = zip(relinked[::2], relinked[1::2], strict=True)
        is_ordered = isinstance(value, collections.OrderedDict)
        return collections.OrderedDict(pairs) if is_ordered else dict(pairs)
    if hasattr(value, "_fields"):
        return type(value)(*relinked)
    return next(
        kind(relinked) for kind in (list, tuple, set) if isinstance(value, kind)
    )


def _set_untracked(one, attributes):
    """Sets attributes without Keras's tracking of dependencies."""
    tracking = importlib.import_module("keras.src.utils.tracking")
    try:
        with tracking.DotNotTrackScope():
            for name, value in attributes.items():
                setattr(one, name, value)
    except BaseException:
        # An interrupt at the exit of the scope would leave tracking switched
        # off in all of Keras.
        tracking.set_global_attribute("tracking_on", True)
        raise


def optimizer_successors(
    optimizer: Optimizer, copy: Optimizer
) -> list[tuple[Optimizer, dict[str, Any]]]:
    """Returns the pairs for `set_states` that turn `optimizer` into `copy`.

    The objects that users and callbacks may hold stay the same: the wrapped
    optimizers, the learning rate and the step count. `copy` is modified.

    Args:
        optimizer: An optimizer; not modified.
        copy: The optimizer of the smaller model.
    """
    pairs = list(optimizer_pairs(optimizer, copy))
    for old, new in pairs:
        _share_variables(old, new)
        kept = {
            name: value
            for name, value in vars(old).items()
            if isinstance(value, Optimizer)
            # A `MultiOptimizer`'s members, and which member updates a weight.
            or name in ("_inner_optimizers", "_optimizer_map")
        }
        _set_untracked(new, kept)
        for name, value in vars(old).items():
            # Keeps step hooks, and drops the slots of removed weights.
            if name not in vars(new) and not _is_by_variable(name, value):
                vars(new)[name] = value
    return [(old, vars(new)) for old, new in pairs]


def _is_by_variable(name, value):
    """Whether an optimizer's attribute holds something for each weight."""
    values = value if isinstance(value, list) else [value]
    return name == "_exclude_from_weight_decay_cache" or any(
        isinstance(x, keras.Variable) for x in values
    )


def _share_variables(old, new):
    """Gives `new` the variables of `old` that belong to no weight."""
    mine, its = (optimizer_variables(x)[2] for x in (old, new))
    shared = {name: mine[name] for name in its.keys() & mine.keys()}
    twins = {id(its[name]): variable for name, variable in shared.items()}
    variables = [_twin(x, twins) for x in new._variables]
    _set_untracked(new, {"_variables": variables, **shared})
    test, _ = new._tracker.config["variables"]
    new._tracker.config["variables"] = test, new._variables
    new._tracker.stored_ids["variables"] = set(map(id, variables))
