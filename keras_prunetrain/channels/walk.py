"""Walks over the calls of a model, including the calls of nested models."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras

from keras_prunetrain import keras_internals


class Visit(NamedTuple):
    """One call that a walk visits.

    Attributes:
        key: Name of the operation, after the names of the models around the
            operation: `"backbone/conv1"`.
        call: The `keras_internals.Call`.
        inputs: List of the stand-ins for the tensors that the call reads.
        around: The calls of the models that the call is nested in, the
            outermost first.
    """

    key: str
    call: keras_internals.Call
    inputs: list[Any]
    around: tuple[keras_internals.Call, ...]

    @property
    def site(self) -> tuple[int, ...]:
        """An identifier of the call, unique in the model, equal in every walk.

        A nested model that is called twice has one set of tensors for both
        calls, so the identifier includes the calls in `around`.
        """
        return tuple(id(x.outputs[0]) for x in (*self.around, self.call))

    def because(self, reason: object) -> str:
        """Returns why channels of this call stay, in words for the report."""
        layer_class = type(self.call.operation).__name__
        return f"{self.key} ({layer_class}): {reason}"


def run_graph(
    model: keras.Model,
    inputs: list[Any],
    visit: Callable[[Visit], list[Any] | None],
    prefix: str = "",
    around: tuple[keras_internals.Call, ...] = (),
) -> list[Any]:
    """Runs the graph of a functional model on stand-ins for its tensors.

    Args:
        model: A functional model.
        inputs: List of the stand-ins for `model.inputs`.
        visit: Function of a `Visit` that returns the list of the stand-ins for
            the call's outputs. For a nested model, the function may return
            `None`: the calls in the model are then visited.
        prefix: String that the keys begin with.
        around: The calls that the model is nested in.

    Returns:
        List of the stand-ins for `model.outputs`.
    """
    values: dict[int, Any] = dict(
        zip(map(id, model.inputs), inputs, strict=True)
    )
    for call in keras_internals.calls(model):
        read = [values[id(x)] for x in call.inputs]
        key = prefix + call.operation.name
        written = visit(Visit(key, call, read, around))
        if written is None:
            inside = (*around, call)
            inner = call.operation
            read = read[: len(inner.inputs)]  # Without masks, which come last.
            written = run_graph(inner, read, visit, f"{key}/", inside)
        values.update(zip(map(id, call.outputs), written, strict=True))
    return [values[id(x)] for x in model.outputs]
