"""Which values count as an integer, as a number, and as a model."""

import fractions
import inspect
import pathlib

import keras
import numpy as np
import pytest

import keras_prunetrain as kpt
from keras_prunetrain.checks import (
    is_count,
    is_integer,
    is_number,
    is_path,
    is_size,
)


@pytest.mark.parametrize("value", [0, 3, np.int64(3), np.uint8(3)])
def test_integers_of_numpy_are_counts_and_numbers(value):
    assert is_integer(value)
    assert is_integer(-np.int64(1))
    assert is_count(value)
    assert is_number(value)


def test_a_count_reaches_its_minimum():
    assert is_count(np.int32(1), 1)
    assert is_count(np.int32(0), 1) is False  # And no bool of NumPy's.
    assert not is_count(-1)


def test_a_size_fits_into_32_bits():
    assert is_size(1) and is_size(np.int64(2**31 - 1))
    assert is_size(np.int64(2**31)) is False
    assert not is_size(10**400) and not is_size(0) and not is_size(1.0)


@pytest.mark.parametrize("value", [2.5, np.float32(2.5), fractions.Fraction(1)])
def test_a_real_number_is_no_count(value):
    assert is_number(value)
    assert not is_integer(value)


@pytest.mark.parametrize(
    "value",
    [
        *(True, np.True_, None, "1", [1], 1j),
        *(float("nan"), float("inf"), -np.inf, np.array([1])),
    ],
    ids=str,
)
def test_bools_strings_and_what_is_not_finite_are_neither(value):
    assert not is_number(value)
    assert not is_integer(value)
    assert not is_count(value)


def test_an_integer_beyond_every_float_is_no_number():
    assert not is_number(10**400)


def of_a_model():
    """Returns the public functions that take a model, with a call of each."""
    found = {}
    for name in kpt.__all__:
        function = getattr(kpt, name)
        if inspect.isfunction(function):
            (first, *others) = inspect.signature(function).parameters.values()
            needed = [1 for x in others if x.default is x.empty]
            if first.annotation is keras.Model:
                found[name] = lambda x, f=function, n=needed: f(x, *n)
    return found


def test_the_functions_of_a_model_are_found():
    assert {"reconfigure", "training_bytes"} <= of_a_model().keys()


@pytest.mark.parametrize("function", of_a_model().values(), ids=of_a_model())
@pytest.mark.parametrize(
    ("value", "match"),
    [
        (
            "small.keras",
            r"load_model\('small.keras'\)`. Received: model='small",
        ),
        (pathlib.Path("a/b.keras"), r"load_model\('a/b.keras'\)`. Received"),
        (keras.Model, "the result of its call. Received: model=<class"),
        (None, "must be a `keras.Model`. Received: model=None"),
        ([1], r"must be a `keras.Model`. Received: model=\[1\]"),
    ],
    ids=["name", "path", "class", "None", "list"],
)
def test_what_is_no_model_is_named(function, value, match):
    with pytest.raises(ValueError, match=match):
        function(value)


@pytest.mark.parametrize("value", ["logs", "a b", pathlib.Path("logs"), "~/x"])
def test_paths_are_paths(value):
    assert is_path(value)


@pytest.mark.parametrize("value", ["", None, 5, b"x", ["x"], "\ud800", "a\0b"])
def test_others_are_no_paths(value):
    assert not is_path(value)
