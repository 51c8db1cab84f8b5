"""The cost that is foreseen, against that of the model that results."""

import keras
import numpy as np
import pytest

from keras_prunetrain import model_cost, models
from keras_prunetrain.channel_costs import QUANTITIES, ChannelCosts
from keras_prunetrain.channels.liveness import plan_of
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.channels.options import CutOptions
from keras_prunetrain.surgery.reconfigure import prepare_cut
from tests import networks
from tests.masked import some_alive

# The number of channels is no part of a `Cost`.
COUNTED = [x for x in QUANTITIES if x != "channels"]
# The einsum network has a size that only the data tell.
BUILDS = [
    *(x for x in networks.sampled() if x.values[0] is not networks.einsum),
    lambda: resnet(),
]


def resnet():
    return networks.Network(models.resnet8((16, 16, 3), 10), {}, {}, {})


@pytest.mark.parametrize("build", BUILDS)
def test_the_foreseen_cost_is_that_of_the_smaller_model(build):
    model = build().model
    numbering = number_channels(model)
    alive = some_alive(numbering, np.random.default_rng(0))
    plan = plan_of(model, numbering, alive, CutOptions())
    before, after = (
        model_cost(model),
        model_cost(prepare_cut(model, plan).model),
    )
    for quantity in COUNTED:
        costs = ChannelCosts(model, numbering, quantity)
        everything = np.ones(numbering.size, bool)
        assert costs.total == getattr(before, quantity)
        assert costs.of(everything) == pytest.approx(costs.total)
        assert costs.of(plan.alive) == pytest.approx(getattr(after, quantity))
        assert costs.of(plan.alive) < costs.total or not plan.alive.all()


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("build", [networks.residual, networks.flattening])
def test_a_share_is_what_the_removal_of_one_channel_saves(build, quantity):
    model = build().model
    numbering = number_channels(model)
    costs = ChannelCosts(model, numbering, quantity)
    alive = some_alive(numbering, np.random.default_rng(0))
    shares = costs.shares(alive)
    assert (shares > 0.0).any()
    for number in np.flatnonzero(alive):
        without = alive.copy()
        without[number] = False
        saved = 1.0 - costs.of(without) / costs.of(alive)
        assert shares[number] == pytest.approx(saved, rel=1e-6)


def test_images_of_any_size_cost_what_the_data_say():
    image = keras.Input((None, None, 2))
    x = keras.layers.Conv2D(4, 3, name="a")(image)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, keras.layers.Dense(3)(x))
    numbering = number_channels(model)
    costs = ChannelCosts(model, numbering, "forward_flops", (8, 8, 2))
    assert costs.total == 2 * (36 * 9 * 2 * 4 + 4 * 3)


def test_the_mask_of_an_embedding_is_an_activation_like_others():
    words = keras.Input((6,), dtype="int32")
    x = keras.layers.Embedding(9, 4, mask_zero=True, name="words")(words)
    x = keras.layers.GRU(3)(x)
    model = keras.Model(words, keras.layers.Dense(2)(x))
    numbering = number_channels(model)
    alive = np.ones(numbering.size, bool)
    alive[numbering.outputs["words"][0].numbers[:2]] = False
    plan = plan_of(model, numbering, alive, CutOptions())
    costs = ChannelCosts(model, numbering, "activation_bytes")
    smaller = prepare_cut(model, plan).model
    assert costs.total == model_cost(model).activation_bytes
    assert costs.of(plan.alive) == model_cost(smaller).activation_bytes
    assert costs.of(plan.alive) < costs.total


def test_images_that_a_recurrent_layer_reads_cost_what_their_channels_do():
    video = keras.Input((3, 4, 4, 2))
    x = keras.layers.TimeDistributed(keras.layers.Conv2D(4, 1), name="a")(video)
    x = keras.layers.Flatten()(keras.layers.ConvLSTM2D(3, 2)(x))
    model = keras.Model(video, keras.layers.Dense(2)(x))
    numbering = number_channels(model)
    alive = np.ones(numbering.size, bool)
    alive[numbering.outputs["a"][0].numbers[:2]] = False
    plan = plan_of(model, numbering, alive, CutOptions())
    costs = ChannelCosts(model, numbering, "forward_flops")
    smaller = model_cost(prepare_cut(model, plan).model)
    assert costs.of(plan.alive) == pytest.approx(smaller.forward_flops)
    assert costs.of(plan.alive) < costs.total


@pytest.mark.parametrize(
    "options", [{}, {"output_shape": 20}, {"use_gate": True}]
)
def test_projections_cost_what_they_do_where_few_steps_attend_to_many(options):
    few, many = keras.Input((5, 6)), keras.Input((40, 9))
    attention = keras.layers.MultiHeadAttention(3, 2, 4, name="att", **options)
    model = keras.Model([few, many], attention(few, many))
    numbering = number_channels(model)
    inner = numbering.inner["att"]
    alive = np.ones(numbering.size, bool)
    alive[[*inner["num_heads"][:2], inner["value_dim"][0]]] = False
    plan = plan_of(model, numbering, alive, CutOptions())
    costs = ChannelCosts(model, numbering, "forward_flops")
    smaller = model_cost(prepare_cut(model, plan).model)
    assert costs.of(plan.alive) == pytest.approx(smaller.forward_flops)
    assert costs.of(plan.alive) < costs.total


def test_channels_around_an_attention_cost_what_their_cut_saves():
    few, many = keras.Input((5, 6)), keras.Input((40, 9))
    left = keras.layers.Dense(6, name="left")(few)
    right = keras.layers.Dense(8, name="right")(many)
    x = keras.layers.MultiHeadAttention(3, 2, 4, name="att")(left, right)
    model = keras.Model([few, many], keras.layers.Dense(2)(x))
    numbering = number_channels(model)
    alive = np.ones(numbering.size, bool)
    alive[[numbering.outputs[x][0].numbers[0] for x in ("left", "att")]] = False
    alive[numbering.outputs["right"][0].numbers[:5]] = False
    plan = plan_of(model, numbering, alive, CutOptions())
    smaller = model_cost(prepare_cut(model, plan).model)
    for quantity in ("forward_flops", "parameters", "activation_bytes"):
        costs = ChannelCosts(model, numbering, quantity)
        left = getattr(smaller, quantity)
        assert costs.of(plan.alive) == pytest.approx(left), quantity
        assert left < costs.total


def test_a_layer_in_two_models_costs_what_it_does_in_both():
    steps = keras.Input((5, 6))
    attention = keras.layers.MultiHeadAttention(4, 2)
    first = keras.Model(steps, attention(steps, steps), name="first")
    steps = keras.Input((5, 6))
    second = keras.Model(steps, attention(steps, steps), name="second")
    steps = keras.Input((5, 6))
    model = keras.Model(steps, second(first(steps)))
    numbering = number_channels(model)
    alive = np.ones(numbering.size, bool)
    (alone,) = {tuple(x["num_heads"]) for x in numbering.inner.values()}
    alive[list(alone[:2])] = False
    costs = ChannelCosts(model, numbering, "forward_flops")
    assert costs.of(alive) == pytest.approx(costs.total / 2)
