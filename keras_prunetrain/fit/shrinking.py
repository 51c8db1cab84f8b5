"""Channels that shrink to zero inside the train step."""

from typing import Any

import keras
import numpy as np
from keras import ops
from keras.optimizers import Optimizer

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.labels import Numbering
from keras_prunetrain.saliency import gate_gradients, readers
from keras_prunetrain.trainers import updating_optimizers

_NAME = "shrinking"


class ShrinkingChannels:
    """Lets chosen channels shrink linearly to zero, and scores all of them.

    After each step of the optimizer, the slices of the chosen channels in all
    weights that train (kernels on both sides, biases, scales and offsets of
    normalization) and in their slots are multiplied by `(n - 1) / n`, where `n`
    is the number of steps that are left. All other weights are trained as ever.

    Before each step, the gradients of the loss without the penalties on weights
    give the gradient of a gate on each channel number (`gate_gradients`), whose
    magnitudes are summed up.

    Args:
        model: The model that trains; compiled, for TensorFlow.
        numbering: Its `Numbering`.
    """

    def __init__(self, model: keras.Model, numbering: Numbering):
        self._size = numbering.size
        self._readers = readers(numbering)
        self._labels = {}
        for label in numbering.labels:
            if label.weight.trainable:
                self._labels.setdefault(id(label.weight), []).append(label)
        self._optimizers = updating_optimizers(model)
        self._first = None  # That which takes the first step of all.
        self._unseen = {
            key: labels[0].weight.path for key, labels in self._labels.items()
        }
        with keras_internals.strategy_scope(model):
            self._chosen = _variable((self._size,), "chosen")
            self._left = _variable((), "steps_left")
            self._sums = _variable((self._size,), "gate_gradients")
            self._steps = _variable((), "scored_steps")

    def attach(self) -> None:
        """Acts in every step of the optimizer; trace the step anew."""
        for optimizer in self._optimizers:
            hook = _Hook(self, optimizer)
            keras_internals.add_step_hook(optimizer, _NAME, hook)

    def detach(self, model: keras.Model) -> None:
        """Acts no more; trace the step of `model` anew."""
        # A cut may have put other optimizers into a wrapper.
        for optimizer in updating_optimizers(model):
            keras_internals.remove_step_hook(optimizer, _NAME)

    def unseen(self) -> list[str]:
        """Returns the paths of the weights that no step has updated so far.

        Their channels cannot shrink. A step in which a `LossScaleOptimizer`
        skips the update counts if the step is traced.
        """
        return list(self._unseen.values())

    def scores(self) -> np.ndarray | None:
        """Returns the mean magnitude of the gates' gradients.

        Float array, shape `(numbering.size,)`; `None` if no step has been
        taken since the scores were last dropped.
        """
        steps = float(ops.convert_to_numpy(self._steps))
        if not steps:
            return None
        return ops.convert_to_numpy(self._sums).astype("float64") / steps

    def drop_scores(self) -> None:
        """Begins to sum up anew."""
        self._sums.assign(np.zeros(self._size, "float32"))
        self._steps.assign(0.0)

    def shrink(self, chosen: np.ndarray, steps: int) -> None:
        """Lets the channels `chosen` be zero after so many steps.

        Args:
            chosen: Bool array, shape `(numbering.size,)`.
            steps: Integer, at least 1.
        """
        self._left.assign(float(steps))
        self._chosen.assign(np.asarray(chosen, "float32"))

    def get_state(self) -> dict[str, Any]:
        """Returns the state from which another process can go on."""
        return {
            name: ops.convert_to_numpy(variable)
            for name, variable in self._variables().items()
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores the state that `get_state` returned."""
        for name, variable in self._variables().items():
            variable.assign(state[name])

    def _variables(self):
        return {
            "chosen": self._chosen,
            "left": self._left,
            "sums": self._sums,
            "steps": self._steps,
        }

    # Inside the traced step.

    def count_step(self, optimizer: Optimizer) -> None:
        """Counts a step of the training, which may be one of each optimizer."""
        self._first = self._first or optimizer
        if optimizer is self._first:
            keras_internals.update_in_step(
                optimizer,
                [self._left],
                lambda value, least: ops.maximum(value - 1.0, least),
                [ops.zeros((), "float32")],
            )

    def note_gradients(
        self,
        optimizer: Optimizer,
        gradients: list[Any],
        variables: list[keras.Variable],
    ) -> None:
        """Adds the magnitudes of the gates' gradients to the sums."""
        # The gradient of an embedding would become a dense one.
        wanted = {id(x.weight) for x in self._readers}
        by_weight = {
            id(variable): ops.convert_to_tensor(gradient)
            for variable, gradient in zip(variables, gradients, strict=True)
            if gradient is not None and id(variable) in wanted
        }
        reading = [x for x in self._readers if id(x.weight) in by_weight]
        if not reading:
            return
        gates = keras_internals.sum_over_replicas(
            gate_gradients(reading, by_weight, self._size)
        )
        gates /= optimizer.loss_scale_factor or 1.0
        # All replicas have the same penalties.
        penalties = {
            id(x.weight): keras_internals.gradient_of(
                x.weight.regularizer, x.weight
            )
            for x in reading
            if x.weight.regularizer is not None
        }
        if penalties:
            gates -= gate_gradients(reading, penalties, self._size)
        keras_internals.update_in_step(
            optimizer,
            [self._sums, self._steps],
            lambda value, more: value + more,
            # Several optimizers step one after the other.
            [ops.abs(gates), ops.ones((), "float32") / len(self._optimizers)],
        )

    def shrink_in_step(
        self, optimizer: Optimizer, variables: list[keras.Variable]
    ) -> None:
        """Multiplies the chosen slices of `variables` and of their slots."""
        for variable in variables:
            self._unseen.pop(id(variable), None)
        keras_internals.scale_in_step(
            optimizer, variables, self._factors(variables)
        )

    def _factors(self, variables):
        """Returns a dict from the `id` of a variable to its factors."""
        labels = [
            label
            for variable in variables
            for label in self._labels.get(id(variable), ())
        ]
        if not labels:
            return {}
        # One lookup for all: many small ones would take longer than the step.
        numbers = np.concatenate([label.numbers for label in labels])
        # The step under way is not among those that are left.
        along = 1.0 - ops.take(self._chosen, numbers) / (self._left + 1.0)
        ends = np.cumsum([len(label.numbers) for label in labels])
        pieces = ops.split(along, ends[:-1]) if len(ends) > 1 else [along]
        factors = {}
        for label, values in zip(labels, pieces, strict=True):
            shape = [1] * len(label.weight.shape)
            shape[label.axis] = -1
            values = ops.reshape(values, shape)
            # An entry that belongs to two channels shrinks like the faster one,
            # and not by the product of both.
            known = factors.get(id(label.weight))
            if known is not None:
                values = ops.minimum(known, values)
            factors[id(label.weight)] = values
        return factors


class _Hook:
    """A hook around the step of one optimizer."""

    def __init__(self, channels, optimizer):
        self._channels = channels
        self._optimizer = optimizer

    def __call__(self, step, gradients, variables):
        self._channels.count_step(self._optimizer)
        self._channels.note_gradients(self._optimizer, gradients, variables)
        result = step(gradients, variables)
        self._channels.shrink_in_step(self._optimizer, variables)
        return result


def _variable(shape, name):
    return keras.Variable(
        np.zeros(shape, "float32"), trainable=False, dtype="float32", name=name
    )
