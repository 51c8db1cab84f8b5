"""Every operation in the table: cut channels before it, nothing changes."""

import functools

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_prunetrain import channel_report, reconfigure
from keras_prunetrain.channels import operations
from tests.networks import conv, images, kill, outputs, shake

BOOLEAN = [
    "equal",
    "greater",
    "greater_equal",
    "less",
    "less_equal",
    "not_equal",
]
LOGICAL = ["logical_and", "logical_or"]
REDUCING = ["amax", "amin", "max", "mean", "min", "std", "sum", "var"]


def number(x):
    return ops.cast(x, "float64")


def one(name):
    """A function of one tensor, with all that it reads in (0, 1)."""
    function = getattr(ops, name)
    if name in ("ceil", "floor", "round", "trunc", "sign", "abs"):
        return lambda x: function(6.0 * x - 3.0)
    if name == "arccosh":
        return lambda x: function(x + 1.0)
    if name == "logical_not":
        return lambda x: number(function(x > 0.5))
    return function


def two(name):
    """A function of two tensors, called on two that share their channels."""
    function = getattr(ops, name)
    if name in BOOLEAN:
        return lambda x: number(
            function(ops.round(3.0 * x), ops.round(3.0 * ops.flip(x, 1)))
        )
    if name in LOGICAL:
        return lambda x: number(function(x > 0.5, ops.flip(x, 1) > 0.5))
    return lambda x: function(x, ops.flip(x, 1))


IN_PLACE = {
    **{name: one(name) for name in operations.POINTWISE.split()},
    **{name: two(name) for name in operations._JOINING.split()},
    **{
        name: functools.partial(getattr(ops, name), axis=[1, -2])
        for name in REDUCING
    },
    "prod": lambda x: ops.prod(x + 0.5, axis=1),
    "mean of one axis": lambda x: ops.mean(x, axis=1),
    "mean with its axes": lambda x: ops.mean(x, axis=(1, 2), keepdims=True),
    "all": lambda x: number(ops.all(x > 0.4, axis=1)),
    "any": lambda x: number(ops.any(x > 0.6, axis=1)),
    "average_pool": lambda x: ops.average_pool(x, 2),
    "max_pool": lambda x: ops.max_pool(x, 2),
    "cast": lambda x: ops.cast(x, "float64"),
    "clip": lambda x: ops.clip(x, 0.1, 0.9),
    "add": lambda x: x + ops.flip(x, 2),
    "a number on the left": lambda x: 1.0 - 2.0 / (1.0 + x),
    "where": lambda x: ops.where(x > 0.5, x, 0.1 * x),
    "concatenate pixels": lambda x: ops.concatenate([x, x * x], axis=1),
    "transpose": lambda x: ops.transpose(x, (0, 2, 1, 3)),
    "expand_dims": lambda x: ops.mean(ops.expand_dims(x, 1), axis=2),
    "squeeze": lambda x: ops.squeeze(x[:, :1], axis=1),
    "moveaxis": lambda x: ops.moveaxis(ops.moveaxis(x, -1, 1), 1, 3)[:, 0],
    "swapaxes": lambda x: ops.swapaxes(
        ops.mean(ops.swapaxes(x, 3, 1), -1), 1, 2
    ),
    "pad": lambda x: ops.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0))),
    "reshape": lambda x: ops.reshape(x, (-1, 9, 4, 6)),
    "reshape with the size left out": lambda x: ops.reshape(x, (-1, 36, 6)),
    "split pixels": lambda x: ops.split(x, 3, axis=1)[1],
}
# What does not leave a channel in its place, and where it puts 1 and 4 of 6.
MOVING = {
    "concatenate": (
        lambda x: ops.concatenate([x, ops.flip(x, -1)], axis=-1),
        [1, 4, 7, 10],
    ),
    "flip": (lambda x: ops.flip(x, -1), [1, 4]),
    "tile": (lambda x: ops.tile(x, (1, 1, 1, 2)), [1, 4, 7, 10]),
    "repeat": (lambda x: ops.repeat(x, 2, axis=-1), [2, 3, 8, 9]),
    "split": (lambda x: ops.split(x, [1, 4], axis=-1)[1], [0]),
    "index": (lambda x: x[:, 2, ..., 1:6], [0, 3]),
    "index backwards": (lambda x: x[..., ::-1], [1, 4]),
    "index unevenly": (lambda x: x[..., ::1][..., -2::-1], [0, 3]),
    "index every second": (lambda x: x[..., 1::2], [0]),
    "index one channel": (lambda x: x[..., 2], []),
    "take": (lambda x: ops.take(x, [5, 1, 0, 4, -5], axis=-1), [1, 3, 4]),
    "take on two axes": (
        lambda x: ops.take(x, [[0, 1], [3, 4]], axis=-1),
        [1],
    ),
    "take pixels": (lambda x: ops.take(x, [3, 0], axis=1), [1, 4]),
    # Four channels become the pixels of one: those that are 3 apart.
    "depth_to_space": (
        lambda x: ops.depth_to_space(ops.concatenate([x, x], -1), 2),
        [1],
    ),
    "space_to_depth": (
        lambda x: ops.space_to_depth(x, 2),
        [1, 4, 7, 10, 13, 16, 19, 22],
    ),
    "index a new axis": (
        lambda x: ops.max(x[:, None, :, :, :5], axis=(1, 2)),
        [1, 4],
    ),
}
FUNCTIONS = {
    **{name: (function, [1, 4]) for name, function in IN_PLACE.items()},
    **MOVING,
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_cutting_channels_before_it_changes_nothing(name):
    function, read = FUNCTIONS[name]
    image = keras.Input((6, 6, 2))
    x = layers.Dense(3, name="b")(
        function(conv(image, 6, "a", activation="sigmoid"))
    )
    places = tuple(range(1, len(x.shape) - 1))
    model = keras.Model(image, ops.max(x, places) if places else x)
    model.compile("sgd", "mse")
    shake(model)
    kernel = model.get_layer("b").kernel
    kernel.assign(20.0 * kernel)
    kill(model, {"a": [1, 4]}, {"b": read})
    x = images()

    smaller = reconfigure(model)

    assert smaller.get_layer("a").filters == 4
    np.testing.assert_allclose(
        outputs(smaller, x), outputs(model, x), atol=1e-12
    )


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: ops.softmax(x, axis=-1), "(Softmax): it mixes channels"),
        (lambda x: ops.roll(x, 1, axis=-1), "(Roll): no rule for this class"),
        (lambda x: ops.mean(x, axis=(1, -1)), "reduces the channels or the"),
        (lambda x: ops.mean(x), "reduces the channels or the batch"),
        (lambda x: ops.max(x, axis=0), "reduces the channels or the batch"),
        (lambda x: ops.squeeze(x), "squeezes the channels once one is left"),
        (lambda x: ops.pad(x, 1), "does not run on channel numbers"),
        (
            lambda x: ops.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1))),
            "end up on no axis of its output",
        ),
        (
            lambda x: ops.pad(
                x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=3.0
            ),
            "it pads with a value that is not zero",
        ),
        (lambda x: x * np.arange(6.0), "an array of fixed size"),
        (lambda x: ops.reshape(x, (6, 6, 6, 6)), "does not run on channel"),
        (
            lambda x: ops.concatenate([x, ops.swapaxes(x, 1, 3)]),
            "its inputs lie on different axes",
        ),
        (
            lambda x: x + ops.swapaxes(x, 1, 3),
            "its inputs lie on different axes",
        ),
        (lambda x: ops.clip(x, [-1.0] * 6, [1.0] * 6), "`x_min` is an array"),
        (lambda x: ops.repeat(x, [1, 2] * 3, axis=-1), "`repeats` is an array"),
    ],
)
def test_what_mixes_channels_or_counts_them_holds_them(function, reason):
    image = keras.Input((6, 6, 2))
    x = function(conv(image, 6, "a"))
    if len(x.shape) > 1:
        x = layers.Dense(3, name="b")(x)
    model = keras.Model(image, x)
    model.compile("sgd", "mse")
    kill(model, {"a": [1, 4]})
    row = channel_report(model)[0]
    assert row.removable == 0
    assert reason in " ".join(row.held_by), row


def test_every_operation_with_a_rule_is_among_the_examples():
    image = keras.Input((6, 6, 6))
    met = {
        type(operation)
        for function, _ in FUNCTIONS.values()
        for operation in keras.Model(image, function(image)).operations
    }
    held = {
        kind
        for kind, rule in operations.operation_rules().items()
        if rule.freezes is not None
    }
    assert set(operations.operation_rules()) - held <= met
