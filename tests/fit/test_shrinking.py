"""Chosen channels shrink to zero in the step, whatever takes the step."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.fit.shrinking import ShrinkingChannels
from keras_prunetrain.saliency import gate_gradients, readers
from tests import networks, optimizers

LOSS = keras.losses.MeanSquaredError


def compiled(build=networks.residual, optimizer="sgd", strategy=None, **kwargs):
    keras.utils.set_random_seed(0)
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = build().model
        model.compile(
            optimizers.ALL[optimizer](), LOSS(), run_eagerly=strategy is None
        )
        networks.shake(model)
        model.optimizer.build(model.trainable_variables)
    return model


def data(count=8):
    return (
        networks.images(count).astype("float32"),
        networks.targets(count).astype("float32"),
    )


def attached(model, choose=2):
    """A `ShrinkingChannels`, and which channels are to shrink."""
    numbering = number_channels(model)
    shrinking = ShrinkingChannels(model, numbering)
    shrinking.attach()
    chosen = np.zeros(numbering.size, bool)
    for label in numbering.kernels("out"):
        free = [n for n in label.numbers if n not in numbering.frozen]
        chosen[free[:choose]] = True
    return numbering, shrinking, chosen


def train(model, steps, count=8, batch_size=4):
    x, y = data(count)
    model.fit(x, y, batch_size, steps * batch_size // count, verbose=0)


def variables_of(model, numbering, chosen):
    """Yields the value of each weight that trains, and of each of its slots.

    With them the place of all that is to be zero, a bool array.
    """
    places = {}
    for label in numbering.labels:
        if label.weight.trainable:
            shape = [1] * len(label.weight.shape)
            shape[label.axis] = -1
            place = np.broadcast_to(
                chosen[label.numbers].reshape(shape), label.weight.shape
            )
            before = places.get(id(label.weight), False)
            places[id(label.weight)] = place | before
    for optimizer in keras_internals.leaf_optimizers(model.optimizer):
        updated, slots, _ = keras_internals.optimizer_variables(optimizer)
        for i, weight in enumerate(updated):
            place = places.get(id(weight))
            if place is not None:
                yield weight.path, weight.numpy(), place
                for name, of_all in slots.items():
                    slot = of_all[i]
                    if slot is not None and slot.shape == weight.shape:
                        yield f"{name} {weight.path}", slot.numpy(), place


def check_zeros(model, numbering, chosen):
    found = list(variables_of(model, numbering, chosen))
    assert found
    for name, value, place in found:
        assert place.any() or "logits/bias" in name, name
        assert not value[place].any(), name
    kernels = [(v, p) for n, v, p in found if n.endswith("kernel")]
    assert any(value[~place].all() for value, place in kernels)


@pytest.mark.parametrize("name", optimizers.sampled())
def test_the_chosen_channels_and_their_slots_are_zero(name):
    model = compiled(optimizer=name)
    numbering, shrinking, chosen = attached(model)
    shrinking.shrink(chosen, 4)
    train(model, 4)
    check_zeros(model, numbering, chosen)
    train(model, 2)  # They stay so.
    check_zeros(model, numbering, chosen)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_in_mixed_precision_as_well(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = compiled(optimizer="adamw")
    finally:
        keras.config.set_dtype_policy("float32")
    numbering, shrinking, chosen = attached(model)
    shrinking.shrink(chosen, 4)
    train(model, 4)
    check_zeros(model, numbering, chosen)


@pytest.mark.parametrize("name", ["multi", "loss_scale"])
def test_on_two_replicas_as_well(strategy, name):
    model = compiled(optimizer=name, strategy=strategy)
    numbering, shrinking, chosen = attached(model)
    shrinking.shrink(chosen, 4)
    train(model, 4)
    check_zeros(model, numbering, chosen)
    for weight in model.trainable_weights:
        one, other = strategy.experimental_local_results(weight.value)
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("build", networks.sampled())
def test_all_weights_of_a_channel_shrink_in_every_network(build):
    model = compiled(build)
    numbering, shrinking, chosen = attached(model, choose=1)
    x = [
        np.ones((2, *[size or 3 for size in i.shape[1:]]), "float32")
        for i in model.inputs
    ]
    x = x if len(x) > 1 else x[0]
    y = keras.tree.map_structure(
        lambda out: np.zeros(out.shape, "float32"), model(x)
    )
    shrinking.shrink(chosen, 2)
    model.fit(x, y, 1, 1, verbose=0)
    for name, value, place in variables_of(model, numbering, chosen):
        assert not value[place].any(), name


def test_they_shrink_linearly_and_entries_of_two_channels_no_faster():
    model = compiled()
    model.optimizer.learning_rate = 0.0
    numbering, shrinking, chosen = attached(model)
    before = {n: v for n, v, _ in variables_of(model, numbering, chosen)}
    shrinking.shrink(chosen, 4)
    for left in (0.75, 0.5, 0.25, 0.0):
        train(model, 1, count=4)
        for name, value, place in variables_of(model, numbering, chosen):
            expected = np.where(place, left, 1.0) * before[name]
            np.testing.assert_allclose(value, expected, atol=1e-6)


def test_nothing_changes_while_nothing_is_chosen():
    plain, hooked = compiled(optimizer="adamw"), compiled(optimizer="adamw")
    attached(hooked)
    for model in (plain, hooked):
        keras.utils.set_random_seed(1)
        train(model, 4)
    for one, other in zip(plain.weights, hooked.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_detached_leaves_nothing():
    model = compiled(optimizer="loss_scale")
    _, shrinking, _ = attached(model)
    (leaf,) = keras_internals.leaf_optimizers(model.optimizer)
    assert "apply" in vars(leaf)
    shrinking.detach(model)
    assert "apply" not in vars(leaf)


def by_hand(model, x, y, batches):
    """The mean magnitude of the gates' gradients at the weights as they are."""
    numbering = number_channels(model)
    reading = readers(numbering)
    weights = {id(r.weight): r.weight.value for r in reading}
    total = np.zeros(numbering.size)
    for part in np.split(np.arange(len(x)), batches):
        with tf.GradientTape() as tape:
            loss = LOSS()(y[part], model(x[part], training=True))
        gradients = tape.gradient(loss, list(weights.values()))
        by_weight = dict(zip(weights, gradients, strict=True))
        gates = gate_gradients(reading, by_weight, numbering.size)
        total += np.abs(gates.numpy())
    return total / batches


def penalty(weight):
    """A regularizer of the user's, a function."""
    return 0.01 * keras.ops.sum(keras.ops.square(weight))


def regularized():
    image = keras.Input((6, 6, 2))
    x = networks.conv(
        image, 6, "a", kernel_regularizer=keras.regularizers.L2(0.1)
    )
    x = keras.layers.ReLU()(x)
    x = networks.conv(x, 5, "b", kernel_regularizer=penalty)
    x = keras.layers.GlobalAveragePooling2D()(x)
    out = keras.layers.Dense(
        3, name="logits", kernel_regularizer=keras.regularizers.L1(0.1)
    )(x)
    return networks.Network(keras.Model(image, out), {}, {}, {})


@pytest.mark.parametrize("build", [networks.residual, regularized])
@pytest.mark.parametrize("name", ["sgd", "accumulate", "loss_scale"])
def test_scores_are_mean_gates_without_the_penalties(build, name):
    model = compiled(build, name)
    model.optimizer.learning_rate = 0.0
    _, shrinking, _ = attached(model)
    assert shrinking.scores() is None
    x, y = data()
    for _ in range(2):
        model.fit(x, y, 4, shuffle=False, verbose=0)
        expected = by_hand(model, x, y, 2)
        assert expected.max() > 1e-3
        np.testing.assert_allclose(
            shrinking.scores(), expected, rtol=1e-3, atol=1e-6
        )
        shrinking.drop_scores()
        assert shrinking.scores() is None


def test_scores_of_two_replicas_are_those_of_one(strategy):
    model = compiled(regularized, strategy=strategy)
    model.optimizer.learning_rate = 0.0
    _, shrinking, _ = attached(model)
    x, y = data()
    model.fit(x, y, 4, shuffle=False, verbose=0)
    expected = by_hand(model, x, y, 2)
    np.testing.assert_allclose(
        shrinking.scores(), expected, rtol=1e-3, atol=1e-6
    )


def test_the_state_goes_over_to_another_object():
    model = compiled()
    numbering, shrinking, chosen = attached(model)
    shrinking.shrink(chosen, 4)
    train(model, 2)
    state = shrinking.get_state()
    successor = ShrinkingChannels(model, numbering)
    successor.set_state(state)
    successor.attach()  # In the place of the other one.
    np.testing.assert_allclose(successor.scores(), shrinking.scores())
    train(model, 2)
    check_zeros(model, numbering, chosen)
