"""Which channels are constants: one value, at every pixel of every image.

What computes a channel may have died while its bias, or the batch
normalization behind it, still gives it a value. That value is followed through
the graph, as far as it stays the same at every pixel.
"""

from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_prunetrain import keras_internals
from keras_prunetrain.channels import layer_rule
from keras_prunetrain.channels.numbering import Numbering
from keras_prunetrain.channels.rules import rule_for
from keras_prunetrain.channels.walk import Visit, run_graph

# In the place of an unknown size: larger than a kernel is.
_ANY_SIZE = 32


class Constant(NamedTuple):
    """What is known of the channels of a tensor, at inference.

    Attributes:
        values: Float array, shape `(channels,)`; 0 where nothing is known.
        known: Bool array, same shape: which channels are constants.
    """

    values: np.ndarray
    known: np.ndarray


def follow_constants(
    model: keras.Model, numbering: Numbering, silent: dict[str, np.ndarray]
) -> list[Visit]:
    """Runs the graph of `model` on the constants in it.

    Args:
        model: A functional model.
        numbering: Its `Numbering`.
        silent: Dict from the key of a layer to a bool array, shape
            `(output channels,)`: True where every kernel weight that writes
            the channel is below the threshold.

    Returns:
        List of the `Visit`s of all calls, in running order, nested models and
        the calls in them included. Their inputs are `Constant`s, `None` where
        nothing is known.
    """
    visits = []

    def visit(visit):
        visits.append(visit)
        if keras_internals.is_graph(visit.call.operation):
            return None
        channels = numbering.calls[visit.site]
        found = _written(visit, channels, silent.get(visit.key))
        return found or [None] * len(visit.call.outputs)

    run_graph(model, [None] * len(model.inputs), visit)
    return visits


def _written(visit, channels, silent):
    """Returns a `Constant` or `None` for each output, or `None` for all."""
    call, rule = visit.call, rule_for(visit.call.operation)
    # Calling a layer with an activity regularizer would add to its losses.
    regularized = getattr(call.operation, "activity_regularizer", None)
    if (
        rule is None
        or regularized is not None
        or any(map(_in_training, (*visit.around, call)))
        or channels.written[0].any_axis  # Its channels are not followed.
    ):
        return None
    if rule.flow == layer_rule.MOVES:
        value = _unchanged(rule, visit.inputs[0])
        numbers = channels.read[0].numbers
        return [_moved(value, numbers, x.numbers) for x in channels.written]
    (written,) = channels.written
    if silent is not None:
        found = _known(_of_zeros(call, written), silent)
    else:
        found = _passed_on(call, rule, visit.inputs, channels.read)
    if found is None or len(found.values) != len(written.numbers):
        return None
    return [found]


def _known(values, known):
    if values is None or not known.any():
        return None
    return Constant(np.where(known, values, 0.0), known)


def _passed_on(call, rule, values, read):
    """Returns what a call makes of the constants that it reads, or `None`."""
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
        # Padded with zeros, a depthwise kernel leaves only a zero as it is.
        known = values[0].known & (values[0].values == 0.0)
        repeats = rule.ask("repeats", call.operation)
        return _known(_of_zeros(call, read[0]), np.repeat(known, repeats))
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
    """Returns the part of a `Constant` that passes the layer as it is."""
    if value is None or rule.constants == "pass":
        return value
    if rule.constants == "zeros":
        return _known(value.values, value.known & (value.values == 0.0))
    return None


def _lined_up(call, values, read):
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


def _moved(value, numbers, moved):
    """Returns a `Constant` for the channels `moved`, out of those `numbers`."""
    if value is None:
        return None
    values = np.full(max(numbers.max(), moved.max()) + 1, np.nan)
    for number, one, known in zip(numbers, *value, strict=True):
        first = values[number]
        same = known and (np.isnan(first) or first == one)
        values[number] = one if same else np.inf  # Not the same everywhere.
    known = np.isfinite(values[moved])
    return _known(np.where(known, values[moved], 0.0), known)


def _in_training(call):
    """Whether `call` behaves as in training, always: Monte Carlo dropout."""
    stand_ins = dict.fromkeys(map(id, call.inputs))
    _, kwargs = keras_internals.arguments_with(call, stand_ins)
    return bool(kwargs.get("training"))


def _of_zeros(call, channels):
    """Returns what a layer makes of zeros: its bias, behind its activation."""
    shape = [size or _ANY_SIZE for size in call.inputs[0].shape[1:]]
    output = _call(call, [np.zeros((1, *shape))])
    output = np.moveaxis(output, channels.axis - len(channels.shape), -1)
    output = output.reshape(-1, output.shape[-1])
    # The bias of an `EinsumDense` may differ from head to head.
    return None if np.ptp(output, axis=0).any() else output[0]


def _call(call, values):
    """Returns, as an array, what the layer of `call` makes of `values`."""
    dtype = getattr(call.operation, "compute_dtype", None)
    tensors = {
        id(x): ops.convert_to_tensor(value, dtype)
        for x, value in zip(call.inputs, values, strict=True)
    }
    args, kwargs = keras_internals.arguments_with(call, tensors)
    output = call.operation(*args, **kwargs)
    return ops.convert_to_numpy(output).astype("float64")
