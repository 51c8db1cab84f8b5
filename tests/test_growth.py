"""What a batch grows to, and which trainings it is not for."""

import logging
import math

import keras
import pytest
import tensorflow as tf

from keras_prunetrain import DynamicBatch, training_bytes
from keras_prunetrain.growth import begin_growth, leaves_a_replica_empty
from keras_prunetrain.memory import device_bytes


def model_of(width, optimizer="sgd", size=8):
    image = keras.Input((size, size, 3))
    x = keras.layers.Conv2D(width, 3, name="a")(image)
    x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, keras.layers.Dense(2)(x))
    model.compile(optimizer, "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def begun(batch, model=None, examples=1000):
    batch(tf.data.Dataset.range(examples))
    return begin_growth(batch, model or model_of(16), batch.steps)


def test_it_grows_to_the_largest_multiple_that_the_first_memory_allows():
    first, smaller = model_of(16), model_of(5)
    growth = begun(DynamicBatch(64, granularity=8), first)
    budget = training_bytes(first, 64)
    size = growth.grow(smaller)
    assert size % 8 == 0
    assert training_bytes(smaller, size) <= budget
    assert training_bytes(smaller, size + 8) > budget


def test_a_model_that_keeps_no_activations_is_limited_by_its_data():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Rescaling(2.0)(inputs))
    model.compile("sgd", "mse")
    growth = begun(DynamicBatch(64), model, examples=1000)
    assert growth.grow(model) == 31 * 32


def test_a_budget_in_bytes_counts_instead():
    model = model_of(16)
    budget = training_bytes(model, 100) - 1
    growth = begun(DynamicBatch(8, 4, memory_budget=budget), model)
    assert growth.grow(model) == 96


def test_the_memory_of_the_device_is_a_budget():
    model = model_of(16)
    fixed = training_bytes(model, 0)
    per_example = training_bytes(model, 1) - fixed
    room = (device_bytes() / 1.25 - fixed) // per_example
    batch = DynamicBatch(8, granularity=1, memory_budget="device")
    assert begun(batch, model, examples=10**12).grow(model) == room


def test_a_backup_keeps_the_first_memory_but_no_budget_that_was_given():
    large, small = model_of(16), model_of(5)
    state = begun(DynamicBatch(64), large).get_state()
    growth = begun(DynamicBatch(64), small)
    growth.set_state(state)
    assert growth.budget == training_bytes(large, 64)
    growth = begun(DynamicBatch(64, memory_budget=2**20), small)
    growth.set_state(state)
    assert growth.budget == 2**20


def test_it_never_gets_smaller():
    model = model_of(16)
    budget = training_bytes(model, 30)
    growth = begun(DynamicBatch(64, 8, memory_budget=budget), model)
    assert growth.grow(model) == 64


def test_it_is_no_larger_than_its_maximum_or_the_data():
    for examples, maximum, expected in ((1000, 50, 48), (70, None, 64)):
        batch = DynamicBatch(8, 16, memory_budget=2**30, maximum=maximum)
        assert begun(batch, examples=examples).grow(model_of(16)) == expected


def test_updates_count_in_updates_of_the_initial_size():
    batch = DynamicBatch(32, maximum=96, memory_budget=2**30)
    model = model_of(16)
    growth = begun(batch)
    assert growth.initial_updates(10) == 10
    model.optimizer.iterations.assign(10)
    growth.grow(model)
    assert [growth.initial_updates(n) for n in (10, 11, 20)] == [10, 13, 40]
    growth.resume(model)  # A further `fit` changes nothing.
    assert [growth.initial_updates(n) for n in (10, 11, 20)] == [10, 13, 40]
    batch.maximum = 192  # It grows once more, twice as large.
    model.optimizer.iterations.assign(20)
    growth.grow(model)
    assert [growth.initial_updates(n) for n in (20, 21)] == [40, 46]


@pytest.mark.parametrize(
    "scaled",
    [math.nan, math.inf, 0, -2.0, None, "x", KeyError("no such ratio")],
    ids=str,
)
def test_it_does_not_grow_to_where_no_learning_rate_is_known(scaled, caplog):
    def scaling(ratio):
        if ratio <= 4:
            return ratio
        if isinstance(scaled, Exception):
            raise scaled
        return scaled

    batch = DynamicBatch(8, 8, memory_budget=2**30, scaling=scaling)
    model = model_of(16)
    growth = begun(batch, model, examples=40)
    model.optimizer.iterations.assign(10)
    with caplog.at_level(logging.WARNING, "keras_prunetrain"):
        assert growth.grow(model) == batch.size == 8  # And not 40.
    assert "stays at 8 examples and does not grow to 40. `scaling`" in (
        caplog.text
    )
    assert growth.initial_updates(11) == 11
    assert batch.learning_rate_ratio == 1.0
    batch.maximum = 32
    assert growth.grow(model) == 32
    assert batch.learning_rate_ratio == 4.0


def test_a_budget_below_a_batch_of_one_is_refused():
    with pytest.raises(ValueError, match="with a batch of one on each"):
        begun(DynamicBatch(4, memory_budget=1000))


def test_other_data_than_its_own_is_refused():
    batch = DynamicBatch(4)
    with pytest.raises(ValueError, match="does not train on the data set of"):
        begin_growth(batch, model_of(16), 10)
    batch(tf.data.Dataset.range(100))
    with pytest.raises(ValueError, match="Received: 10 steps .* expected 25"):
        begin_growth(batch, model_of(16), 10)


@pytest.mark.parametrize(
    ("rest", "replicas", "empty"),
    # The parts that TensorFlow makes: [2, 2, 1, 0], [2, 2, 2, 0], ...
    [(5, 4, True), (6, 4, True), (7, 4, False), (8, 4, False), (0, 4, False)]
    + [(9, 8, True), (1, 2, True), (2, 2, False), (3, 2, False), (4, 1, False)],
)
def test_it_knows_when_a_replica_gets_nothing(rest, replicas, empty):
    parts = tf.data.Dataset.range(rest + 16).batch(16).skip(1)
    assert leaves_a_replica_empty(16 + rest, 16, replicas) == empty
    if rest:
        size = -(-rest // replicas)
        (rows,) = parts
        cut = [rows[i * size : (i + 1) * size] for i in range(replicas)]
        assert any(len(part) == 0 for part in cut) == empty


def test_it_is_for_one_model():
    batch, model = DynamicBatch(4), model_of(16)
    growth = begun(batch, model)
    assert begun(batch, model) is growth
    with pytest.raises(ValueError, match="grown with another model"):
        begun(batch)


def test_after_compiling_anew_updates_count_from_the_start():
    batch = DynamicBatch(32, maximum=96, memory_budget=2**30)
    model = model_of(16)
    model.optimizer.iterations.assign(10)
    begun(batch, model).grow(model)
    model.compile("sgd", "mse")
    growth = begin_growth(batch, model, batch.announced_steps)
    assert [growth.initial_updates(n) for n in (0, 1)] == [0, 3]


def test_images_of_any_size_grow_by_the_size_that_they_have():
    sizes = []
    for size, shapes in ((8, None), (None, (8, 8, 3))):
        batch = DynamicBatch(64, granularity=8)
        batch(tf.data.Dataset.range(1000))
        growth = begin_growth(
            batch, model_of(16, size=size), batch.steps, shapes
        )
        sizes.append(growth.grow(model_of(5, size=size)))
    assert sizes[0] == sizes[1] > 64


def test_a_further_fit_may_train_on_images_of_another_size():
    model = model_of(16, size=None)
    batch = DynamicBatch(64, 8, memory_budget=2**20)
    batch(tf.data.Dataset.range(1000))
    sizes = []
    for pixels in (16, 8):
        shape = (pixels, pixels, 3)
        growth = begin_growth(batch, model, batch.announced_steps, shape)
        sizes.append(growth._size_for(model, None))
        assert training_bytes(model, sizes[-1], shape) <= 2**20
    assert sizes[0] < sizes[1]


def test_images_whose_size_nobody_knows_are_refused():
    with pytest.raises(ValueError, match=r"Let the data set tell it.*None, 3"):
        begun(DynamicBatch(4), model_of(16, size=None))


def test_several_steps_per_execution_are_refused():
    model = model_of(16)
    model.compile("sgd", "mse", steps_per_execution=2)
    with pytest.raises(ValueError, match="steps_per_execution=1"):
        begun(DynamicBatch(4), model)
