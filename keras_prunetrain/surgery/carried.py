"""The state of layers and variables besides config and values.

Two lists of functions carry this state to a clone: `_UNBUILT` before the clone
is built, `_BUILT` once it has its values. To carry one thing more, add a
function to one of the lists.
"""

import functools
import math
import tempfile
import types
from collections.abc import Callable, Mapping, Set
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_prunetrain import keras_internals
from keras_prunetrain.surgery.copying import (
    Twins,
    contents_of,
    copied,
    is_backend_variable,
    rebound,
)
from keras_prunetrain.surgery.cut import Cut

_FUNCTIONS = (
    types.BuiltinFunctionType
    | types.FunctionType
    | types.MethodType
    | functools.partial
)


class LayerPair(NamedTuple):
    """A layer and its clone, which has its values.

    Attributes:
        old: The layer.
        new: The clone.
        is_cut: Whether weights, config or input of the clone are smaller.
        resized: Names of the arguments that give the clone its sizes.
        born: The attributes that the clone had when it was made, before it was
            built; `None` if that is not known.
        born_uncut: Function that returns those of a layer made of the old
            config.
        twins: Dict from the `id` of an old object to its counterpart.
    """

    old: keras.layers.Layer
    new: keras.layers.Layer
    is_cut: bool
    resized: Set[str]
    born: Mapping[str, Any] | None
    born_uncut: Callable[[], Mapping[str, Any]]
    twins: Twins


def carry_unbuilt(layer: keras.Operation, clone: keras.Operation) -> None:
    """Carries all state that `clone` needs before it is built."""
    for carry in _UNBUILT:
        carry(layer, clone)


def carry_built(pair: LayerPair) -> None:
    """Carries all state that the clone of a `LayerPair` needs in the end."""
    for carry in _BUILT:
        carry(pair)


def carry_variable(cut: Cut, twins: Twins) -> None:
    """Carries what was set on the old variable of a `Cut` to the new one.

    Args:
        cut: A `Cut`.
        twins: Dict from the `id` of an old object to its counterpart.
    """
    old, new = cut.old, cut.new
    if new.trainable != old.trainable:
        new.trainable = old.trainable
    new.regularizer = rebound(old.regularizer, twins)
    new.constraint = rebound(old.constraint, twins)
    new.overwrite_with_gradient = old.overwrite_with_gradient
    # Attributes that users set on a variable, such as its own learning rate.
    for name, value in vars(old).items():
        if name not in vars(new) and not name.startswith("_"):
            setattr(new, name, copied(value, twins))


def _carry_name(layer, clone):
    """Carries the name.

    The config of the outer layer does not have the name of an inner layer.
    """
    if clone.name != layer.name:
        clone.name = layer.name


def _carry_dtype_policy(layer, clone):
    """Carries the dtype policy.

    `SpatialDropout2D` writes only the dtype of its variables into its config.
    """
    policy = getattr(layer, "dtype_policy", None)
    if policy is not None and clone.dtype_policy != policy:
        clone.dtype_policy = policy


def _carry_objects(layer, clone):
    """Carries initializers, regularizers and constraints as the same objects.

    A copy of a lasso would have a factor of its own.
    """
    for name, value in vars(layer).items():
        if name == "activity_regularizer" or isinstance(
            value,
            keras.constraints.Constraint
            | keras.initializers.Initializer
            | keras.regularizers.Regularizer,
        ):
            vars(clone)[name] = value


def _carry_trainable(pair):
    """Carries the flag of the layer alone, without its setter.

    The flag of a layer inside, or of a variable, may differ from that of the
    layer around it.
    """
    keras_internals.set_trainable(pair.new, pair.old.trainable)


def _carry_saved_state(pair):
    """Carries the state that Keras saves in files besides variables.

    `Normalization` computes with constants that only `load_own_variables`
    computes from its variables; a vocabulary is saved as an asset.
    """
    old, new = pair.old, pair.new
    if _saves_in_its_own_way(old):
        store = {}
        (new if pair.is_cut else old).save_own_variables(store)
        new.load_own_variables(store)
    if hasattr(old, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            new.load_assets(folder)


def _saves_in_its_own_way(layer):
    owner = next(
        c for c in type(layer).__mro__ if "load_own_variables" in vars(c)
    )
    # Keras's kernel layers save a kernel that is quantized or has a LoRA in
    # another form; here each variable is carried as it is.
    return owner is not keras.layers.Layer and "enable_lora" not in vars(owner)


def _carry_attributes(pair):
    """Carries attributes that have changed since a layer was made.

    A config may leave them out. An attribute of the clone that was set by the
    build, or that the cut has changed, stays as it is.
    """
    if keras_internals.is_graph(pair.old):
        return
    found = keras_internals.own_attributes(pair.new)
    for name, value in keras_internals.own_attributes(pair.old).items():
        if name not in found:
            if not pair.is_cut or not _may_have_channels(value):
                _set(pair, name, copied(value, pair.twins))
        elif found[name] is value:
            again = rebound(value, pair.twins)
            if again is not value:
                _set(pair, name, again)
        elif is_backend_variable(value) and is_backend_variable(found[name]):
            if not pair.is_cut:
                found[name].assign(value)
        elif _equal(value, found[name]) is False and not _is_of_the_cut(
            pair, name, found[name]
        ):
            _set(pair, name, copied(value, pair.twins))


def _set(pair, name, value):
    keras_internals.set_attribute(pair.new, name, value)


def _may_have_channels(value):
    """Whether `value` may hold something for each channel."""
    return isinstance(value, list | tuple | dict | set) or hasattr(
        value, "shape"
    )


def _is_of_the_cut(pair, name, value):
    """Whether the clone's `value` may differ because the clone is smaller."""
    if not pair.is_cut:
        return False
    if name in pair.resized:
        return True
    if pair.born is None or name not in pair.born:
        return True  # The build has set it.
    if _equal(pair.born[name], value) is not True:
        return True
    uncut = pair.born_uncut()
    return name not in uncut or _equal(uncut[name], value) is not True


def _equal(a, b):
    """Whether `a` equals `b`; `None` if that is unknown."""
    if a is b:
        return True
    if isinstance(a, _FUNCTIONS) and isinstance(b, _FUNCTIONS):
        return _equal_functions(a, b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return _all_equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return _all_equal(a.values(), ())
        return _all_equal(a.values(), [b[key] for key in a])
    if _is_array(a) and _is_array(b):
        a, b = map(np.asarray, (a, b))
        return a.dtype == b.dtype and np.array_equal(a, b)
    if _is_simple(a) and _is_simple(b):
        if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
            return math.isnan(b)
        return type(a) is type(b) and a == b
    return None


def _equal_functions(a, b):
    """Whether the same lines made both, with the same values put in."""
    if isinstance(a, functools.partial) and isinstance(b, functools.partial):
        put_in = (a.args, b.args), (a.keywords, b.keywords)
        a, b = a.func, b.func
    else:
        a, b = (getattr(f, "__func__", f) for f in (a, b))
        put_in = ((contents_of(a), contents_of(b)),)
    if getattr(a, "__code__", a) is not getattr(b, "__code__", b):
        return False
    return all(_equal(x, y) is not False for x, y in put_in)


def _all_equal(a, b):
    if not all(_is_comparable(x) for x in (*a, *b)):
        return None
    if len(a) != len(b):
        return False
    found = [_equal(x, y) for x, y in zip(a, b, strict=True)]
    return None if None in found else all(found)


def _is_comparable(value):
    if isinstance(value, list | tuple):
        return all(map(_is_comparable, value))
    if isinstance(value, dict):
        return all(map(_is_comparable, value.values()))
    return _is_simple(value) or _is_array(value)


def _is_simple(value):
    """Whether `value` is one that `==` compares, and nothing inside it."""
    return value is None or isinstance(
        value,
        bool
        | int
        | float
        | complex
        | str
        | bytes
        | np.generic
        # `None` may have become a function, and the other way round.
        | types.FunctionType,
    )


def _is_array(value):
    # A tensor of a traced function has no values.
    return isinstance(value, np.ndarray) or (
        keras.ops.is_tensor(value)
        and not keras_internals.is_part(value)
        and hasattr(value, "__array__")
    )


_UNBUILT = (
    _carry_name,
    _carry_dtype_policy,
    lambda layer, clone: keras_internals.carry_settings(layer, clone),
    _carry_objects,
)

_BUILT = (
    _carry_trainable,
    _carry_saved_state,
    _carry_attributes,
)
