"""A `DynamicBatch` inside a running `fit`."""

from collections.abc import Sequence

import keras

from keras_prunetrain import keras_internals
from keras_prunetrain.batching import DynamicBatch
from keras_prunetrain.fit.meter import EpochMeter
from keras_prunetrain.growth import begin_growth

# The value of `Model.stop_training` that ends an epoch which is shorter than
# the first ones. It is true, but differs from the value that another callback
# sets, so that another callback's wish to stop is recognized and respected.
_END_OF_EPOCH = "the end of the epoch"


class GrowingBatch(keras.callbacks.Callback):
    """Lets `fit` train on a batch that grows, with its learning rate.

    `fit` fixes its number of steps when it begins. Once the batch has grown,
    epochs are shorter: this callback announces their steps and ends them.

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
        keras_internals.restore_learning_rate(self.model.optimizer)
        if self.model.stop_training is _END_OF_EPOCH:
            self.model.stop_training = False
        self._announce(self._batch.announced_steps)

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

    def on_train_batch_end(self, batch, logs=None):
        examples = self._meter.examples
        if batch == 0 and examples is not None:
            self._batch.growth.check_first_step(examples)
        is_last = batch + 1 >= self._batch.steps
        if is_last and not self.model.stop_training:
            self.model.stop_training = _END_OF_EPOCH

    def on_epoch_end(self, epoch, logs=None):
        if self.model.stop_training is _END_OF_EPOCH:
            self.model.stop_training = False
