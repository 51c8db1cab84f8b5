"""Checks of single values that a caller passes."""

import inspect
import math
import numbers
import os
from typing import Any

import keras


def is_integer(value: Any) -> bool:
    """Whether `value` is an integer, NumPy's included, but no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_count(value: Any, minimum: int = 0) -> bool:
    """Whether `value` is an integer (`is_integer`) of at least `minimum`."""
    return is_integer(value) and bool(value >= minimum)


def is_size(value: Any) -> bool:
    """Whether `value` could be the size of an array's axis.

    That is an integer (`is_integer`) from 1 to the largest of 32 bits: no
    memory holds more, and the errors of larger ones name no argument.
    """
    return is_count(value, 1) and bool(value < 2**31)


def is_number(value: Any) -> bool:
    """Whether `value` is a finite real number, NumPy's included, but no bool.

    An integer that no float can hold is not finite here: arrays could not be
    compared with it.
    """
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def is_path(value: Any) -> bool:
    """Whether `value` could be the path of a file: a string or path object."""
    if not isinstance(value, str | os.PathLike):
        return False
    try:
        name = os.fsencode(str(value))
    except UnicodeEncodeError:  # Half of a surrogate pair.
        return False
    return name != b"" and b"\0" not in name


def check_model(model: Any) -> None:
    """Raises a `ValueError` if `model` is no `keras.Model`."""
    if isinstance(model, keras.Model):
        return
    advice = ""
    if isinstance(model, str | os.PathLike):
        path = os.fspath(model)
        advice = f" Load the file first, `keras.saving.load_model({path!r})`."
    elif isinstance(model, type) or inspect.isroutine(model):
        advice = " Pass the result of its call."
    raise ValueError(
        f"`model` must be a `keras.Model`.{advice} Received: model={model!r}"
    )
