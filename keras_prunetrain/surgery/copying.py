"""Copies of layers and of values, in which nothing refers to the old layers."""

import copy
import functools
import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_prunetrain import keras_internals

# From the `id` of an old object to its counterpart.
Twins = dict[int, Any]
# Returns a copy of a functional model.
CopyModel = Callable[[keras.Model], keras.Model]

# Objects of these packages hold no layer of the user's.
_LIBRARIES = {
    *("builtins", "jax", "keras", "keras_prunetrain", "numpy"),
    *("tensorflow", "torch"),
}


def copy_operation(
    operation: keras.Operation, twins: Twins, copy_model: CopyModel
) -> keras.Operation:
    """Returns `operation` once more, without its `__init__` and its config.

    All attributes are carried. The variables, seed generators and inner layers
    are new ones of the same kind.

    Args:
        operation: A `keras.Operation`; a layer must be built.
        twins: Dict from the `id` of an old object to its counterpart; the
            copies are added.
        copy_model: Function that returns a copy of a functional model.
    """
    new = keras_internals.blank_copy(operation)
    twins[id(operation)] = new
    if isinstance(operation, keras.layers.Layer):
        for part in keras_internals.parts(operation).values():
            if id(part) not in twins:
                twins[id(part)] = copy_part(part, twins, copy_model)
    attributes = {
        name: copied(value, twins)
        for name, value in keras_internals.own_attributes(operation).items()
    }
    keras_internals.fill_copy(operation, new, attributes, twins)
    return new


def copy_part(
    part: keras_internals.Part,
    twins: Twins,
    copy_model: CopyModel,
    shape: Sequence[int] | None = None,
) -> keras_internals.Part:
    """Returns a new variable, seed generator or layer like `part`.

    Args:
        part: A part of a layer; see `keras_internals.parts`.
        twins: As of `copy_operation`.
        copy_model: As of `copy_operation`.
        shape: Tuple of ints, the shape of a new variable. Defaults to that of
            `part`. The values of the new variable are not set.
    """
    if isinstance(part, keras.Variable):
        return keras_internals.variable_like(part, shape)
    if isinstance(part, keras.random.SeedGenerator):
        return type(part).from_config(part.get_config())
    if keras_internals.is_graph(part):
        return copy_model(part)
    return copy_operation(part, twins, copy_model)


def copied(value: Any, twins: Twins) -> Any:
    """Returns `value` for another layer; what can be changed is a copy.

    Args:
        value: An attribute of a layer.
        twins: Dict from the `id` of an old object to its counterpart.
    """
    value = rebound(value, twins)
    if isinstance(value, list | dict | set):
        return _mapped(value, lambda member: copied(member, twins))
    if isinstance(value, np.ndarray):
        return value.copy()
    if is_backend_variable(value):
        return copy.deepcopy(value)
    return value


def is_backend_variable(value: Any) -> bool:
    """Whether `value` is a variable that Keras does not know as one."""
    return hasattr(value, "read_value") and not keras_internals.is_part(value)


def rebound(value: Any, twins: Twins) -> Any:
    """Returns `value` with counterparts in the place of old objects.

    A function that was defined inside a layer, or that uses a layer or a
    variable by its name, holds it. The function that is returned holds the
    counterpart instead.

    Args:
        value: Anything.
        twins: Dict from the `id` of an old object to its counterpart; copies
            of functions and of other objects are added.

    Returns:
        `value` itself if it holds no old object.
    """
    if id(value) in twins:
        return twins[id(value)]
    if next(references(value, twins), None) is None:
        return value
    again = functools.partial(rebound, twins=twins)
    if isinstance(value, types.FunctionType):
        return _rebound_function(value, twins)
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, again(value.__self__))
    if isinstance(value, functools.partial):
        args, keywords = again(value.args), again(value.keywords)
        return functools.partial(again(value.func), *args, **keywords)
    if isinstance(value, list | tuple | dict | set):
        return _mapped(value, again)
    new = twins[id(value)] = copy.copy(value)  # For what refers to it in turn.
    vars(new).update({name: again(x) for name, x in vars(value).items()})
    return new


def rebind(operation: keras.Operation, twins: Twins) -> None:
    """Lets the functions that `operation` holds refer to counterparts.

    Args:
        operation: A layer or another operation; modified.
        twins: As of `rebound`.
    """
    for name, value in keras_internals.own_attributes(operation).items():
        again = rebound(value, twins)
        if again is not value:
            vars(operation)[name] = again


def _rebound_function(function, twins):
    """Returns a copy of a function that holds the counterparts.

    The code is the same; its closure, its defaults, its attributes, and the
    layers and variables that it reads by a global name are the counterparts.
    """
    cells = function.__closure__ or ()
    names = {
        name: twins[id(value)]
        for name, value in _globals_used(function).items()
        if id(value) in twins
    }
    new = types.FunctionType(
        function.__code__,
        {**function.__globals__, **names} if names else function.__globals__,
        function.__name__,
        # A cell may hold the function itself: they are filled later.
        closure=tuple(types.CellType() for _ in cells),
    )
    twins[id(function)] = new
    for cell, new_cell in zip(cells, new.__closure__ or (), strict=True):
        for inside in _contents(cell):
            new_cell.cell_contents = rebound(inside, twins)
    new.__defaults__ = rebound(function.__defaults__, twins)
    new.__kwdefaults__ = rebound(function.__kwdefaults__, twins)
    new.__qualname__, new.__doc__ = function.__qualname__, function.__doc__
    vars(new).update(rebound(vars(function), twins))
    return new


def references(value: Any, twins: Twins) -> Iterator[Any]:
    """Yields the old objects that `value` holds, at whatever depth.

    Args:
        value: Anything.
        twins: Dict whose keys are the `id`s of the old objects.
    """
    # With the objects, so that no other one gets the `id` of one of them.
    seen, waiting = {}, [value]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if id(value) in twins:
            yield value
        else:
            waiting.extend(_members(value))


def _members(value):
    """Returns the objects that `value` itself holds."""
    if isinstance(value, types.FunctionType):
        inside = [*contents_of(value), vars(value)]
        return [*inside, *_globals_used(value).values()]
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, list | tuple | set):
        return value
    if isinstance(value, dict):
        return value.values()
    package = type(value).__module__.partition(".")[0]
    if package in _LIBRARIES or isinstance(value, type | keras.Operation):
        return []
    return getattr(value, "__dict__", {}).values()


def contents_of(function: Any) -> list[Any]:
    """Returns the values that a function keeps: closure and defaults."""
    cells = getattr(function, "__closure__", None) or ()
    return [
        *(inside for cell in cells for inside in _contents(cell)),
        getattr(function, "__defaults__", None),
        getattr(function, "__kwdefaults__", None),
    ]


def _contents(cell):
    try:
        return [cell.cell_contents]
    except ValueError:  # Of a name that is not bound yet.
        return []


def _globals_used(function):
    """Returns what `function`, or one inside it, reads by a global name."""
    names, codes = set(), [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [x for x in code.co_consts if inspect.iscode(x)]
    known = function.__globals__
    # A function that it calls is the module's, and so is what that one reads.
    return {
        name: known[name]
        for name in names & known.keys()
        if keras_internals.is_part(known[name])
    }


def _mapped(container, function):
    """Returns a container like `container`, of a plain kind.

    Keras wraps lists, dicts and sets anew for the layer that they go to.
    """
    if isinstance(container, dict):
        return {key: function(value) for key, value in container.items()}
    members = [function(member) for member in container]
    if hasattr(container, "_fields"):
        return type(container)(*members)
    for kind in (list, set):
        if isinstance(container, kind):
            return kind(members)
    return type(container)(members)
