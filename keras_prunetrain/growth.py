"""The growth of a batch into the memory that a model leaves free."""

import logging
import math
import weakref
from typing import Any

import keras

from keras_prunetrain import data_sets, keras_internals
from keras_prunetrain.batching import DynamicBatch
from keras_prunetrain.cost import Cost, cost_if_known
from keras_prunetrain.distribution import replica_count
from keras_prunetrain.example_shapes import InputShapes
from keras_prunetrain.memory import (
    device_bytes,
    iteration_bytes,
    training_bytes,
)

_LOG = logging.getLogger("keras_prunetrain")
# Ratio of the bytes that an iteration may take to the bytes that are counted.
# The largest ratio that was measured is 1.14 (tools/benchmarks/memory.py); the
# rest is reserve.
_OVERHEAD = 1.25
_OTHER_DATA = (
    "`fit` does not train on the data set of this DynamicBatch: hand it "
    "`batch(train)`, with `train` an unbatched `tf.data.Dataset`, or "
    "`batch.arrays(images, labels)`, and no `steps_per_epoch`."
)


def begin_growth(
    batch: DynamicBatch,
    model: keras.Model,
    steps: int | None,
    input_shapes: InputShapes = None,
) -> "BatchGrowth":
    """Returns the `BatchGrowth` of `batch` in a `fit` of `model`.

    A callback calls this before the first step. A further `fit` of the same
    model goes on with the same `BatchGrowth`.

    Args:
        batch: The batch whose data set `fit` should read.
        model: The model, compiled and built.
        steps: Steps per epoch that `fit` knows of, `None` if it knows none.
        input_shapes: Shape of one example, as of `model_cost`.

    Raises:
        ValueError: If `fit` does not read a data set of this batch, if a step
            cannot be divided among the replicas, if the batch has been grown
            with another model, if the size of an example is not known, or if
            the budget is below the bytes of a batch of one.
    """
    _check_replicas(batch, replica_count(model))
    _check_data(batch, steps)
    if model.steps_per_execution > 1:
        raise ValueError(
            "A batch that grows makes epochs shorter, and an execution of "
            "several steps cannot end in its middle. Compile with "
            "`steps_per_execution=1`. Received: steps_per_execution="
            f"{model.steps_per_execution}"
        )
    if cost_if_known(model, input_shapes) is None:
        raise ValueError(
            "A DynamicBatch must know how much memory an example takes, and so "
            "the example's size. Let the data set tell it, for example with "
            "`.map(lambda x, y: (tf.ensure_shape(x, (224, 224, 3)), y))`, or "
            f"give the `Input` of '{model.name}' a fixed shape. Received: "
            f"inputs of shape {[x.shape for x in model.inputs]}"
        )
    if batch.growth is not None and not batch.growth.belongs_to(model):
        raise ValueError(
            "This DynamicBatch has been grown with another model. Make a new "
            f"one for '{model.name}'. Received: {batch}"
        )
    if not model.optimizer.built:  # The slots take memory as well.
        with keras_internals.strategy_scope(model):
            model.optimizer.build(model.trainable_variables)
    if batch.growth is None:
        batch.growth = BatchGrowth(batch, model, input_shapes)
    batch.growth.resume(model, input_shapes)
    return batch.growth


class BatchGrowth:
    """Enlarges a `DynamicBatch` into the memory that one model leaves free.

    Args:
        batch: The batch.
        model: The first architecture, compiled, its optimizer built.
        input_shapes: Shape of one example, as of `model_cost`.

    Attributes:
        budget: Number of bytes that one iteration may take on each replica.
        tried: Integer, the largest batch size with which a step was done.
        is_over: Boolean. Whether the batch grows no more.

    Raises:
        ValueError: If the budget is below the bytes of a batch of one.
    """

    def __init__(
        self,
        batch: DynamicBatch,
        model: keras.Model,
        input_shapes: InputShapes = None,
    ):
        self._batch = batch
        self._model = weakref.ref(model)
        self._input_shapes = None
        self.budget = _budget_for(batch, model, input_shapes)
        # The number of updates at the last growth, as counted, and converted
        # to updates of the initial size.
        self._since = (0, 0)
        self.tried = batch.size
        self.is_over = False

    def belongs_to(self, model: keras.Model) -> bool:
        """Whether `model` is the model with which the batch has been grown."""
        return self._model() is model

    def resume(
        self, model: keras.Model, input_shapes: InputShapes = None
    ) -> None:
        """Begins a `fit`, which may be a further one of the same model.

        The images of a further `fit` may have another size, and a model that
        was compiled again counts its updates from 0.
        """
        self._input_shapes = input_shapes
        if keras_internals.update_count(model.optimizer) < self._since[0]:
            self._since = (0, 0)

    def get_state(self) -> dict[str, Any]:
        """Returns the budget and the last growth, for a backup."""
        return {
            "budget": self.budget,
            "since": self._since,
            "tried": self.tried,
            "is_over": self.is_over,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state of `get_state`, but for a budget that was given."""
        if self._batch.memory_budget is None:
            self.budget = state["budget"]
        self._since = tuple(state["since"])
        self.tried, self.is_over = state["tried"], state["is_over"]

    def initial_updates(self, iterations: Any) -> Any:
        """Converts `iterations` to updates of the initial size.

        The result is the number of updates of the initial size on the same
        examples; a schedule of the learning rate is read there.

        Args:
            iterations: Integer, or integer tensor: updates of the optimizer, at
                least as many as at the last growth.
        """
        update, initial_updates = self._since
        examples = (iterations - update) * self._batch.size
        return initial_updates + examples // self._batch.initial

    def check_first_step(self, examples: int) -> None:
        """Raises a `ValueError` unless the first step saw a whole batch.

        `begin_growth` compares the number of steps only, and another data set
        may have as many steps.
        """
        expected = min(self._batch.size, self._batch.examples)
        if examples != expected:
            raise ValueError(
                f"{_OTHER_DATA} Received: {examples} examples in the first "
                f"step, expected {expected}"
            )

    def grow(self, model: keras.Model, cost: Cost | None = None) -> int:
        """Enlarges the batch as far as the memory allows; never shrinks it.

        The batch stays as it is, with a warning, if `DynamicBatch.scaling`
        gives no learning rate for the new size: the model has become smaller
        already, and an error would end the training.

        Args:
            model: The model as it is now.
            cost: Its `Cost`, if it has been counted already.

        Returns:
            The new size.
        """
        size = self._size_for(model, cost)
        if size <= self._batch.size or self.is_over:
            return self._batch.size
        update = keras_internals.update_count(model.optimizer)
        since = (update, self.initial_updates(update))
        try:
            self._batch.size = size
        except ValueError as error:
            _LOG.warning(
                "The batch stays at %d examples and does not grow to %d. %s",
                self._batch.size,
                size,
                error,
            )
        else:
            self._since = since
        return self._batch.size

    def take_back(self) -> None:
        """Lets the batch have the largest size that was tried, for good."""
        self._batch.size = self.tried
        self.is_over = True

    def _size_for(self, model, cost):
        """Returns the largest size that fits, an integer; 0 if none does."""
        batch, replicas = self._batch, replica_count(model)
        fixed, per_example = iteration_bytes(model, self._input_shapes, cost)
        room = math.inf  # Examples, on one replica.
        if per_example:
            room = (self.budget - fixed) // per_example
        limit = min(batch.maximum or math.inf, batch.examples)
        step = batch.granularity * replicas
        size = int(min(room * replicas, limit) // step) * step
        while size > 0 and leaves_a_replica_empty(
            batch.examples, size, replicas
        ):
            size -= step
        return max(size, 0)


def leaves_a_replica_empty(examples: int, size: int, replicas: int) -> bool:
    """Whether the last batch of an epoch has no example for some replica.

    TensorFlow fills one replica after the other, each with as many examples as
    the first one gets.

    Args:
        examples: Number of examples in an epoch.
        size: The batch size, over all replicas.
        replicas: Number of replicas.
    """
    rest = examples % size
    return 0 < rest <= math.ceil(rest / replicas) * (replicas - 1)


def _check_replicas(batch, replicas):
    """Raises a `ValueError` if a step cannot be divided among the replicas."""
    if batch.initial % replicas:
        raise ValueError(
            f"The {replicas} replicas do not divide the first batch. "
            f"Received: initial={batch.initial}"
        )
    examples, size = batch.examples, batch.size
    if examples and leaves_a_replica_empty(examples, size, replicas):
        raise ValueError(
            f"The last batch of an epoch has {examples % size} examples for "
            f"{replicas} replicas. One of them would get none, and layers fail "
            "on an empty batch. Choose another `initial`, or fewer examples "
            f"by `train.take(n)`. Received: batches of {size} for {examples} "
            "examples"
        )


def _check_data(batch, steps):
    """Raises a `ValueError` if `fit` does not read the data set of `batch`."""
    fixed_steps = keras_internals.fit_argument("steps_per_epoch")
    if fixed_steps is not None:
        raise ValueError(
            f"{_OTHER_DATA} Received: steps_per_epoch={fixed_steps}"
        )
    data = keras_internals.fit_argument("x")
    if data is not None and not data_sets.is_data_set(data):
        raise ValueError(f"{_OTHER_DATA} Received: {type(data).__name__}")
    if batch.examples is None or steps != batch.announced_steps:
        raise ValueError(
            f"{_OTHER_DATA} Received: {steps} steps per epoch, expected "
            f"{batch.announced_steps}"
        )


def _budget_for(batch, model, input_shapes):
    """Returns the bytes that an iteration may take on each replica.

    Raises:
        ValueError: If a batch of one does not fit.
    """
    if batch.memory_budget is None:
        size = batch.initial // replica_count(model)
        return training_bytes(model, size, input_shapes)
    budget = batch.memory_budget
    if budget == "device":
        budget = device_bytes() / _OVERHEAD
    least = training_bytes(model, 1, input_shapes)
    if budget < least:
        raise ValueError(
            f"One training iteration of '{model.name}' takes {least:,} bytes "
            "with a batch of one on each replica. Received: "
            f"memory_budget={batch.memory_budget!r} ({int(budget):,} bytes)"
        )
    return budget
