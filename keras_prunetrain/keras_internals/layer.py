"""The private parts of Keras's layers: what a layer is made of."""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_prunetrain.keras_internals.graph import is_graph
from keras_prunetrain.keras_internals.identity import TRAINER_ATTRIBUTES
from keras_prunetrain.keras_internals.variables import Unfilled, weight_name

# The parts of a layer that users train, save or nest.
Part = keras.Variable | keras.random.SeedGenerator | keras.layers.Layer

# Settings that `Layer.__init__` makes and no config has. `RematScope` sets
# `_remat_mode`, and the public setter of `supports_masking` sets
# `_supports_masking`.
_SETTINGS = (
    "_allow_non_tensor_positional_args",
    "_convert_input_args",
    "_remat_mode",
    "_supports_masking",
    "autocast",
    "supports_jit",
)

# Attributes in which Keras records how a layer was made, built and called.
_NOTES = (
    "_auto_config",
    "_auto_config_error_args",
    "_build_shapes_dict",
    "_called",
    "_input_spec",
    "_path",
    "built",
)


@functools.cache
def base_attributes() -> frozenset[str]:
    """Returns the names of the attributes that each layer has, a frozenset.

    Keras keeps its own records in them: nodes, trackers, paths, losses.
    """
    return frozenset(vars(keras.layers.Layer(name="bare")))


@functools.cache
def _model_attributes():
    """Returns the names of the attributes that each model has, a frozenset."""
    bare = keras.Model(name="bare")
    return base_attributes() | TRAINER_ATTRIBUTES | frozenset(vars(bare))


def own_attributes(layer: keras.Operation) -> dict[str, Any]:
    """Returns the attributes that the class of `layer`, or its user, added."""
    is_model = isinstance(layer, keras.Model)
    base = _model_attributes() if is_model else base_attributes()
    return {
        name: value
        for name, value in vars(layer).items()
        # TensorFlow's own attributes begin with `_self_`.
        if name not in base and not name.startswith("_self_")
    }


def carry_settings(layer: keras.Operation, clone: keras.Operation) -> None:
    """Gives `clone` the settings of `layer` that no config has."""
    for name in _SETTINGS:
        if name in vars(layer):
            vars(clone)[name] = vars(layer)[name]


def set_trainable(layer: keras.layers.Layer, trainable: bool) -> None:
    """Sets `trainable` of `layer`, but not of its parts as the setter does."""
    vars(layer)["_trainable"] = trainable


def parts(layer: keras.layers.Layer) -> dict[str, Part]:
    """Returns the variables, seed generators and layers that `layer` holds.

    The parts of inner layers are left out. `Layer.variables` has all variables
    in one list, whose order and length depend on how the layer was made; the
    attribute that holds a variable identifies it.

    Returns:
        Dict from a path of attributes (`"_kernel"`, `"cells[0]"`) to the part.
        The path of a part in no attribute is its name and a number
        (`"<variable 1>"`); the path of a functional model's layer is its name.
    """
    if is_graph(layer):
        return {inner.name: inner for inner in layer.layers}
    found = {}
    for name, value in own_attributes(layer).items():
        _collect(name, value, found)
    known = {id(part) for part in found.values()}
    for part in _tracked(layer):
        if id(part) not in known:
            name = type(part).__name__
            if isinstance(part, keras.Variable):
                name = weight_name(part)
            path, number = f"<{name}>", 0
            while path in found:
                number += 1
                path = f"<{name} {number}>"
            found[path] = part
    return found


def _collect(path, value, found):
    """Adds the parts in `value`, which lies at `path`, to `found`."""
    if is_part(value):
        found[path] = value
    elif isinstance(value, list | tuple):
        for i, member in enumerate(value):
            _collect(f"{path}[{i}]", member, found)
    elif isinstance(value, dict):
        for key, member in value.items():
            _collect(f"{path}[{key!r}]", member, found)


def is_part(value: Any) -> bool:
    """Whether `value` is a variable, a seed generator or a layer."""
    return isinstance(value, Part)


def inner_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns the layers that `layer` itself holds, in Keras's order.

    Only of a model does a public attribute list them.
    """
    return list(layer._layers)


def _tracked(layer):
    """Returns the parts of `layer` that Keras tracks, in Keras's order."""
    return [
        *layer._trainable_variables,
        *layer._non_trainable_variables,
        *layer._seed_generators,
        *layer._layers,
    ]


def attribute_of(path: str) -> str | None:
    """Returns the name of the attribute that a path of `parts` begins with.

    `None` if the part lies in no attribute.
    """
    return None if path.startswith("<") else path.partition("[")[0]


def set_attribute(layer: keras.layers.Layer, name: str, value: Any) -> None:
    """Sets an attribute of a built `layer`; `value` may hold further parts."""
    with _unlocked(layer):
        setattr(layer, name, value)


def track(layer: keras.layers.Layer, part: Part) -> None:
    """Adds a part to a built `layer` without setting an attribute."""
    with _unlocked(layer):
        layer._tracker.track(part)


def replace_part(layer: keras.layers.Layer, old: Part, new: Part) -> None:
    """Replaces the part `old` by `new` wherever `layer` itself holds `old`."""
    for name, value in own_attributes(layer).items():
        vars(layer)[name] = _replaced(value, old, new)
    tracker = layer._tracker
    for store, (_, members) in tracker.config.items():
        if tracker.is_in_store(store, old):
            place = [id(member) for member in members].index(id(old))
            tracker.stored_ids[store].remove(id(old))
            if tracker.is_in_store(store, new):
                del members[place]
            else:
                members[place] = new
                tracker.stored_ids[store].add(id(new))


def _replaced(value, old, new):
    """Returns `value` with `new` for `old`; modifies lists and dicts."""
    if value is old:
        return new
    if isinstance(value, list):
        for i, member in enumerate(value):
            list.__setitem__(value, i, _replaced(member, old, new))
    elif isinstance(value, dict):
        for key, member in value.items():
            dict.__setitem__(value, key, _replaced(member, old, new))
    elif isinstance(value, tuple):
        members = [_replaced(member, old, new) for member in value]
        is_named = hasattr(value, "_fields")
        return type(value)(*members) if is_named else tuple(members)
    return value


@contextlib.contextmanager
def _unlocked(layer):
    """Lets parts be added to a built layer inside of the `with` block."""
    was_locked = layer._tracker.locked
    layer._tracker.unlock()
    try:
        yield
    finally:
        if was_locked:
            layer._tracker.lock()


def carry_names(part: object, counterpart: object) -> None:
    """Gives a layer or a variable of a clone the name and the path it had.

    Keras numbers layers without a name anew in each clone, and the path of a
    variable says in which layers it was made.
    """
    if isinstance(part, keras.Variable):
        counterpart._path = part.path
    elif isinstance(part, keras.layers.Layer):
        vars(counterpart).update(name=part.name, _path=part._path)


def variable_like(
    variable: keras.Variable, shape: Sequence[int] | None = None
) -> keras.Variable:
    """Returns a new variable with the name and settings of `variable`.

    Args:
        variable: A `keras.Variable`.
        shape: Tuple of ints. Defaults to the shape of `variable`.
    """
    new = keras.Variable(
        Unfilled(),
        shape=tuple(variable.shape if shape is None else shape),
        dtype=variable._dtype,
        trainable=variable.trainable,
        autocast=variable._autocast,
        aggregation=variable.aggregation,
        name=variable.name,
    )
    new._path = variable.path
    return new


def blank_copy(operation: keras.Operation) -> keras.Operation:
    """Returns an operation of the same class and name, without its contents.

    `__init__` of the class is not called, as its arguments are unknown. The
    copy of a layer has the layer's settings and Keras's records about it; its
    parts and the attributes of its class are missing.
    """
    new = type(operation).__new__(type(operation))
    if not isinstance(operation, keras.layers.Layer):
        keras.Operation.__init__(new, name=operation.name)
    else:
        is_model = isinstance(operation, keras.Model)
        (keras.Model if is_model else keras.layers.Layer).__init__(
            new,
            name=operation.name,
            dtype=operation.dtype_policy,
            trainable=operation.trainable,
            activity_regularizer=operation.activity_regularizer,
        )
        carry_settings(operation, new)
    for name in _NOTES:
        if name in vars(operation):
            vars(new)[name] = vars(operation)[name]
    return new


def fill_copy(
    layer: keras.Operation,
    copy: keras.Operation,
    attributes: Mapping[str, Any],
    twins: Mapping[int, Any],
) -> None:
    """Gives a blank copy of `layer` its parts and its class's attributes.

    Args:
        layer: A layer or another operation.
        copy: Its blank copy; modified.
        attributes: Dict of the attributes to set.
        twins: Dict from the `id` of each part of `layer` to its counterpart.
    """
    if not isinstance(layer, keras.layers.Layer):
        vars(copy).update(attributes)
        return
    # Saved files have the parts in this order, so the copy keeps it.
    for store, (_, members) in layer._tracker.config.items():
        for member in members:
            counterpart = twins.get(id(member), member)
            copy._tracker.add_to_store(store, counterpart)
    for name, value in attributes.items():
        setattr(copy, name, value)
    if layer._tracker.locked:
        copy._lock_state()
