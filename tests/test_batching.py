"""The batch size as an object: what it grows to, and what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_prunetrain import (
    DynamicBatch,
    model_cost,
    training_bytes,
)
from keras_prunetrain.memory import device_bytes


def model_of(width, optimizer="sgd"):
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(width, 3, name="a")(image)
    x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, keras.layers.Dense(2)(x))
    model.compile(optimizer, "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def begun(batch, model=None, examples=1000):
    batch(tf.data.Dataset.range(examples))
    batch.begin(model or model_of(16), batch.steps)
    return batch


def test_training_bytes_are_activations_weights_gradients_and_slots():
    model = model_of(16, keras.optimizers.Adam())
    weights = 4 * (3 * 3 * 3 * 16 + 16 + 16 * 2 + 2)
    # What the convolution reads, what the ReLU writes, what the Dense reads.
    kept = 4 * (8 * 8 * 3 + 6 * 6 * 16 + 16)
    singles = sum(
        np.dtype(v.dtype).itemsize
        for v in model.optimizer.variables
        if v.shape == ()
    )
    assert training_bytes(model, 10) == 4 * weights + singles + 10 * kept
    assert model_cost(model).activation_bytes == kept


def test_it_grows_to_the_largest_multiple_that_the_first_memory_allows():
    first, smaller = model_of(16), model_of(5)
    batch = begun(DynamicBatch(64, granularity=8), first)
    budget = training_bytes(first, 64)
    size = batch.grow(smaller)
    assert size % 8 == 0
    assert training_bytes(smaller, size) <= budget
    assert training_bytes(smaller, size + 8) > budget


def test_a_budget_in_bytes_counts_instead():
    model = model_of(16)
    budget = training_bytes(model, 100) - 1
    batch = begun(DynamicBatch(8, granularity=4, memory_budget=budget), model)
    assert batch.grow(model) == 96


def test_the_memory_of_the_device_is_a_budget():
    model = model_of(16)
    fixed = training_bytes(model, 0)
    per_example = training_bytes(model, 1) - fixed
    room = (device_bytes() / 1.25 - fixed) // per_example
    batch = DynamicBatch(8, granularity=1, memory_budget="device")
    assert begun(batch, model, examples=10**12).grow(model) == room


def test_it_never_gets_smaller():
    model = model_of(16)
    budget = training_bytes(model, 30)
    batch = begun(DynamicBatch(64, memory_budget=budget), model)
    assert batch.grow(model) == 64


def test_it_is_no_larger_than_its_maximum_or_the_data():
    for examples, maximum, expected in ((1000, 50, 48), (70, None, 64)):
        batch = DynamicBatch(8, 16, memory_budget=2**30, maximum=maximum)
        assert begun(batch, examples=examples).grow(model_of(16)) == expected


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [("linear", 3.0), ("sqrt", 3.0**0.5), (lambda ratio: ratio / 2, 1.5)],
)
def test_the_learning_rate_is_scaled(scaling, expected):
    batch = DynamicBatch(32, maximum=96, memory_budget=2**30, scaling=scaling)
    begun(batch).grow(model_of(16))
    assert batch.size == 96
    assert batch.learning_rate_ratio == pytest.approx(expected)


def test_updates_count_in_updates_of_the_initial_size():
    batch = begun(DynamicBatch(32, maximum=96, memory_budget=2**30))
    model = model_of(16)
    assert batch.initial_updates(10) == 10
    model.optimizer.iterations.assign(10)
    batch.grow(model)
    assert [batch.initial_updates(n) for n in (10, 11, 20)] == [10, 13, 40]
    batch.maximum = 192  # It grows once more, twice as large.
    model.optimizer.iterations.assign(20)
    batch.grow(model)
    assert [batch.initial_updates(n) for n in (20, 21)] == [40, 46]


def test_arrays_become_a_data_set_with_each_row_once():
    x = np.arange(10.0)
    batch = DynamicBatch(4)
    data = batch.arrays({"a": x}, y=2 * x, sample_weight=3 * x, seed=1)
    assert int(data.cardinality()) == 3
    orders = []
    for _ in range(2):
        rows = list(data.as_numpy_iterator())
        assert [len(weight) for _, _, weight in rows] == [4, 4, 2]
        order = np.concatenate([features["a"] for features, _, _ in rows])
        for part, factor in ((1, 2), (2, 3)):
            values = np.concatenate([row[part] for row in rows])
            np.testing.assert_array_equal(values, factor * order)
        orders.append(order)
    np.testing.assert_array_equal(np.sort(orders[0]), x)
    assert (orders[0] != orders[1]).any()
    in_order = batch.arrays(x, shuffle=False)
    np.testing.assert_array_equal(
        np.concatenate(list(in_order.as_numpy_iterator())), x
    )


def test_a_list_of_arrays_is_several_inputs():
    batch = DynamicBatch(2)
    x = [np.zeros((4, 3)), {"a": [np.ones((4, 2)), np.ones((4, 5))]}]
    (inputs, y), _ = batch.arrays(x, np.zeros(4))
    shapes = tf.nest.map_structure(lambda t: tuple(t.shape), inputs)
    assert shapes == ((2, 3), {"a": ((2, 2), (2, 5))})
    assert y.shape == (2,)
    (element,) = DynamicBatch(2).arrays(x).take(1)
    inputs, y, weight = keras.utils.unpack_x_y_sample_weight(element)
    assert len(inputs) == 2
    assert y is None and weight is None


def test_weights_without_targets_are_refused():
    with pytest.raises(ValueError, match="Pass `y` as well"):
        DynamicBatch(2).arrays(np.zeros(4), sample_weight=np.ones(4))


def test_a_second_data_set_of_another_size_is_refused():
    batch = DynamicBatch(2)
    batch(tf.data.Dataset.range(8))
    batch(tf.data.Dataset.range(8))
    with pytest.raises(ValueError, match="one of 8 examples.*one of 6"):
        batch(tf.data.Dataset.range(6))
    assert batch.examples == 8


def test_examples_of_unknown_rank_are_batched():
    data = tf.data.Dataset.range(8).map(
        lambda i: tf.ensure_shape(tf.py_function(float, [i], "float32"), None)
    )
    assert [len(rows) for rows in DynamicBatch(4)(data)] == [4, 4]


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"same number .* Received: 10, 9"):
        DynamicBatch(4).arrays(np.zeros(10), np.zeros(9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"initial": 0}, "`initial` must be an integer of at least 1"),
        ({"initial": 2.5}, "`initial`"),
        ({"initial": 4, "granularity": 0}, "`granularity`"),
        ({"initial": 4, "maximum": 2}, "`maximum` must be at least `initial`"),
        ({"initial": 4, "memory_budget": -1}, "`memory_budget`"),
        ({"initial": 4, "memory_budget": "all"}, "`memory_budget`"),
        ({"initial": 4, "scaling": "cubic"}, "`scaling`"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DynamicBatch(**arguments)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: np.zeros((8, 2)), r"batch\.arrays"),
        (lambda: tf.data.Dataset.range(50).batch(5), "batched already"),
        (lambda: tf.data.Dataset.range(50).repeat(), "infinite size"),
        (
            lambda: tf.data.Dataset.range(50).filter(lambda i: i > 1),
            "unknown size",
        ),
        (lambda: tf.data.Dataset.range(3), "larger than the data set: 4"),
    ],
)
def test_data_that_cannot_be_batched_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        DynamicBatch(4)(data())


def test_a_budget_below_a_batch_of_one_is_refused():
    with pytest.raises(ValueError, match="with a batch of one on each"):
        begun(DynamicBatch(4, memory_budget=1000))


def test_other_data_than_its_own_is_refused():
    batch = DynamicBatch(4)
    with pytest.raises(ValueError, match="does not train on the data set of"):
        batch.begin(model_of(16), 10)
    batch(tf.data.Dataset.range(100))
    with pytest.raises(ValueError, match="Received: 10 steps .* expected 25"):
        batch.begin(model_of(16), 10)


@pytest.mark.parametrize(
    ("rest", "replicas", "empty"),
    # The parts that TensorFlow makes: [2, 2, 1, 0], [2, 2, 2, 0], ...
    [(5, 4, True), (6, 4, True), (7, 4, False), (8, 4, False), (0, 4, False)]
    + [(9, 8, True), (1, 2, True), (2, 2, False), (3, 2, False), (4, 1, False)],
)
def test_it_knows_when_a_replica_gets_nothing(rest, replicas, empty):
    parts = tf.data.Dataset.range(rest + 16).batch(16).skip(1)
    batch = DynamicBatch(16)
    batch(tf.data.Dataset.range(16 + rest))
    assert batch._leaves_a_replica_empty(16, replicas) == empty
    if rest:
        size = -(-rest // replicas)
        (rows,) = parts
        cut = [rows[i * size : (i + 1) * size] for i in range(replicas)]
        assert any(len(part) == 0 for part in cut) == empty


def test_it_is_for_one_model():
    batch = begun(DynamicBatch(4))
    with pytest.raises(ValueError, match="grown with another model"):
        batch.begin(model_of(16), batch.steps)


def test_after_compiling_anew_updates_count_from_the_start():
    model = model_of(16)
    model.optimizer.iterations.assign(10)
    batch = begun(DynamicBatch(32, maximum=96, memory_budget=2**30), model)
    batch.grow(model)
    model.compile("sgd", "mse")
    batch.begin(model, batch._steps_of_data)
    assert [batch.initial_updates(n) for n in (0, 1)] == [0, 3]


def test_several_steps_per_execution_are_refused():
    model = model_of(16)
    model.compile("sgd", "mse", steps_per_execution=2)
    with pytest.raises(ValueError, match="steps_per_execution=1"):
        begun(DynamicBatch(4), model)
