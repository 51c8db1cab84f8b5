"""What goes under a target, against a choice by brute force."""

import gc
import logging

import keras
import numpy as np
import pytest

import keras_prunetrain as kpt
from keras_prunetrain.channel_costs import QUANTITIES, ChannelCosts
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.channels.options import CutOptions
from keras_prunetrain.choice import Choice, distinct, least_channels
from keras_prunetrain.surgery.reconfigure import prepare_cut
from tests import networks

# The others have a size that only the data tell.
SIZED = [x for x in networks.sampled() if x.values[0] is not networks.einsum]


def choice_of(model, quantity="forward_flops", cut=0.7, **options):
    numbering = number_channels(model)
    least = least_channels(numbering, cut)
    return numbering, Choice(
        model, numbering, quantity, CutOptions(**options), least
    )


def cost_of(model, quantity):
    if quantity == "channels":
        numbering = number_channels(model)
        return numbering.size - len(numbering.frozen)
    return getattr(kpt.model_cost(model), quantity)


def cost_after(model, plan, quantity):
    if quantity == "channels":
        # A smaller channel shuffle may tell apart what was coupled before.
        return int(plan.alive.sum()) - len(plan.numbering.frozen)
    return cost_of(prepare_cut(model, plan).model, quantity)


def by_brute_force(model, numbering, scores, limit, quantity, cut):
    """Removes one channel after the other, and counts anew after each."""
    shares = ChannelCosts(model, numbering, quantity).shares(
        np.ones(numbering.size, bool)
    )
    stays = set(numbering.frozen)
    order = [
        n
        for n in np.argsort(
            scores / np.maximum(shares, 1e-12), kind="stable"
        ).tolist()
        if n not in stays
    ]
    alive = np.ones(numbering.size, bool)
    layers = [x.numbers for x in numbering.kernels("out")]
    costs = ChannelCosts(model, numbering, quantity)
    for number in order:
        if costs.of(alive) <= limit:
            break
        alive[number] = False
        if any(
            alive[x].sum() < np.ceil((1.0 - cut) * len(x)) and number in x
            for x in layers
        ):
            alive[number] = True
    return alive


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize(
    "build",
    [
        networks.plain,
        networks.residual,
        networks.bottleneck,
        networks.concatenating,
        networks.nested,
    ],
)
def test_the_chosen_channels_are_those_of_brute_force(build, quantity):
    model = build().model
    numbering, choice = choice_of(model, quantity)
    # Those of GraSP may be below 0.
    scores = np.random.default_rng(0).uniform(-0.3, 1.0, numbering.size)
    limit = 0.7 * cost_of(model, quantity)
    plan = choice.plan(scores, limit)
    expected = by_brute_force(model, numbering, scores, limit, quantity, 0.7)
    np.testing.assert_array_equal(plan.alive, expected)
    assert not plan.alive.all()


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("build", SIZED)
def test_the_target_is_met_with_no_channel_to_spare(build, quantity):
    model = build().model
    numbering, choice = choice_of(model, quantity, cut=0.9)
    total = cost_of(model, quantity)
    scores = np.random.default_rng(1).uniform(0.1, 1.0, numbering.size)
    limit = max(0.6 * total, choice.least_cost())
    if limit >= total:
        pytest.skip("no channel of this quantity may go")
    plan = choice.plan(scores, limit)
    after = cost_after(model, plan, quantity)
    assert after <= limit
    # With the last channel that went, it was too much.
    shares = ChannelCosts(model, numbering, quantity).shares(
        np.ones(numbering.size, bool)
    )
    values = scores / np.maximum(shares, 1e-12)
    gone = np.flatnonzero(~plan.alive)
    last = gone[np.argmax(values[gone])]
    alive = plan.alive.copy()
    alive[last] = True
    costs = ChannelCosts(model, numbering, quantity)
    assert costs.of(alive) > limit


def test_frozen_skipped_and_untrained_channels_are_no_candidates():
    model = networks.residual().model
    numbering, choice = choice_of(model)
    layers = {x.layer: x.numbers for x in numbering.kernels("out")}
    assert set(choice.candidates) == {*layers["stem"], *layers["conv1"]}
    _, skipping = choice_of(model, skip=("conv1",))
    assert not set(skipping.candidates) & {*layers["conv1"], *layers["stem"]}
    model.get_layer("conv2").trainable = False
    _, frozen = choice_of(model)
    assert not len(frozen.candidates)


def test_a_layer_keeps_its_part_and_the_least_number_of_channels():
    model = kpt.models.resnet8((8, 8, 1), 4)
    for kwargs, part in (
        ({"cut": 0.25}, lambda n: -(-3 * n // 4)),
        ({"cut": 0.99, "min_channels": 12}, lambda n: 12),
    ):
        numbering, choice = choice_of(model, **kwargs)
        plan = choice.plan(np.ones(numbering.size), 0.0)
        for label in numbering.kernels("out"):
            if label.layer != "logits":
                kept = plan.alive[label.numbers].sum()
                assert kept == part(len(label.numbers)), label.layer
        left = cost_after(model, plan, "forward_flops")
        assert choice.least_cost() == left


@pytest.mark.parametrize(
    ("cut", "channels", "left"), [(0.7, 10, 3), (0.7, 120, 36), (0.7, 11, 4)]
)
def test_all_of_the_part_that_may_go_goes(cut, channels, left):
    inputs = keras.Input((4,))
    x = keras.layers.Dense(channels, name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, name="logits")(x))
    assert least_channels(number_channels(model), cut)["hidden"] == left


def test_heads_and_the_channels_in_them_have_limits_of_their_own():
    steps = keras.Input((5, 12))
    x = keras.layers.MultiHeadAttention(4, 3, 8, name="att")(steps, steps)
    model = keras.Model(steps, keras.layers.Dense(2, name="logits")(x))
    numbering, choice = choice_of(model, cut=0.75)
    assert least_channels(numbering, 0.75) == {
        "att": 3,
        "att/num_heads": 1,
        "att/value_dim": 2,
        "logits": 1,
    }
    plan = choice.plan(np.ones(numbering.size), 0.0)
    kept = [int(plan.alive[x].sum()) for x in numbering.inner_numbers()]
    assert kept == [1, 2]


def test_heads_may_be_fewer_than_the_least_of_channels():
    steps = keras.Input((5, 12))
    x = keras.layers.MultiHeadAttention(4, 3, 8, name="att")(steps, steps)
    model = keras.Model(steps, keras.layers.Dense(2)(x))
    numbering, choice = choice_of(model, cut=0.99, min_channels=6)
    plan = choice.plan(np.ones(numbering.size), 0.0)
    kept = [int(plan.alive[x].sum()) for x in numbering.inner_numbers()]
    assert kept == [1, 2]
    assert plan.alive[numbering.outputs["att"][0].numbers].sum() == 6


def test_heads_of_keys_that_several_queries_read_may_go():
    steps = keras.Input((5, 12))
    x = keras.layers.GroupQueryAttention(4, 8, 2, name="shared")(steps, steps)
    model = keras.Model(steps, keras.layers.Dense(2)(x))
    numbering, choice = choice_of(model, cut=0.5)
    plan = choice.plan(np.ones(numbering.size), 0.0)
    (heads,) = numbering.inner["shared"].values()
    assert plan.alive[heads].tolist() == [False, True]


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"cut": 0.5}, 8),
        ({"cut": 0.99, "min_channels": 6}, 6),
        ({"cut": 0.99, "channel_multiple": 4}, 4),
    ],
)
def test_an_embedding_keeps_as_many_channels_as_other_layers(options, left):
    words = keras.Input((6,), dtype="int32")
    x = keras.layers.Embedding(50, 16, name="words")(words)
    x = keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(words, keras.layers.Dense(2, name="logits")(x))
    numbering, choice = choice_of(model, "parameters", **options)
    plan = choice.plan(np.ones(numbering.size), 0.0)
    assert plan.alive[numbering.outputs["words"][0].numbers].sum() == left


def test_a_piece_of_a_split_does_not_go_whole_and_come_back():
    image = keras.Input((4, 4, 2))
    x = networks.conv(image, 8, "stem")
    left, right = keras.ops.split(x, 2, axis=-1)
    x = networks.conv(left, 4, "a") + networks.conv(right, 4, "b")
    model = keras.Model(image, networks.head(x))
    numbering, choice = choice_of(model, cut=0.7)
    # All of the left piece would be first.
    plan = choice.plan(np.ones(numbering.size), 0.0)
    kept = plan.alive[numbering.outputs["stem"][0].numbers]
    assert kept.tolist() == [False] * 3 + [True] + [False] * 2 + [True] * 2


def test_a_limit_that_is_rounded_is_met(caplog):
    inputs = keras.Input((4,))
    x = keras.layers.Dense(10, name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, name="logits")(x))
    numbering, choice = choice_of(model, "channels", cut=0.9)
    for fraction, kept in ((1.0 - 0.9, 1), (1.0 - 0.8, 2)):
        assert 10 * fraction < kept
        plan = choice.plan(np.ones(numbering.size), 10 * fraction)
        hidden = numbering.outputs["hidden"][0].numbers
        assert plan.alive[hidden].sum() == kept
    assert not caplog.records  # It would say that the target is missed.


def test_a_target_that_is_missed_is_said(caplog):
    model = networks.residual().model
    numbering, choice = choice_of(model, cut=0.2)
    total = cost_of(model, "forward_flops")
    scores = np.random.default_rng(0).random(numbering.size)
    with caplog.at_level(logging.WARNING, "keras_prunetrain"):
        choice.plan(scores, choice.least_cost())
        assert not caplog.records
        choice.plan(scores, 0.5 * choice.least_cost())
    share = choice.least_cost() / total
    assert f"keeps {share:.3g} of its forward_flops" in caplog.text
    assert f"and {share / 2:.3g} was asked for" in caplog.text


def test_counting_leaves_nothing_in_memory():
    model = networks.residual().model
    numbering, choice = choice_of(model)
    scores = np.random.default_rng(0).random(numbering.size)
    choice.plan(scores, 0.7 * cost_of(model, "forward_flops"))
    gc.disable()
    try:
        before = _models()
        choice.plan(scores, 0.7 * cost_of(model, "forward_flops"))
        assert _models() == before
    finally:
        gc.enable()


def _models():
    return sum(isinstance(x, keras.Model) for x in gc.get_objects())


def test_with_a_multiple_the_target_is_met_in_blocks():
    model = kpt.models.resnet8((8, 8, 1), 4)
    numbering, choice = choice_of(model, channel_multiple=4)
    total = cost_of(model, "forward_flops")
    scores = np.random.default_rng(0).random(numbering.size)
    plan = choice.plan(scores, 0.5 * total)
    for label in numbering.kernels("out"):
        if label.layer != "logits":
            assert plan.alive[label.numbers].sum() % 4 == 0
    assert 0.4 * total < cost_after(model, plan, "forward_flops") <= 0.5 * total


class Squared(keras.layers.Dense):
    """A layer whose cost grows with the square of its channels."""


def test_a_layer_whose_cost_is_no_product_is_counted():
    rule = kpt.LayerRule(
        flow="produces",
        size_arguments=("units",),
        in_axis={"kernel": -2},
        out_axis={"kernel": -1, "bias": -1},
        macs=lambda layer, read, written: layer.units**2 * 50,
    )
    kpt.register_rule(Squared, rule)
    inputs = keras.Input((8,))
    x = Squared(16, name="twice")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, name="logits")(x))
    numbering, choice = choice_of(model)
    total = cost_of(model, "forward_flops")
    scores = np.random.default_rng(0).random(numbering.size)
    plan = choice.plan(scores, 0.5 * total)
    # 11 of 16 channels cost 0.47 of it; 12 cost 0.56.
    kept = plan.alive[numbering.kernels("out")[0].numbers].sum()
    assert kept == 11
    assert cost_after(model, plan, "forward_flops") <= 0.5 * total
    # 5 channels, 0.3 of 16, cost 0.1 of it.
    assert choice.least_cost() == 2 * (5**2 * 50 + 5 * 2)


def test_equal_scores_are_drawn_and_it_is_said(caplog):
    candidates = np.arange(2, 8)
    with caplog.at_level(logging.WARNING, "keras_prunetrain"):
        found = distinct(np.ones(10), candidates)
    assert len(np.unique(found[candidates])) == 6
    assert "All channels have the same score, 1" in caplog.text
    caplog.clear()
    scores = np.arange(10.0)
    assert distinct(scores, candidates) is scores
    assert not caplog.records
