"""What the fields of a `LayerRule` may hold, and its functions may return."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from keras_prunetrain.checks import is_count, is_integer


def one_of(*values: str) -> Callable[[Any], bool]:
    """Returns a test for `None` and for the strings `values`."""
    return lambda x: x is None or (isinstance(x, str) and x in values)


def _is_name(value):
    return isinstance(value, str) and value != ""


def _is_text(value):
    return value is None or _is_name(value)


def _is_function(value):
    return value is None or callable(value)


def _is_axis(value):
    return value is None or is_integer(value)


def _are_names(value):
    return isinstance(value, tuple | list) and all(
        isinstance(name, str) for name in value
    )


def _are_axes(value):
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and _is_axis(axis) for name, axis in value.items()
    )


def _are_arguments(value):
    return isinstance(value, Mapping) and all(
        isinstance(path, str) and _are_names(names) and names
        for path, names in value.items()
    )


def _are_inner(value):
    return isinstance(value, Mapping) and all(
        isinstance(names, str | tuple)
        and all(map(_is_name, [names] if isinstance(names, str) else names))
        and names
        and isinstance(sides, tuple | list)
        and len(sides) == 2
        and all(_are_axes(x) and x and None not in x.values() for x in sides)
        for names, sides in value.items()
    )


_CONSTANTS = ("pointwise", "pass", "zeros", "add")
_SAVED = ("inputs", "outputs", "nothing")

# Field -> test of its value, and the expected value in words.
FIELDS = {
    "size_arguments": (
        _are_names,
        "a tuple of names of constructor arguments",
    ),
    "in_axis": (
        lambda x: _are_axes(x) and None not in x.values(),
        "a dict from names of weights to integers",
    ),
    "out_axis": (
        _are_axes,
        "a dict from names of weights to integers or `None`",
    ),
    "reads": (
        _are_arguments,
        "a dict from paths of weights to tuples of names of arguments",
    ),
    "inner": (
        _are_inner,
        "a dict from the name of an argument, or a tuple of names, to two "
        "dicts from paths of weights to integers: those that write, that read",
    ),
    "constants": (one_of(*_CONSTANTS), f"one of {_CONSTANTS}, or `None`"),
    "subtracts": (_is_text, "the name of a weight, or `None`"),
    "saved": (
        lambda x: callable(x) or one_of(*_SAVED)(x),
        f"one of {_SAVED}, a function of the layer, or `None`",
    ),
    **dict.fromkeys(
        (
            *("channel_axis", "repeats", "groups", "folds_into", "freezes"),
            *("refuses", "reindex", "resize", "variant", "macs"),
        ),
        (_is_function, "a function of the layer, or `None`"),
    ),
}

# Field -> test of its function's result, and the expected result in words.
_COUNT = functools.partial(is_count, minimum=1), "an integer of at least 1"
_REASON = _is_text, "the reason, a string, or `None`"
ANSWERS = {
    "channel_axis": (_is_axis, "an axis, an integer, or `None`"),
    "repeats": _COUNT,
    "groups": _COUNT,
    "folds_into": (_is_text, "the name of a weight, 'output' or `None`"),
    "freezes": _REASON,
    "refuses": _REASON,
    "resize": (
        lambda x: isinstance(x, dict) and _are_names([*x]),
        "a dict of constructor arguments",
    ),
    "reindex": (
        lambda x: isinstance(x, tuple),
        "a tuple, the arguments of the operation",
    ),
    "macs": (is_count, "an integer of at least 0"),
    "saved": (
        lambda x: x is not None and one_of(*_SAVED)(x),
        f"one of {_SAVED}",
    ),
}
