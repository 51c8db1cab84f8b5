"""The sizes of one example's tensors, in one run through a model.

A model may leave sizes open: `keras.Input((None, None, 3))` takes images of any
size. The data, or the outer model of a nested one, give the size, and each call
is asked for the shapes of its outputs when its inputs have that size.
"""

import dataclasses
import math
from typing import Any

import keras

from keras_prunetrain.channels.walk import run_graph
from keras_prunetrain.checks import is_count
from keras_prunetrain.keras_internals import arguments_with, is_graph
from keras_prunetrain.variables import item_bytes

# The shape of one example, without the batch; `None` is an unknown size.
Shape = tuple[int | None, ...]
# The shape of the only input, or a list of all; `None` for the model's own.
InputShapes = Shape | list[Shape | None] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Feature:
    """A tensor of one call of one layer, for one example.

    Two calls never share a `Feature`. A nested model that is called twice has
    one set of symbolic tensors for both calls, but two of `Feature`s.

    Attributes:
        shape: The `Shape`.
        dtype: String.
    """

    shape: Shape
    dtype: str

    def bytes(self, operation: keras.Operation) -> int:
        """Bytes of one example, in the dtype to which `operation` casts it."""
        dtype = keras.backend.standardize_dtype(self.dtype)
        if "float" in dtype and isinstance(operation, keras.layers.Layer):
            dtype = operation.compute_dtype
        return math.prod(self.shape) * item_bytes(dtype)


def layer_calls(
    model: keras.Model, input_shapes: InputShapes = None
) -> list[tuple[str, keras.Operation, list[Feature], list[Feature]]]:
    """Returns the calls of a model, and the tensors that each reads and writes.

    Args:
        model: A functional model. Models nested in it are taken apart.
        input_shapes: Shape of one example, or a list of one for each of
            `model.inputs`, `None` for an input with the model's own shape.
            Defaults to `None`, the shapes of the model's inputs.

    Returns:
        List of tuples `(key, operation, read, written)`, in running order. The
        key is the operation's name behind the names of the models in which it
        is nested: `"model/layer"`.

    Raises:
        ValueError: If `input_shapes` does not fit the inputs of the model.
    """
    found = []

    def visit(visited):
        call = visited.call
        if is_graph(call.operation):
            return None
        shapes = _shapes_written(call, visited.inputs)
        written = [
            Feature(shape, tensor.dtype)
            for shape, tensor in zip(shapes, call.outputs, strict=True)
        ]
        found.append((visited.key, call.operation, visited.inputs, written))
        return written

    shapes = _per_input(model, input_shapes)
    inputs = [
        Feature(_merged(tensor.shape[1:], shape), tensor.dtype)
        for tensor, shape in zip(model.inputs, shapes, strict=True)
    ]
    run_graph(model, inputs, visit)
    return found


def shapes_in(data: Any, model: keras.Model) -> list[Shape | None]:
    """Returns the shapes of one example in the data of `fit`.

    Args:
        data: The argument `x` of `fit`, or `None`.
        model: The functional model that is trained.

    Returns:
        List of a shape for each of `model.inputs`; `None` for a shape that does
        not fit the model, or that is unknown before the data are drawn, as from
        a `keras.utils.PyDataset` or a generator.
    """
    if hasattr(data, "element_spec"):  # A `tf.data.Dataset`.
        data, *_ = keras.utils.unpack_x_y_sample_weight(data.element_spec)
    if isinstance(data, dict):  # `fit` passes its arrays on by name.
        data = [data.get(tensor.name) for tensor in model.inputs]
    leaves = keras.tree.flatten(data)
    if len(leaves) != len(model.inputs):
        leaves = [None] * len(model.inputs)
    return [
        _shape_in(leaf, tensor)
        for leaf, tensor in zip(leaves, model.inputs, strict=True)
    ]


def _shape_in(array, tensor):
    shape = getattr(array, "shape", None)
    if shape is None or getattr(shape, "rank", 0) is None:
        return None
    shape = tuple(shape)[1:]
    return shape if _fits(shape, tensor.shape[1:]) else None


def _fits(shape, expected):
    return len(shape) == len(expected) and all(
        None in (size, other) or size == other
        for size, other in zip(shape, expected, strict=True)
    )


def _is_shape(value):
    return isinstance(value, tuple) and all(
        size is None or is_count(size, 1) for size in value
    )


def _per_input(model, shapes):
    """Returns a list of a shape or `None` for each of `model.inputs`."""
    expected = [tensor.shape[1:] for tensor in model.inputs]
    if shapes is None:
        return [None] * len(expected)
    listed = [shapes] if _is_shape(shapes) else shapes
    if (
        not isinstance(listed, list | tuple)
        or len(listed) != len(expected)
        or not all(
            shape is None or (_is_shape(shape) and _fits(shape, size))
            for shape, size in zip(listed, expected, strict=True)
        )
    ):
        raise ValueError(
            "`input_shapes` must hold a shape for each input of the model, "
            "without the batch: `(32, 32, 3)` for one, a list for several. "
            f"Received: {shapes!r} for '{model.name}', whose inputs have the "
            f"shapes {expected}"
        )
    return listed


def _shapes_written(call, read):
    """Returns the shapes that a call writes when it reads `read`.

    Args:
        call: A `keras_internals.Call`.
        read: List of `Feature`s.
    """
    recorded = [tensor.shape[1:] for tensor in call.outputs]
    says_no_more = [x.shape for x in read] == [x.shape[1:] for x in call.inputs]
    if says_no_more or not any(None in shape for shape in recorded):
        return recorded
    stand_ins = {
        id(tensor): keras.KerasTensor(
            (*tensor.shape[:1], *feature.shape), tensor.dtype
        )
        for tensor, feature in zip(call.inputs, read, strict=True)
    }
    args, kwargs = arguments_with(call, stand_ins)
    try:
        outputs = call.operation.compute_output_spec(*args, **kwargs)
        computed = [x.shape[1:] for x in keras.tree.flatten(outputs)]
        pairs = zip(recorded, computed, strict=True)
        return [_merged(shape, other) for shape, other in pairs]
    except Exception:  # A layer of the user's may not work on these sizes.
        return recorded


def _merged(shape, other):
    """Returns `shape` with its unknown sizes taken from `other`."""
    if other is None or len(shape) != len(other):
        return tuple(shape)
    return tuple(
        b if a is None else a for a, b in zip(shape, other, strict=True)
    )
