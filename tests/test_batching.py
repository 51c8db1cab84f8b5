"""The batch size as an object: its data sets, and what it refuses."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_prunetrain import DynamicBatch


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [("linear", 3.0), ("sqrt", 3.0**0.5), (lambda ratio: ratio / 2, 1.5)],
)
def test_the_learning_rate_is_scaled(scaling, expected):
    batch = DynamicBatch(32, scaling=scaling)
    batch.size = 96
    assert (batch.ratio, batch.size) == (3.0, 96)
    assert batch.learning_rate_ratio == pytest.approx(expected)


def test_a_size_that_is_set_is_that_of_the_next_pass():
    batch = DynamicBatch(4, scaling=lambda ratio: 5 - ratio)
    data = batch(tf.data.Dataset.range(20))
    batch.size = np.int64(10)
    assert [len(rows) for rows in data.take(batch.steps)] == [10, 10]
    for size, message in (
        (20, "`scaling`"),
        *((x, "`size`") for x in (0, 2.5, 10**400)),
    ):
        with pytest.raises(ValueError, match=message):
            batch.size = size
        assert batch.size == 10
    assert [len(rows) for rows in data.take(batch.steps)] == [10, 10]


def test_steps_are_known_with_the_examples():
    batch = DynamicBatch(4)
    with pytest.raises(ValueError, match="Call the DynamicBatch on the data"):
        batch.steps  # noqa: B018
    batch(tf.data.Dataset.range(10))
    assert batch.steps == 3


def test_numpys_integers_are_as_good_as_pythons():
    batch = DynamicBatch(np.int32(4), np.uint8(2), np.float32(1e6), np.int64(8))
    assert repr(batch) == repr(DynamicBatch(4, 2, 1_000_000, 8))


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
    with pytest.raises(ValueError, match="has 8 examples.*a data set of 6"):
        batch(tf.data.Dataset.range(6))
    assert batch.examples == 8


def test_examples_of_unknown_rank_are_batched():
    data = tf.data.Dataset.range(8).map(
        lambda i: tf.ensure_shape(tf.py_function(float, [i], "float32"), None)
    )
    assert [len(rows) for rows in DynamicBatch(4)(data)] == [4, 4]


@pytest.mark.parametrize(
    ("x", "shapes"),
    [
        ([], "of no array"),
        (None, r"\(\)"),
        (np.float32(3.0), r"\(\)"),
        (np.zeros((0, 3)), r"\(0, 3\)"),
        ([np.zeros((4, 3)), None], r"\(4, 3\), \(\)"),
        ({"a": 3.0}, r"\(\)"),
    ],
)
def test_what_has_no_examples_is_refused(x, shapes):
    message = "`{}` must be one or more arrays .* first axis .* shapes {}"
    with pytest.raises(ValueError, match=message.format("x", shapes)):
        DynamicBatch(2).arrays(x)
    rows = np.zeros((4, 3))
    if x is not None:
        with pytest.raises(ValueError, match=message.format("y", shapes)):
            DynamicBatch(2).arrays(rows, x)
        message = message.format("sample_weight", shapes)
        with pytest.raises(ValueError, match=message):
            DynamicBatch(2).arrays(rows, rows, x)


@pytest.mark.parametrize(
    "arguments", [{"shuffle": "no"}, {"seed": "x"}, {"seed": -1}, {"seed": 0.5}]
)
def test_an_order_that_is_none_is_refused(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        DynamicBatch(2).arrays(np.zeros(4), **arguments)


@pytest.mark.parametrize(
    "x",
    [
        np.array([object()] * 4),
        tf.sparse.from_dense(np.eye(4)),
        tf.ragged.constant([[1], [2, 3], [4], [5]]),
    ],
    ids=["objects", "sparse", "ragged"],
)
def test_what_is_no_array_of_numbers_is_refused(x):
    with pytest.raises(ValueError, match="`x`, .* TensorFlow says: "):
        DynamicBatch(2).arrays({"image": x}, np.zeros(4))


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="Received: 10 in `x`, 9 in `y`"):
        DynamicBatch(4).arrays(np.zeros(10), np.zeros(9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"initial": 0}, "`initial` must be an integer of at least 1"),
        ({"initial": 2.5}, "`initial`"),
        ({"initial": True}, "`initial`"),
        ({"initial": 10**400}, "fits into 64 bits. Received: initial=1000"),
        ({"initial": 4, "granularity": 0}, "`granularity`"),
        ({"initial": 4, "granularity": np.True_}, "`granularity`"),
        ({"initial": 4, "maximum": "8"}, "`maximum` must be an integer"),
        ({"initial": 4, "maximum": 2}, "`maximum` must be at least `initial`"),
        ({"initial": 4, "memory_budget": -1}, "`memory_budget`"),
        ({"initial": 4, "memory_budget": "all"}, "`memory_budget`"),
        ({"initial": 4, "memory_budget": math.inf}, "`maximum` limits"),
        ({"initial": 4, "memory_budget": math.nan}, "`memory_budget`"),
        ({"initial": 4, "memory_budget": True}, "`memory_budget`"),
        ({"initial": 4, "memory_budget": np.array([1, 2])}, "`memory_budget`"),
        ({"initial": 4, "scaling": "cubic"}, "`scaling`"),
        ({"initial": 4, "scaling": []}, "`scaling`"),
        ({"initial": 4, "scaling": lambda ratio: math.nan}, "above 0"),
        ({"initial": 4, "scaling": lambda ratio: -ratio}, "above 0"),
        ({"initial": 4, "scaling": lambda ratio: ratio - 1}, "above 0"),
        ({"initial": 4, "scaling": lambda ratio: 1 / (ratio - 1)}, "It fails"),
        ({"initial": 4, "scaling": lambda ratio: "x"}, "It fails for 1: Value"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DynamicBatch(**arguments)


def test_a_scaling_need_not_be_known_beyond_the_maximum():
    known = {1.0: 1.0, 1.5: 1.2}
    DynamicBatch(4, maximum=6, scaling=known.__getitem__)
    with pytest.raises(ValueError, match=r"It fails for 2: KeyError\(2\.0\)"):
        DynamicBatch(4, maximum=8, scaling=known.__getitem__)


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
        (
            lambda: tf.data.Dataset.range(3),
            "batch of 4 .* 3 in all",
        ),
    ],
)
def test_data_that_cannot_be_batched_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        DynamicBatch(4)(data())
