"""Data as a text of JSON, beside the arrays in them."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from keras import ops

ARRAY_NAME = "array{}"
_ARRAY, _TUPLE, _PAIRS = "__array__", "__tuple__", "__pairs__"


def encoded(value: Any, arrays: list[np.ndarray]) -> str:
    """Returns `value` as a text, without the arrays in it.

    Args:
        value: Nested dicts, lists and tuples of numbers, strings, arrays.
        arrays: List to which the arrays are appended, as bytes.

    Raises:
        TypeError: If `value` holds something else.
    """
    return json.dumps(_without_arrays(value, arrays))


def decoded(text: str, arrays: Mapping[str, np.ndarray]) -> Any:
    """Returns what `encoded` has made into `text`.

    Args:
        text: String.
        arrays: The arrays, by `ARRAY_NAME` with their place in the list.
    """
    return _with_arrays(json.loads(text), arrays)


def _without_arrays(value, arrays):
    """Returns `value` for JSON; its arrays are appended to `arrays`."""
    if ops.is_tensor(value):  # Such as a metric that is a vector.
        value = ops.convert_to_numpy(value)
    if isinstance(value, np.ndarray):
        arrays.append(_as_bytes(value))
        place = len(arrays) - 1
        return {_ARRAY: [place, _name_of(value.dtype), list(value.shape)]}
    if isinstance(value, dict):
        if _is_plain(value):
            return {key: _without_arrays(x, arrays) for key, x in value.items()}
        pairs = [list(pair) for pair in value.items()]
        return {_PAIRS: _without_arrays(pairs, arrays)}
    if isinstance(value, tuple):
        return {_TUPLE: [_without_arrays(x, arrays) for x in value]}
    if isinstance(value, list):
        return [_without_arrays(x, arrays) for x in value]
    return value.item() if isinstance(value, np.generic) else value


def _is_plain(value):
    """Whether JSON, which makes every key a string, gives a dict back."""
    marks = {_ARRAY, _TUPLE, _PAIRS}
    return all(type(key) is str and key not in marks for key in value)


def _as_bytes(array):
    """NumPy's format has no bfloat16."""
    return np.ascontiguousarray(array).reshape(-1).view("uint8")


def _name_of(dtype):
    """Returns what `_dtype` takes: `dtype.name` has no order of bytes."""
    if dtype.fields is not None:
        raise TypeError(f"an array of records, {dtype}, cannot be kept")
    return dtype.name if dtype.kind == "V" else dtype.str


def _with_arrays(value, parts):
    if isinstance(value, list):
        return [_with_arrays(x, parts) for x in value]
    if not isinstance(value, dict):
        return value
    if _ARRAY in value:
        place, dtype, shape = value[_ARRAY]
        array = parts[ARRAY_NAME.format(place)]
        return array.view(_dtype(dtype)).reshape(shape)
    if _TUPLE in value:
        return tuple(_with_arrays(x, parts) for x in value[_TUPLE])
    if _PAIRS in value:
        return dict(_with_arrays(value[_PAIRS], parts))
    return {key: _with_arrays(x, parts) for key, x in value.items()}


def _dtype(name):
    try:
        return np.dtype(name)
    except TypeError:  # bfloat16 and the float8 types of Keras.
        return ops.convert_to_numpy(ops.zeros((), name)).dtype
