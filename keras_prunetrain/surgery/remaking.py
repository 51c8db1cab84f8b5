"""A layer made anew from its config, with the sizes that are left."""

import contextlib
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import keras

# The clone gets these very objects: they then need no config, and a lasso has
# only one factor.
_OBJECTS = (
    keras.constraints.Constraint,
    keras.initializers.Initializer,
    keras.regularizers.Regularizer,
)

# What `Layer.get_config` adds, whether or not `__init__` of a class takes it.
_OF_EVERY_LAYER = {"activity_regularizer", "dtype", "name", "trainable"}


def config_of(layer: keras.Operation) -> dict[str, Any]:
    """Returns the config of `layer`, with its functions as objects.

    Serialized, an activation, an initializer or a lambda would have to be
    registered, or could be taken for another one of its name.
    """
    objects = {
        name: value
        for name, value in vars(layer).items()
        if isinstance(value, _OBJECTS)
    }
    config = None
    with contextlib.suppress(Exception):  # Those of the user's code.
        config = _config(_shadow(layer, dict.fromkeys(objects)))
    optional = {"activity_regularizer"}  # Absent where it is `None`.
    if config is None or not objects.keys() <= config.keys() | optional:
        config = _config(layer)
    config.update((k, v) for k, v in objects.items() if k in config)
    if type(layer).get_config is keras.layers.Layer.get_config:
        return config  # The arguments, as `__init__` was called with them.
    for name in config:
        live = _attribute(layer, name)
        if callable(live) and not isinstance(live, keras.Operation):
            config[name] = live
    return config


def without_build(config: Any) -> Any:
    """Returns `config` without the shapes for which inner layers were built.

    A layer that a config holds in serialized form would otherwise be built for
    as many channels as before.
    """
    if isinstance(config, dict):
        inner = {"class_name", "config"} <= config.keys()
        return {
            key: without_build(value)
            for key, value in config.items()
            if not (inner and key == "build_config")
        }
    if isinstance(config, list):
        return [without_build(value) for value in config]
    return config


def _shadow(layer, changes):
    """Returns an object like `layer`, with other values of some attributes."""
    shadow = object.__new__(type(layer))
    vars(shadow).update({**vars(layer), **changes})
    return shadow


def _attribute(layer, name):
    """Returns an attribute of `layer` that is none of its methods."""
    if name in vars(layer):
        return vars(layer)[name]
    if isinstance(inspect.getattr_static(layer, name, None), property):
        with contextlib.suppress(Exception):  # Those of the user's code.
            return getattr(layer, name)
    return None


def _config(layer):
    with warnings.catch_warnings():
        # Of lambdas that could not be loaded. Nothing is saved here.
        warnings.simplefilter("ignore")
        return dict(layer.get_config())


def make(
    layer: keras.Operation,
    config: Mapping[str, Any],
    changes: Mapping[str, Any],
) -> keras.Operation:
    """Returns a new layer of the class of `layer`.

    Args:
        layer: A layer or another operation.
        config: Its config, as `config_of` returns it.
        changes: Dict of the arguments that have other values.

    Raises:
        Exception: The error of `from_config`, if there is no other way.
    """
    layer_class = type(layer)
    config = {**config, **changes}
    attempts = (
        lambda: layer_class.from_config(dict(config)),
        # `Lambda.from_config` takes serialized functions only, that of a
        # wrapper a serialized layer.
        lambda: layer_class(**config),
        lambda: layer_class(**_taken(config, layer_class)),
        lambda: layer_class.from_config({**_config(layer), **changes}),
    )
    errors = []
    for attempt in attempts:
        try:
            return attempt()
        except Exception as error:
            errors.append(error)
    raise errors[0]


def _taken(config, layer_class):
    """Returns `config` without what `__init__` does not take of a layer's."""
    taken = inspect.signature(layer_class.__init__).parameters
    if any(x.kind == x.VAR_KEYWORD for x in taken.values()):
        return config
    left_out = _OF_EVERY_LAYER - set(taken)
    return {k: v for k, v in config.items() if k not in left_out}
