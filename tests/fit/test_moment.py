"""The moment at which to prune, by distances that are made by hand."""

import keras
import numpy as np
import pytest

from keras_prunetrain.fit.moment import (
    Moment,
    check_moment,
    default_last_epoch,
)


def model_of(value):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    set_to(model, value)
    return model


def set_to(model, value):
    for weight in model.weights:
        weight.assign(np.full(weight.shape, value))


def moments(values, first_weights=1.0, **kwargs):
    """The epochs after which the moment has come, and the `Moment`."""
    arguments = {"when": "lazy", "sparsity": 0.5, "first": 1, "last": 99}
    moment = Moment(**arguments | kwargs)
    model = model_of(first_weights)
    moment.begin(model)
    found = []
    for epoch, value in enumerate(values):
        set_to(model, value)
        moment.end_epoch(model)
        if moment.has_come:
            found.append(epoch)
    return found, moment


def test_distances_are_relative_to_the_first_weights():
    _, moment = moments([3.0, 5.0], first_weights=2.0)
    assert moment.distances == pytest.approx([0.5, 1.5])


def test_no_distance_is_near_from_weights_that_are_all_zero():
    found, moment = moments([0.0, 1.0, 1.1], first_weights=0.0, last=3)
    assert found == [2] and moment.is_late
    assert np.isinf(moment.distances).all()


@pytest.mark.parametrize(
    ("epochs", "first", "later", "last"),
    [(10, 1, 0, 5), (5, 3, 0, 4), (4, 1, 2, 1), (2, 1, 0, 1), (1, 1, 0, 1)],
)
def test_the_last_epoch_leaves_room(epochs, first, later, last):
    assert default_last_epoch(epochs, first, later) == last


def test_the_moment_is_the_first_small_change():
    # Changes of the distance: 2, 1, 0.4, 0 (which does not count), 0.1.
    values = [2.0, 4.0, 5.0, 5.4, 5.4, 5.5]
    assert moments(values)[0] == [3, 5]
    assert moments(values, sparsity=0.7)[0] == [5]
    assert moments(values, sparsity=0.7)[1].is_late is False


def test_it_comes_neither_before_the_first_nor_after_the_last_epoch():
    values = [1.1, 1.2, 1.3, 1.4]
    assert moments(values)[0] == [1, 2, 3]
    assert moments(values, first=3)[0] == [2, 3]
    wild = [2.0, 4.0, 8.0, 16.0]
    found, moment = moments(wild, last=3)
    assert found == [2, 3] and moment.is_late


def test_the_authors_code_compares_with_the_first_change():
    # Distances from the weights after the first epoch: 0, 1, 1.5, 1.8.
    values = [1.0, 2.0, 2.5, 2.8]
    found, moment = moments(values, when="paper_code")
    assert moment.distances == pytest.approx([0.0, 1.0, 1.5, 1.8])
    assert found == [3]  # 0.3 < 1 * (1 - 0.5 - 0.1)
    assert moments(values, when="paper_code", sparsity=0.65)[0] == []


def test_the_authors_code_is_less_strict_with_single_weights():
    values = [1.0, 2.0, 2.5, 2.8]  # 0.3 < 1 * (1 - 0.65)
    single = {"when": "paper_code", "structured": False}
    assert moments(values, sparsity=0.65, **single)[0] == [3]
    assert moments(values, sparsity=0.75, **single)[0] == []
    still = [1.0, 2.0, 2.5, 2.51]
    assert moments(still, sparsity=0.95, **single)[0] == [3]
    assert moments(still, sparsity=0.95, when="paper_code")[0] == []


def test_a_number_of_epochs_is_one():
    found, moment = moments([1.5, 1.0, 1.0], when=2, last=1)
    assert moment.distances == [0.5, 0.0, 0.0]  # From the first weights.
    assert found == [1, 2] and not moment.is_late


@pytest.mark.parametrize(
    ("kwargs", "values", "reason"),
    [
        ({}, [2.0, 4.0, 4.25],
         "after 3 epochs (when='lazy'): the distance from the first weights "
         "has changed by 0.25 of their norm, less than 0.5"),
        ({"when": "paper_code"}, [1.0, 2.0, 2.5, 2.8],
         "after 4 epochs (when='paper_code'): the distance from the first "
         "weights has changed by 0.3 of their norm, less than 0.4"),
        ({"last": 2}, [2.0, 4.0],
         "after 2 epochs (when='lazy'), though the weights have not met the "
         "criterion: their distances from the first ones are 1, 3"),
        ({"when": 1}, [2.0], "after 1 epoch (when=1)"),
        ({"when": "start"}, [], "before the first step (when='start')"),
    ],
)  # fmt: skip
def test_it_says_why_it_has_come(kwargs, values, reason):
    moment = moments(values, **kwargs)[1]
    assert moment.reason == reason
    assert moment.is_late == ("though" in reason)
    assert moment.chosen is None
    moment.choose()
    assert moment.chosen == len(values)


def test_the_state_goes_over():
    values = [2.0, 4.0, 5.0]
    _, moment = moments(values)
    other = Moment("lazy", 0.5, 1, 99)
    other.set_state(moment.get_state())
    model = model_of(5.4)
    other.begin(model)
    other.end_epoch(model)
    assert other.distances == pytest.approx([1.0, 3.0, 4.0, 4.4])
    assert other.has_come


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("when", x) for x in ("late", 0, 1.5, None, True)),
        *(("first_epoch", x) for x in (0, None)),
        *(("last_epoch", x) for x in (0, 1.5)),
    ],
)
def test_what_is_out_of_range_is_refused(name, value):
    arguments = {
        "when": "lazy",
        "first_epoch": 1,
        "last_epoch": None,
    }
    check_moment(**arguments)
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        check_moment(**arguments | {name: value})
    with pytest.raises(ValueError, match="must not be below `first_epoch`"):
        check_moment(**arguments | {"first_epoch": 4, "last_epoch": 3})
