"""Which values count as an integer, and which as a number."""

import fractions

import numpy as np
import pytest

from keras_prunetrain.checks import is_count, is_integer, is_number


@pytest.mark.parametrize("value", [0, 3, np.int64(3), np.uint8(3)])
def test_integers_of_numpy_are_counts_and_numbers(value):
    assert is_integer(value)
    assert is_integer(-np.int64(1))
    assert is_count(value)
    assert is_number(value)


def test_a_count_reaches_its_minimum():
    assert is_count(np.int32(1), 1)
    assert not is_count(0, 1)
    assert not is_count(-1)


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
