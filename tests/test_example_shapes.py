"""The sizes of an example, as the data of `fit` tell them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_prunetrain.example_shapes import shapes_in


def model_of(*shapes):
    inputs = [
        keras.Input(shape, name=f"input{i}") for i, shape in enumerate(shapes)
    ]
    pooled = [keras.layers.GlobalAveragePooling2D()(x) for x in inputs]
    return keras.Model(inputs, [keras.layers.Dense(2)(x) for x in pooled])


IMAGES, OTHERS = np.zeros((4, 8, 6, 3)), np.zeros((4, 5, 5, 3))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (IMAGES, (8, 6, 3)),
        (tf.constant(IMAGES), (8, 6, 3)),
        ({"input0": IMAGES, "mask": OTHERS}, (8, 6, 3)),
        (tf.data.Dataset.from_tensors((IMAGES, OTHERS)), (8, 6, 3)),
        (tf.data.Dataset.from_tensors({"input0": IMAGES}), (8, 6, 3)),
        (
            tf.data.Dataset.from_tensor_slices(IMAGES)
            .padded_batch(4, (None, 6, 3))
            .map(lambda x: (x, x)),
            (None, 6, 3),
        ),
        # What says nothing, or what `fit` will refuse.
        (
            tf.data.Dataset.from_tensors(IMAGES).map(
                lambda x: tf.ensure_shape(
                    tf.py_function(abs, [x], "float64"), None
                )
            ),
            None,
        ),
        (iter([IMAGES]), None),
        ({"other": IMAGES}, None),
        (np.zeros((4, 8, 6, 1)), None),
        (np.zeros((4, 3)), None),
        ([IMAGES, OTHERS], None),
        (None, None),
    ],
)
def test_data_say_the_shape_of_an_example_or_nothing(data, expected):
    assert shapes_in(data, model_of((None, None, 3))) == [expected]


def test_data_say_the_shape_of_each_input():
    model = model_of((None, None, 3), (5, 5, 3))
    expected = [(8, 6, 3), (5, 5, 3)]
    for x in (
        [IMAGES, OTHERS],
        (IMAGES, OTHERS),
        {"input1": OTHERS, "input0": IMAGES},
        tf.data.Dataset.from_tensors(((IMAGES, OTHERS), OTHERS)),
    ):
        assert shapes_in(x, model) == expected
    assert shapes_in([IMAGES, None], model) == [(8, 6, 3), None]
