"""When the rounds are, and what is left after each, by hand."""

import keras
import pytest

from keras_prunetrain.fit.rounds import (
    Target,
    check_window,
    rate_has_dropped,
    rounds_of,
    target_of,
)


def rounds(fraction=0.5, name="flops", first=0, epochs=40, **kwargs):
    window = {"warmup": 0.05, "decay": 0.1, "rounds": 4} | kwargs
    return rounds_of(Target(name, fraction), first, epochs, **window)


def windows(found):
    return [(x.begin, x.end) for x in found]


@pytest.mark.parametrize(
    ("epochs", "kwargs", "expected"),
    [
        (40, {}, [(2, 3), (3, 4), (4, 5), (5, 6)]),
        (20, {}, [(1, 2), (2, 3)]),
        (182, {}, [(9, 13), (13, 18), (18, 22), (22, 27)]),
        (5, {}, [(1, 2)]),
        (40, {"warmup": 0, "decay": 3, "rounds": 1}, [(0, 3)]),
        (40, {"warmup": 10, "decay": 0.25, "rounds": 2}, [(10, 15), (15, 20)]),
    ],
)
def test_the_rounds_follow_the_warmup(epochs, kwargs, expected):
    assert windows(rounds(epochs=epochs, **kwargs)) == expected


def test_epochs_count_from_the_first_of_this_fit():
    assert windows(rounds(first=100, epochs=140))[0] == (102, 103)


def test_the_cost_falls_by_the_same_factor_in_each_round():
    fractions = [x.fraction for x in rounds(0.0625)]
    assert fractions == pytest.approx([0.5, 0.25, 0.125, 0.0625])


@pytest.mark.parametrize("epochs", [20, 40, 182])
@pytest.mark.parametrize("budget", [0.3, 0.55, 0.9])
def test_all_epochs_together_cost_the_target(epochs, budget):
    found = rounds(budget, "training_flops", epochs=epochs)
    costs, cost = [], 1.0
    ends = {x.end: x.fraction for x in found}
    for epoch in range(epochs):
        cost = ends.get(epoch, cost)
        costs.append(cost)
    assert sum(costs) / epochs == pytest.approx(budget)


def test_a_budget_below_what_the_first_epochs_cost_is_refused():
    with pytest.raises(ValueError, match="above 0.075, which the epochs"):
        rounds(0.07, "training_flops")
    assert rounds(0.08, "training_flops")[-1].fraction > 0.0


@pytest.mark.parametrize("kwargs", [{"epochs": 2}, {"warmup": 36, "decay": 4}])
def test_an_epoch_must_follow_the_last_round(kwargs):
    with pytest.raises(ValueError, match="At least one epoch must follow"):
        rounds(**kwargs)


def test_exactly_one_target_is_given():
    assert target_of(flops=None, parameters=0.3) == Target("parameters", 0.3)
    assert Target("training_flops", 0.5).quantity == "forward_flops"
    assert Target("activation_bytes", 0.5).quantity == "activation_bytes"
    with pytest.raises(ValueError, match="Received: none"):
        target_of(flops=None, parameters=None)
    with pytest.raises(ValueError, match="Received: flops=0.5, parameters=0.3"):
        target_of(flops=0.5, parameters=0.3)


@pytest.mark.parametrize("value", [0, 1, 1.5, -0.1, "0.5", True, float("nan")])
def test_a_target_is_a_fraction(value):
    with pytest.raises(ValueError, match="`flops` must be a fraction"):
        target_of(flops=value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("warmup", x) for x in (-1, 1.0, 0.0, "a", None, True)),
        *(("decay", x) for x in (0, -1, 1.0, 0.0, None)),
        *(("rounds", x) for x in (0, 1.5, None)),
        *(("max_layer_cut", x) for x in (0, 1, 1.5, None)),
    ],
)
def test_a_window_out_of_its_range_is_refused(name, value):
    window = {"warmup": 1, "decay": 1, "rounds": 1, "max_layer_cut": 0.5}
    check_window(**window)
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        check_window(**window | {name: value})


def drop_at(epoch):
    return keras.callbacks.LearningRateScheduler(
        lambda e, rate: rate * 0.1 if e == epoch else rate
    )


def drops(callbacks, first, end, rate=0.1, steps=None):
    optimizer = keras.optimizers.SGD(rate)
    return rate_has_dropped(callbacks, optimizer, first, end, steps)


def test_a_rate_that_drops_before_the_last_cut_is_seen():
    assert drops([drop_at(5)], 0, 6)
    assert not drops([drop_at(6)], 0, 6)
    assert not drops([], 0, 6)
    by_epoch = keras.callbacks.LearningRateScheduler(lambda e: 0.1 if e else 9)
    assert drops([by_epoch], 0, 6)


def test_a_drop_before_this_fit_does_not_count():
    assert not drops([drop_at(5)], 6, 10)
    assert drops([drop_at(7)], 6, 10)


def test_a_rate_that_rises_has_not_dropped():
    # From below what the optimizer was made with.
    rising = keras.callbacks.LearningRateScheduler(lambda e: 0.01 * (e + 1))
    assert not drops([rising], 0, 4)


def test_a_schedule_that_fails_is_left_to_keras():
    failing = keras.callbacks.LearningRateScheduler(lambda e, rate: 1 / 0)
    assert not drops([failing], 0, 4)


def test_the_schedule_of_the_optimizer_counts():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [29], [0.1, 0.01]
    )
    assert drops([], 10, 14, schedule, steps=10)
    assert not drops([], 10, 13, schedule, steps=10)
    assert not drops([], 10, 14, schedule, steps=None)
