"""Checks of single values that the caller hands in, one place for all."""

import math
import numbers
from typing import Any


def is_integer(value: Any) -> bool:
    """Whether `value` is an integer, NumPy's included, but no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_count(value: Any, minimum: int = 0) -> bool:
    """Whether `value` is such an integer of at least `minimum`."""
    return is_integer(value) and value >= minimum


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
