"""Finds the layers that `skip` selects, and the channels of these layers."""

import fnmatch
import functools
import operator
from collections.abc import Callable, Iterable

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
        skip: One of, or several of: a layer; a name or a pattern
            (`"stage1_*"`) of names or keys; a function of a layer that returns
            whether to skip the layer.

    Raises:
        ValueError: If one of them matches no layer, or is a function that
            fails.
    """
    found = []
    for wanted in _each(skip):
        is_wanted = _matcher(wanted)
        matches = [
            key
            for key, layer in numbering.layers.items()
            if is_wanted(key, layer)
        ]
        if not matches:
            name = getattr(wanted, "name", wanted)
            raise ValueError(
                f"`skip` names {name!r}, which is no layer of the model and "
                "matches no layer's name. Layers: "
                f"{', '.join(sorted(numbering.layers))}."
            )
        found += matches
    return found


def _each(skip: Skip) -> tuple[Wanted, ...]:
    """Returns the entries of `skip`, which may be a single one, as a tuple."""
    if isinstance(skip, str):
        return (skip,)
    try:
        return tuple(skip)
    except TypeError:
        return (skip,)


def _matcher(wanted: Wanted) -> Callable[[str, keras.Operation], bool]:
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
                f"The function {wanted!r} in `skip` fails for the layer "
                f"'{key}': {error!r}. It is called with one layer, and "
                "returns whether to leave it alone."
            ) from error

    return is_wanted


def touched(numbering: Numbering, key: str) -> np.ndarray:
    """Returns the numbers that a layer, or a nested model, reads or writes."""
    keys = set(numbering.keys_within(key))
    vectors = [x.numbers for x in numbering.labels if x.layer in keys]
    for other in keys & numbering.outputs.keys():
        vectors += [x.numbers for x in numbering.outputs[other]]
    return np.unique(np.concatenate([np.arange(0), *vectors]))
