"""Finds constant channels, which have one value at every pixel of every image.

The kernel weights that compute a channel may all be dead, while the bias or the
next batch normalization still gives the channel a value. That value is followed
through the graph for as long as the value is the same at every pixel.
"""

import collections
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_prunetrain import keras_internals
from keras_prunetrain.channels import layer_rule
from keras_prunetrain.channels.labels import Numbering
from keras_prunetrain.channels.rules import rule_for
from keras_prunetrain.channels.walk import Visit, run_graph

# Replaces an unknown image size; larger than any kernel.
_ANY_SIZE = 32


class Constant(NamedTuple):
    """The channels of a tensor that have one value everywhere, at inference.

    Attributes:
        values: Float array, shape `(channels,)`: the values of the constant
            channels, 0 for the others.
        known: Bool array, same shape: True for the constant channels.
    """

    values: np.ndarray
    known: np.ndarray


def follow_constants(
    model: keras.Model, numbering: Numbering, silent: dict[str, np.ndarray]
) -> list[Visit]:
    """Finds the constant channels that each call in a model reads.

    Args:
        model: A functional model.
        numbering: Its `Numbering`.
        silent: Dict from the key of a layer to a bool array, shape
            `(output channels,)`: True where every kernel weight that writes
            the channel is below the threshold.

    Returns:
        List of the `Visit`s of all calls, in running order, including nested
        models and the calls in them. `Visit.inputs` holds a `Constant` for each
        input, or `None` for an input without a constant channel.
    """
    visits = []
    kernels = collections.defaultdict(list)
    for label in numbering.kernels("out"):
        if not label.is_inner:
            kernels[label.layer].append(label)

    def visit(visit):
        visits.append(visit)
        if keras_internals.is_graph(visit.call.operation):
            return None
        channels = numbering.calls[visit.site]
        own = kernels[visit.key]
        found = _written(visit, channels, silent.get(visit.key), own)
        return found or [None] * len(visit.call.outputs)

    run_graph(model, [None] * len(model.inputs), visit)
    return visits


def _written(visit, channels, silent, kernels):
    """Returns a list, a `Constant` or `None` per output; `None` if unknown.

    Args:
        visit: The `Visit` of a call.
        channels: Its `CallChannels`.
        silent: Of its layer, as in `follow_constants`; `None` if none is.
        kernels: List of the `Label`s of the kernels that write the channels.
    """
    call, rule = visit.call, rule_for(visit.call.operation)
    if (
        rule is None
        or any(map(_in_training, (*visit.around, call)))
        or keras_internals.mask_position(call) is not None
        or channels.written[0].any_axis  # The channel axis is unknown.
    ):
        return None
    nothing_known = silent is None and all(x is None for x in visit.inputs)
    if nothing_known or _is_regularized(call.operation):
        return None
    if rule.flow == layer_rule.MOVES:
        value = _unchanged(rule, visit.inputs[0])
        numbers = channels.read[0].numbers
        return [_moved(value, numbers, x.numbers) for x in channels.written]
    written, *others = channels.written
    if others:
        return None
    if silent is not None:
        # What a mixing layer computes may be added to what it reads.
        if not silent.any() or layer_rule.writes_what_it_reads(rule):
            return None
        # What the kernels read need not be zero: the values of an attention
        # have a bias.
        found = _of_zeros(call, written, silent, kernels)
    else:
        found = _passed_on(call, rule, visit.inputs, channels.read)
    if found is None or len(found.values) != len(written.numbers):
        return None
    return [found]


def _known(values, known):
    """Returns the `Constant` of the `known` channels, `None` without any."""
    if not known.any():
        return None
    return Constant(np.where(known, values, 0.0), known)


def _passed_on(call, rule, values, read):
    """Returns the `Constant` that a call writes, or `None`.

    Args:
        call: A `Call` of one output.
        rule: The rule of the call's operation.
        values: List of a `Constant` or `None` for each input.
        read: List of the `Channels` of each input.
    """
    missing = sum(value is None for value in values)
    if missing == len(values):
        return None
    if rule.flow == layer_rule.CONCATENATES:
        return _lined_up(call, values, read)
    if missing:
        return None
    if rule.constants in ("pass", "zeros"):
        return _unchanged(rule, values[0])
    if rule.repeats is not None and rule.flow == layer_rule.CARRIES:
        # The layer may pad its input with zeros: then only a constant of zero
        # stays the same at the border.
        known = values[0].known & (values[0].values == 0.0)
        groups = rule.ask("groups", call.operation)
        if groups is not None:
            known = known.reshape(groups, -1).all(axis=1)
        repeats = rule.ask("repeats", call.operation)
        return _of_zeros(call, read[0], np.repeat(known, repeats))
    if rule.constants == "pointwise" or rule.flow == layer_rule.JOINS:
        arrays = []
        for value, channels in zip(values, read, strict=True):
            shape = [1] * len(channels.shape)
            shape[channels.axis] = -1
            arrays.append(value.values.reshape(shape))
        known = np.logical_and.reduce(
            np.broadcast_arrays(*(value.known for value in values))
        )
        return _known(_call(call, arrays).reshape(-1), known)
    return None


def _unchanged(rule, value):
    """Returns the part of a `Constant` that passes the layer unchanged."""
    if value is None or rule.constants == "pass":
        return value
    if rule.constants == "zeros":
        return _known(value.values, value.known & (value.values == 0.0))
    return None


def _lined_up(call, values, read):
    """Returns the `Constant` of a concatenation, or `None`."""
    axis = getattr(call.operation, "axis", -1) % len(read[0].shape)
    if axis != read[0].axis:
        return None
    parts = [
        Constant(*np.zeros((2, len(x.numbers)))) if value is None else value
        for value, x in zip(values, read, strict=True)
    ]
    return Constant(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.known for part in parts]).astype(bool),
    )


def _moved(constant, numbers, moved):
    """Returns the `Constant` of channels that were only moved, or `None`.

    Args:
        constant: The `Constant` of the channels before, or `None`.
        numbers: The channel numbers before.
        moved: The channel numbers after.
    """
    if constant is None:
        return None
    # Value of each channel number: NaN if absent, infinite if not one constant.
    by_number = np.full(max(numbers.max(), moved.max()) + 1, np.nan)
    for number, value, known in zip(numbers, *constant, strict=True):
        before = by_number[number]
        same = known and (np.isnan(before) or before == value)
        by_number[number] = value if same else np.inf
    values = by_number[moved]
    return _known(values, np.isfinite(values))


def _in_training(call):
    """Whether a call has `training=True`, as in Monte Carlo dropout."""
    stand_ins = dict.fromkeys(map(id, call.inputs))
    _, kwargs = keras_internals.arguments_with(call, stand_ins)
    return bool(kwargs.get("training"))


def _is_regularized(operation):
    """Whether a call would add to the losses of a layer, or of one in it."""
    layers = [operation]
    if isinstance(operation, keras.layers.Layer):
        layers += keras_internals.parts(operation).values()
    return any(
        getattr(x, "activity_regularizer", None) is not None for x in layers
    )


def _of_zeros(call, channels, known, kernels=()):
    """Returns the `Constant` of the `known` outputs for an input of zeros.

    For a layer with a kernel, that is the activation of the bias. `None` if a
    known channel differs between pixels, or if the layer wants unknown sizes
    to be equal.

    Args:
        call: A `Call` of one output.
        channels: Its `Channels`.
        known: Bool array, shape `(channels,)`: which to look at.
        kernels: List of `Label`s whose weights of the `known` channels count as
            zero.
    """
    shapes = [[size or _ANY_SIZE for size in x.shape[1:]] for x in call.inputs]
    zeros = [np.zeros((1, *shape)) for shape in shapes]
    try:
        output = _call(call, zeros, _without(kernels, known))
    except Exception:  # The error of the layer, of any kind.
        return None
    output = np.moveaxis(output, channels.axis - len(channels.shape), -1)
    output = output.reshape(-1, output.shape[-1])
    if output.shape[-1] != len(known):
        return None
    # The bias of an `EinsumDense` may differ from head to head.
    if np.ptp(output[:, known], axis=0).any():
        return None
    return _known(output[0], known)


def _without(kernels, gone):
    """Returns the values of kernels without those of the channels `gone`.

    Dict from the id of each weight to an array.
    """
    values = {}
    for label in kernels:
        kernel = keras_internals.values_of(label.weight).copy()
        np.moveaxis(kernel, label.axis, 0)[gone] = 0.0
        values[id(label.weight)] = kernel
    return values


def _call(call, values, weights=None):
    """Returns the output of a call, as an array.

    Args:
        call: A `Call` of one output.
        values: List of an array for each input.
        weights: Dict from the id of a weight to the values to use in its place.
    """
    dtype = getattr(call.operation, "compute_dtype", None)
    tensors = {
        id(x): ops.convert_to_tensor(value, dtype)
        for x, value in zip(call.inputs, values, strict=True)
    }
    args, kwargs = keras_internals.arguments_with(call, tensors)
    layer = call.operation
    if weights:
        variables = layer.trainable_variables, layer.non_trainable_variables
        output, _ = layer.stateless_call(
            *([weights.get(id(x), x.value) for x in y] for y in variables),
            *args,
            **kwargs,
        )
    else:
        output = layer(*args, **kwargs)
    return ops.convert_to_numpy(output).astype("float64")
