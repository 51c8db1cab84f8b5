"""Finds the layers that a user names, and the channels of these layers."""

import fnmatch
import functools
import operator
from collections.abc import Callable, Iterable, Mapping

import keras
import numpy as np

from keras_prunetrain.channels.labels import Numbering

# A layer, a name, a pattern of names, or a function that selects layers.
Wanted = str | keras.Operation | Callable[[keras.Operation], bool]
Skip = Wanted | Iterable[Wanted]


def matching_layers(numbering: Numbering, skip: Skip) -> list[str]:
    """Returns the keys of the layers that `skip` selects.

    Args:
        numbering: A `Numbering`.
        skip: As the argument `wanted` of `selected`.

    Raises:
        ValueError: If one of them matches no layer, or is a function that
            fails.
    """
    return selected(numbering.layers, skip, "skip")


def selected(
    layers: Mapping[str, keras.Operation], wanted: Skip, argument: str
) -> list[str]:
    """Returns the keys of the layers that a user wants.

    Args:
        layers: Dict from keys to layers.
        wanted: One of, or several of: a layer; a name or a pattern
            (`"stage1_*"`) of names or keys; a function of a layer that returns
            whether it is wanted.
        argument: Name of the argument that holds `wanted`, for messages.

    Raises:
        ValueError: If one of them matches no layer, or is a function that
            fails.
    """
    found = []
    for one in _each(wanted):
        is_wanted = _matcher(one, argument)
        matches = [key for key, x in layers.items() if is_wanted(key, x)]
        if not matches:
            name = getattr(one, "name", one)
            raise ValueError(
                f"`{argument}` names {name!r}, which is no layer of the model "
                "and matches no layer's name. Layers: "
                f"{', '.join(sorted(layers))}."
            )
        found += matches
    return found


def _each(wanted: Skip) -> tuple[Wanted, ...]:
    """Returns the entries of `wanted`, or a single one, as a tuple."""
    if isinstance(wanted, str):
        return (wanted,)
    try:
        return tuple(wanted)
    except TypeError:
        return (wanted,)


def _matcher(
    wanted: Wanted, argument: str
) -> Callable[[str, keras.Operation], bool]:
    """Returns a function of a key and its layer: whether `wanted` fits them."""
    if isinstance(wanted, str):
        return lambda key, layer: (
            key == wanted
            or fnmatch.fnmatchcase(key, wanted)
            or fnmatch.fnmatchcase(layer.name, wanted)
        )
    # Layers are callable too, and are compared by identity.
    if isinstance(wanted, keras.Operation) or not callable(wanted):
        wanted = functools.partial(operator.is_, wanted)

    def is_wanted(key, layer):
        try:
            return bool(wanted(layer))
        except Exception as error:
            raise ValueError(
                f"The function {wanted!r} in `{argument}` fails for the layer "
                f"'{key}': {error!r}. It is called with one layer, and "
                "returns whether the layer is meant."
            ) from error

    return is_wanted


def touched(numbering: Numbering, key: str) -> np.ndarray:
    """Returns the numbers that a layer, or a nested model, reads or writes."""
    keys = set(numbering.keys_within(key))
    vectors = [x.numbers for x in numbering.labels if x.layer in keys]
    for other in keys & numbering.outputs.keys():
        vectors += [x.numbers for x in numbering.outputs[other]]
    return np.unique(np.concatenate([np.arange(0), *vectors]))
