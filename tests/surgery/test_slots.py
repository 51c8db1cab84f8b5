"""Every slot belongs to its weight, in memory and in a file."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_prunetrain import keras_internals, reconfigure
from tests import networks, optimizers
from tests.masked import leaves
from tests.networks import conv, images, kill, shake, targets

# Networks with a residual branch, and the layer whose death takes it away.
BRANCHES = {
    networks.residual: "conv1",
    networks.projection: "conv1",
    networks.bottleneck: "conv2",
    networks.nested: "inner/a",
}


def towers():
    """Two towers: once the branch of one leaves, Keras sorts layers anew."""

    def tower(image, name):
        x = conv(image, 4, name, activation="tanh")
        y = conv(x, 4, f"{name}1", activation="tanh")
        y = conv(y, 4, f"{name}2", activation="tanh")
        x = conv(layers.Add()([x, y]), 4, f"{name}3", activation="tanh")
        return layers.GlobalAveragePooling2D()(x)

    image = keras.Input((6, 6, 2))
    x = layers.Concatenate()([tower(image, "p"), tower(2.0 * image, "q")])
    return keras.Model(image, layers.Dense(3, name="logits")(x))


def trained(model, optimizer, dead):
    """Trains `model` until every slot holds something; then `dead` dies."""
    model.compile(optimizer, "mse", run_eagerly=True)
    shake(model)
    for _ in range(3):
        model.train_on_batch(images(), targets())
    width = networks.find(model, dead).kernel.shape[-1]
    kill(model, {dead: list(range(width))})
    reader = {"conv1": "conv2", "conv2": "conv3", "inner/a": "inner/b"}.get(
        dead, "p2"
    )
    kill(model, reads={reader: list(range(width))})
    return model


def paths(variables):
    return [v.path for v in variables]


def slots(model):
    """Dict from a slot's name, which has its weight's path in it, to values."""
    return {
        slot.path.rpartition("/")[2]: slot.numpy()
        for optimizer in keras_internals.leaf_optimizers(model.optimizer)
        for slot in optimizer.variables
        if "kernel" in slot.path or "bias" in slot.path
    }


def assert_in_order(model):
    """Asserts that every list of slots is in the order of the weights."""
    found = paths(model.optimizer._trainable_variables)
    assert found == paths(model.trainable_variables)
    for optimizer in keras_internals.leaf_optimizers(model.optimizer):
        updated = paths(optimizer._trainable_variables)
        assert updated == [path for path in found if path in updated]
        _, by_name, _ = keras_internals.optimizer_variables(optimizer)
        for slots in by_name.values():
            for path, slot in zip(updated, slots, strict=True):
                name = path.replace("/", "_")
                assert slot is None or f"/{name}_" in slot.path


@pytest.mark.parametrize("name", optimizers.sampled())
def test_slots_follow_weights_that_a_branch_leaves_in_another_order(
    name, tmp_path
):
    model = trained(towers(), optimizers.ALL[name](), "p1")
    before = slots(model)

    smaller = reconfigure(model)

    order = paths(smaller.trainable_variables)
    assert order != [p for p in paths(model.trainable_variables) if p in order]
    assert_in_order(smaller)
    assert slots(smaller).keys() < before.keys() or not before
    for slot, value in slots(smaller).items():
        np.testing.assert_array_equal(value, before[slot], err_msg=slot)
    if name != "multi_by_function":  # Keras loads no function of a user's.
        assert_same_step_after_loading(smaller, tmp_path)


@pytest.mark.parametrize(
    ("build", "optimizer"),
    [*zip(BRANCHES, ["ema", "loss_scale", "accumulate", "ema"], strict=True)],
)
def test_a_model_without_a_branch_is_the_same_when_it_is_loaded(
    build, optimizer, tmp_path
):
    optimizer = optimizers.ALL[optimizer]()
    model = trained(build().model, optimizer, BRANCHES[build])

    smaller = reconfigure(model)

    assert len(list(leaves(smaller))) < len(list(leaves(model)))
    assert_in_order(smaller)
    assert_same_step_after_loading(smaller, tmp_path)


def assert_same_step_after_loading(model, folder):
    model.save(folder / "model.keras")
    loaded = keras.saving.load_model(folder / "model.keras")
    for m in (model, loaded):
        # What is summed up in another order differs in the last digit.
        m.run_eagerly = True
        m.train_on_batch(images(), targets())
    for found, expected in zip(loaded.variables, model.variables, strict=True):
        np.testing.assert_allclose(
            found, expected, rtol=1e-5, atol=1e-6, err_msg=expected.path
        )


def test_the_end_of_fit_gives_each_weight_its_own_average():
    model = trained(towers(), optimizers.ALL["ema"](), "p1")
    averages = slots(model)
    smaller = reconfigure(model)

    smaller.optimizer.finalize_variable_values(smaller.trainable_variables)

    for weight in smaller.trainable_variables:
        slot = f"{weight.path.replace('/', '_')}_average"
        np.testing.assert_array_equal(weight, averages[slot], weight.path)


def test_weights_that_are_frozen_meanwhile_keep_their_slots():
    model = trained(towers(), optimizers.ALL["ema"](), "p1")
    before = slots(model)
    model.get_layer("q").trainable = False

    smaller = reconfigure(model)

    updated = paths(smaller.optimizer._trainable_variables)
    assert updated[-2:] == ["q/kernel", "q/bias"]
    assert updated[:-2] == paths(smaller.trainable_variables)
    found = slots(smaller)
    for name in ("q_kernel_momentum", "q_kernel_average"):
        np.testing.assert_array_equal(found[name], before[name])
    smaller.train_on_batch(images(), targets())
    smaller.get_layer("q").trainable = True
    smaller.train_on_batch(images(), targets())


def test_members_that_a_function_chose_keep_their_weights():
    shared = keras.optimizers.Adam(0.01), keras.optimizers.SGD(0.1, 0.9)
    optimizer = keras.optimizers.MultiOptimizer(
        lambda v: shared["bias" in v.path]
    )
    model = trained(towers(), optimizer, "p1")

    smaller = reconfigure(model)

    assert optimizer.optimizers == list(shared)
    for old, new in zip(shared, smaller.optimizer.optimizers, strict=True):
        assert new is not old
        assert type(new) is type(old)
        stay = set(paths(smaller.trainable_variables))
        assert set(paths(new._trainable_variables)) == stay & set(
            paths(old._trainable_variables)
        )
    before = shared[0].iterations.numpy()
    smaller.train_on_batch(images(), targets())
    assert shared[0].iterations == before
    model.train_on_batch(images(), targets())
    assert shared[0].iterations == before + 1


@pytest.mark.parametrize("wrap", [False, True])
def test_an_unregistered_schedule_is_carried_as_the_object_it_is(wrap):
    class Unregistered(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.25

    schedule = Unregistered()  # Without a config.
    inner = optimizer = keras.optimizers.SGD(schedule, momentum=0.9)
    if wrap:
        optimizer = keras.optimizers.LossScaleOptimizer(inner)
    smaller = reconfigure(trained(towers(), optimizer, "p1"))
    (copy,) = keras_internals.leaf_optimizers(smaller.optimizer)
    assert copy is not inner
    assert copy._learning_rate is inner._learning_rate is schedule


def test_a_slot_of_another_shape_than_its_weight_is_an_error():
    model = trained(towers(), keras.optimizers.Adafactor(0.01), "p1")
    kill(model, {"q1": [1]}, {"q2": [1]})
    with pytest.raises(ValueError, match="state of Adafactor over.*has shape"):
        reconfigure(model)


@keras.saving.register_keras_serializable("kpt_tests")
class Lazy(keras.optimizers.Optimizer):
    """Makes its slots in the first step."""

    def update_step(self, gradient, variable, learning_rate):
        self.assign_sub(variable, gradient * learning_rate)

    def apply(self, grads, trainable_variables=None):
        super().apply(grads, trainable_variables)
        self.sums = [keras.Variable(g) for g in grads]


def test_slots_that_are_not_made_when_it_is_built_are_an_error():
    model = trained(towers(), Lazy(0.01), "p1")
    with pytest.raises(ValueError, match="`build` makes no 'sums' for"):
        reconfigure(model)
