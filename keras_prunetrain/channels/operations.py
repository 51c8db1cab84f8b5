"""The rules of the operations of `keras.ops` in a functional graph.

There `x + y`, `x[..., :8]` and `ops.relu(x)` are nodes of their own, beside the
layers. The classes of these nodes are private and the functions that make them
are public: each function is called once to learn the class of its node.
"""

import dataclasses

import keras
import numpy as np
from keras import ops

from keras_prunetrain.channels import resizing
from keras_prunetrain.channels.indexing import reindexed, retaken
from keras_prunetrain.channels.layer_rule import (
    CARRIES,
    CONCATENATES,
    JOINS,
    MOVES,
    REDUCES,
    LayerRule,
    by_data_format,
    frozen,
)
from keras_prunetrain.keras_internals import operation_class

# Softmax, log_softmax, sparsemax and glu are missing: they mix channels.
POINTWISE = """
    abs arccos arccosh arcsin arcsinh arctan arctanh cbrt ceil celu copy cos
    cosh elu erf erfinv exp exp2 expm1 floor gelu hard_shrink hard_sigmoid
    hard_silu hard_tanh leaky_relu log log10 log1p log2 log_sigmoid logical_not
    nan_to_num negative reciprocal relu relu6 round rsqrt selu sigmoid sign silu
    sin sinh soft_shrink softplus softsign sparse_plus sparse_sigmoid sqrt
    square squareplus stop_gradient tan tanh tanh_shrink trunc
"""
_JOINING = """
    divide divide_no_nan equal fmax fmin greater greater_equal less less_equal
    logical_and logical_or maximum minimum multiply not_equal power true_divide
"""


def operation_rules() -> dict[type, LayerRule]:
    """Returns a dict from the class of each operation to its `LayerRule`."""
    elementwise = LayerRule(CARRIES, constants="pointwise")
    extreme = LayerRule(REDUCES, constants="pass", variant=_with_initial)
    pooling = LayerRule(CARRIES, channel_axis=by_data_format, constants="pass")
    rules = {
        **_of(POINTWISE, elementwise),
        **_of(
            "glu log_softmax normalize softmax sparsemax",
            frozen("it mixes channels"),
        ),
        **_of("amax amin max min", extreme, 1),
        **_of("mean", dataclasses.replace(extreme, saved="nothing"), 1),
        **_of("all any prod std var", LayerRule(REDUCES), 1),
        **_of("sum", LayerRule(REDUCES, saved="nothing"), 1),
        **_of("max_pool", pooling, 2),
        **_of("average_pool", dataclasses.replace(pooling, saved="nothing"), 2),
        **_of(
            "clip", dataclasses.replace(elementwise, refuses=_by_array), 0, 1
        ),
        **_of("cast", elementwise, "float16"),
        **_moving_rules(),
        **_rules_of_several_tensors(),
    }
    x = _tensor()
    for activation in (ops.relu, ops.relu6, ops.sigmoid, ops.softmax, ops.tanh):
        made = operation_class(activation(x))
        rules[made] = dataclasses.replace(rules[made], saved="outputs")
    return rules


def _moving_rules():
    """Returns the rules of what only puts the values of a tensor elsewhere."""
    move = LayerRule(MOVES, constants="pass", saved="nothing")
    return {
        operation_class(_tensor()[0]): dataclasses.replace(
            move, reindex=reindexed
        ),
        **_of("flip transpose", move),
        **_of("expand_dims", move, 1),
        **_of("moveaxis swapaxes", move, 1, 2),
        **_of("depth_to_space space_to_depth", move, 2),
        **_of("pad", dataclasses.replace(move, constants="zeros"), 1),
        **_of("tile", move, 1),
        **_of("repeat", dataclasses.replace(move, refuses=_by_array), 1, 1),
        **_of("squeeze", dataclasses.replace(move, refuses=_squeezes_any)),
        **_of(
            "reshape",
            dataclasses.replace(move, resize=resizing.shape("newshape")),
            -1,
        ),
        **_of(
            "split",
            dataclasses.replace(
                move, resize=resizing.cuts("indices_or_sections")
            ),
            2,
        ),
        **_of(
            "take",
            dataclasses.replace(move, reindex=retaken, refuses=_takes_any),
            [0],
        ),
    }


def _rules_of_several_tensors():
    """Returns the rules of what computes one tensor of several."""
    x = _tensor()
    joining = [
        getattr(ops, name)(x, x)
        for name in _JOINING.split()
        if hasattr(ops, name)
    ]
    return {
        **{operation_class(joined): LayerRule(JOINS) for joined in joining},
        operation_class(ops.where(x, x, x)): LayerRule(JOINS),
        operation_class(ops.subtract(x, x)): LayerRule(JOINS, saved="nothing"),
        operation_class(ops.add(x, x)): LayerRule(
            JOINS, constants="add", saved="nothing"
        ),
        operation_class(ops.concatenate([x, x])): LayerRule(
            CONCATENATES, saved="nothing"
        ),
    }


def _of(names, rule, *arguments):
    """Returns a dict from the classes of some functions to `rule`.

    Args:
        names: Names of functions of one tensor; this Keras may lack some.
        rule: A `LayerRule`.
        *arguments: Further arguments of the functions.
    """
    return {
        operation_class(getattr(ops, name)(_tensor(), *arguments)): rule
        for name in names.split()
        if hasattr(ops, name)
    }


def _tensor():
    # Every size is even, so that the tensor can be split and pooled, and above
    # 1, so that nothing is squeezed.
    return keras.KerasTensor((2, 4, 4, 4))


def _with_initial(operation):
    """Returns the rule of a reduction that starts from a given value."""
    if getattr(operation, "initial", None) is None:
        return None
    return LayerRule(REDUCES)


def _by_array(operation):
    for name in ("x_min", "x_max", "repeats"):
        if np.ndim(getattr(operation, name, 0)):
            return f"its `{name}` is an array of fixed size"
    return None


def _takes_any(operation):
    if operation.axis is None:
        return "without an axis it takes values from all examples"
    return None


def _squeezes_any(operation):
    if operation.axis is None:
        return "without an axis it squeezes the channels once one is left"
    return None
