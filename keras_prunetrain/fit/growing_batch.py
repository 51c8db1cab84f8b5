"""A `DynamicBatch` inside a running `fit`."""

import functools
import logging
from collections.abc import Sequence

import keras

from keras_prunetrain import keras_internals
from keras_prunetrain.batching import DynamicBatch
from keras_prunetrain.fit.meter import EpochMeter
from keras_prunetrain.fit.training_state import model_state, set_model_state
from keras_prunetrain.growth import begin_growth

_LOG = logging.getLogger("keras_prunetrain")

# The value of `Model.stop_training` that ends an epoch which is shorter than
# the first ones. It is true, but differs from the value that another callback
# sets, so that another callback's wish to stop is recognized and respected.
_END_OF_EPOCH = "the end of the epoch"


class GrowingBatch(keras.callbacks.Callback):
    """Lets `fit` train on a batch that grows, with its learning rate.

    `fit` fixes its number of steps when it begins. Once the batch has grown,
    epochs are shorter: this callback announces their steps and ends them.

    If the first step at a larger size runs out of memory, the batch gets the
    size that it had before and grows no more, and the epoch begins anew. A
    second lack of memory ends `fit` with TensorFlow's error.

    Args:
        batch: The `DynamicBatch` whose data set `fit` trains on.
        meter: The `EpochMeter` of this `fit`, whose hooks run before these.
        siblings: List of all callbacks of this `fit`.
    """

    def __init__(
        self,
        batch: DynamicBatch,
        meter: EpochMeter,
        siblings: Sequence[keras.callbacks.Callback],
    ):
        super().__init__()
        self._batch = batch
        self._meter = meter
        self._siblings = siblings
        self._retried = None

    def on_train_begin(self, logs=None):
        steps, shapes = self.params["steps"], self._meter.input_shapes
        begin_growth(self._batch, self.model, steps, shapes)

    def begin(self) -> None:
        """Lets the optimizer train with the rate for the current size."""
        keras_internals.scale_learning_rate(
            self.model.optimizer,
            self._batch.learning_rate_ratio,
            self._batch.growth.initial_updates,
        )

    def end(self) -> None:
        """Leaves model, optimizer and the other callbacks as they were."""
        self._end_retry()
        keras_internals.restore_learning_rate(self.model.optimizer)
        if self.model.stop_training is _END_OF_EPOCH:
            self.model.stop_training = False
        self._announce(self._batch.announced_steps)

    def _end_retry(self):
        if self._retried is not None:
            self._retried.end()
            self._retried = None

    def grow(self) -> int:
        """Enlarges the batch as far as the smaller model allows.

        Returns:
            The new size, an integer.
        """
        cost = self._meter.current_cost()
        size = self._batch.growth.grow(self.model, cost)
        self.begin()
        return size

    def on_epoch_begin(self, epoch, logs=None):
        self._announce(self._batch.steps)

    def _announce(self, steps):
        self.params["steps"] = steps  # All callbacks share `params`.
        keras_internals.announce_steps(self._siblings, steps)

    def on_train_batch_begin(self, batch, logs=None):
        growth = self._batch.growth
        is_new = batch == 0 and self._batch.size > growth.tried
        # The error of one worker would not reach the others, which wait for it.
        strategy = getattr(self.model, "distribute_strategy", None)
        if is_new and not (
            strategy and keras_internals.on_several_machines(strategy)
        ):
            state = model_state(self.model), keras_internals.random_state()
            self._retried = keras_internals.RetriedStep(
                self.model, functools.partial(self._take_back, *state)
            )

    def _take_back(self, model, random):
        """Lets the epoch begin anew, as if its first step had not been tried.

        The step may have changed some variables before it failed.
        """
        failed = self._batch.size
        self._batch.growth.take_back()
        set_model_state(self.model, model)
        self.model.reset_metrics()
        keras_internals.set_random_state(random)
        self.begin()
        self._announce(self._batch.steps)
        _LOG.warning(
            "A step with a batch of %d examples has run out of memory. The "
            "batch has %d examples again, with which '%s' was trained before, "
            "and grows no more. If memory runs out once more, the training "
            "ends: choose a smaller `memory_budget` or `maximum` of the "
            "DynamicBatch. TensorFlow's log names the tensor.",
            failed,
            self._batch.size,
            self.model.name,
        )

    def on_train_batch_end(self, batch, logs=None):
        examples = self._meter.examples
        if batch == 0 and examples is not None:
            self._batch.growth.check_first_step(examples)
        growth = self._batch.growth
        growth.tried = max(growth.tried, self._batch.size)
        is_last = batch + 1 >= self._batch.steps
        if is_last and not self.model.stop_training:
            self.model.stop_training = _END_OF_EPOCH

    def on_epoch_end(self, epoch, logs=None):
        self._end_retry()
        if self.model.stop_training is _END_OF_EPOCH:
            self.model.stop_training = False
