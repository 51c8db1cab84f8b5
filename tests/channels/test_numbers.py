"""Numbers that are declared equal, or frozen, by hand."""

import numpy as np

from keras_prunetrain.channels.numbers import Numbers, merge


def test_tied_numbers_become_one_over_any_chain_of_ties():
    ties = [([0, 5], [3, 4]), ([3], [5]), ([2], [2])]
    ties = [tuple(map(np.array, tie)) for tie in ties]
    assert merge(6, ties).tolist() == [0, 1, 2, 0, 0, 0]
    assert merge(3, []).tolist() == [0, 1, 2]


def test_channels_at_the_same_place_in_each_group_become_one():
    numbers = Numbers()
    numbers.tie_groups(numbers.new(6), 3)
    assert numbers.merged().tolist() == [0, 1] * 3


def test_the_first_reason_counts_unless_another_outranks_it():
    numbers = Numbers()
    a, b = numbers.new(2), numbers.new(2)
    numbers.freeze(a, "mixed")
    numbers.freeze(a, "mixed again")
    numbers.tie(a[1:], b[:1])
    numbers.freeze(b, "output", first=True)
    assert numbers.frozen(numbers.merged()) == {
        0: "mixed",
        1: "output",
        2: "output",
    }


def test_a_tensor_of_which_nothing_is_known_has_frozen_numbers():
    numbers = Numbers()
    x = numbers.unknown((None, 4, 3), "input")
    assert (x.axis, x.any_axis) == (2, True)
    y = numbers.unknown((None, None, None), "input")
    z = numbers.unknown((None,), "input")
    assert len(y.numbers) == len(z.numbers) == 0
    assert set(numbers.frozen(numbers.merged())) == set(x.numbers.tolist())
