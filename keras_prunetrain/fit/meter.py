"""What an epoch of `fit` takes: seconds, examples, FLOPs."""

import math
import time
import weakref
from typing import Any

import keras

from keras_prunetrain import keras_internals
from keras_prunetrain.batching import DynamicBatch
from keras_prunetrain.cost import Cost, cost_if_known
from keras_prunetrain.distribution import replica_count
from keras_prunetrain.example_shapes import shapes_in
from keras_prunetrain.sdgp.attach import is_sparse
from keras_prunetrain.trainers import network_of, optimizer_of


class EpochMeter(keras.callbacks.Callback):
    """Measures each epoch of `fit`: seconds, examples, FLOPs.

    All values but `fit_seconds` belong to the current epoch so far, and stay
    until the next epoch begins. The time of validation does not count.

    Example:

    ```python
    meter = EpochMeter()
    tell = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: print(meter.seconds, meter.examples)
    )
    model.fit(images, labels, callbacks=[meter, tell])
    ```

    Attributes:
        examples: Integer, the examples that the epoch has trained on; `None` if
            the model's own `train_step` does not weigh the loss by examples. On
            several replicas the number is known after the first and the last
            step only.
        batch_size: Integer, the examples of a step of this `fit`, over all
            replicas; `None` until it is known.
        cost: `Cost` of the model with which the epoch is trained; `None` if the
            size of an example is not known.
        input_shapes: Shape of one example in the data of this `fit`, as the
            `input_shapes` of `model_cost`.
        network: The functional model that is counted; `None` before `fit`, and
            for a model without a graph.
        step_seconds: Float, the seconds of the last step; with
            `steps_per_execution`, of the last execution.
    """

    def __init__(self):
        super().__init__()
        self.examples = None
        self.batch_size = None
        self.cost = None
        self.input_shapes = None
        self.network = None
        self.step_seconds = 0.0
        self._counted = _CountedCost()
        self._clock = _Clock()
        self._fit_clock = _Clock()
        self._rate = None
        self._step_started = 0.0
        # The last step of the epoch, and the last one that was counted.
        self._step = self._counted_step = None

    @property
    def seconds(self) -> float:
        """Seconds since the epoch began, validation apart."""
        return self._clock.seconds

    @property
    def fit_seconds(self) -> float:
        """Seconds since `fit` began, surgery included, validation apart."""
        return self._fit_clock.seconds

    @property
    def training_flops(self) -> float:
        """Flops of all examples of the epoch; NaN if they are not known."""
        return self._of_examples("training_flops")

    @property
    def emulated_flops(self) -> float:
        """Those of them that SDGP leaves out, for hardware that can.

        They are no part of `training_flops`; see `Cost.emulated_flops`.
        """
        return self._of_examples("emulated_flops")

    def _of_examples(self, quantity):
        if self.cost is None or self.examples is None:
            return math.nan
        return getattr(self.cost, quantity) * self.examples

    @property
    def learning_rate(self) -> float | None:
        """The rate that the optimizer showed at the last step of the epoch.

        Callbacks change the rate at the end of an epoch, and a schedule changes
        it with each step. `None` if the optimizer has several rates.
        """
        if self._rate is not None or self.model is None:
            return self._rate
        return keras_internals.shown_rate(optimizer_of(self.model))

    def get_state(self) -> dict[str, Any]:
        """Returns what has been measured so far, for a backup."""
        return {
            "fit_seconds": self.fit_seconds,
            "seconds": self.seconds,
            "batch_size": self.batch_size,
            "examples": self.examples,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores the state of `get_state`, in a `fit` that has begun."""
        self._fit_clock.restart(state["fit_seconds"])
        self._clock.restart(state["seconds"])
        self.batch_size = state["batch_size"]
        self.examples = state["examples"]

    def current_cost(self) -> Cost | None:
        """Returns the `Cost` of the model as it is now, `None` if not known.

        Each architecture is counted once. `None` before `fit`.
        """
        if self.network is None:
            return None
        return self._counted.of(self.network, self.input_shapes)

    def set_model(self, model):
        super().set_model(model)
        self.network = None

    def on_train_begin(self, logs=None):
        self._fit_clock.restart()
        self.batch_size = None
        self._counted = _CountedCost()
        self.network = self.network or network_of(self.model)
        # What a trainer gives to each of several inputs is not known.
        if self.network is self.model or _reads_one_tensor(self.network):
            data = keras_internals.fit_argument("x")
            self.input_shapes = shapes_in(data, self.network)
        self.cost = self.current_cost()

    def on_epoch_begin(self, epoch, logs=None):
        self.examples = self._rate = None
        self._step = self._counted_step = None
        self.cost = self.current_cost()
        self._clock.restart()

    def on_train_batch_begin(self, batch, logs=None):
        steps = self.params.get("steps") or math.inf
        if batch + self.model.steps_per_execution >= steps:
            optimizer = optimizer_of(self.model)
            self._rate = keras_internals.scheduled_rate(optimizer)
        self._step_started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.step_seconds = time.perf_counter() - self._step_started
        self._step = batch
        steps = self.params.get("steps")
        is_first = batch < self.model.steps_per_execution
        is_last = steps is not None and batch + 1 >= steps
        # Count at the last step at the latest: `evaluate` resets the counter,
        # and each count is an exchange between replicas.
        is_alone = replica_count(self.model) == 1
        if is_alone or is_first or is_last or steps is None:
            self._count_examples()
        if is_last and self._rate is None:
            optimizer = optimizer_of(self.model)
            self._rate = keras_internals.shown_rate(optimizer)

    def on_test_begin(self, logs=None):
        self._count_examples()  # If a callback ended the epoch early.
        self._clock.pause()
        self._fit_clock.pause()

    def on_test_end(self, logs=None):
        self._clock.go_on()
        self._fit_clock.go_on()

    def on_epoch_end(self, epoch, logs=None):
        self._count_examples()

    def _count_examples(self):
        """Counts the examples of the epoch so far, once for each step.

        On several replicas this is an exchange between them.
        """
        if self._step is None or self._counted_step == self._step:
            return
        self._counted_step = self._step
        # With `steps_per_execution`, the step may lie after the last one.
        steps = min(self._step + 1, self.params.get("steps") or math.inf)
        self.examples = keras_internals.example_count(self.model, steps)
        if self.batch_size is None and self.examples is not None:
            self.batch_size = math.ceil(self.examples / steps)


def trained_rate(meter: EpochMeter, batch: DynamicBatch | None) -> float | None:
    """Returns the learning rate of the last step; `None` if several.

    Args:
        meter: The `EpochMeter` of the `fit`.
        batch: The batch that scales the rate, or `None`.
    """
    rate = meter.learning_rate
    if rate is None or batch is None:
        return rate
    return rate * batch.learning_rate_ratio


class _Clock:
    """A clock that can be stopped for a while."""

    def __init__(self):
        self._before = 0.0
        self._since = None

    @property
    def seconds(self):
        running = 0.0
        if self._since is not None:
            running = time.perf_counter() - self._since
        return self._before + running

    def restart(self, before=0.0):
        self._before, self._since = before, time.perf_counter()

    def pause(self):
        self._before, self._since = self.seconds, None

    def go_on(self):
        if self._since is None:
            self._since = time.perf_counter()


def _reads_one_tensor(network):
    return keras_internals.is_graph(network) and len(network.inputs) == 1


class _CountedCost:
    """The cost of a model, counted anew only where it may have changed.

    Another architecture has another cost, and so have other data gradients.
    """

    def __init__(self):
        self._cost = None
        self._output = lambda: None
        self._is_sparse = False

    def of(self, model, input_shapes):
        # A reconfiguration makes all symbolic tensors of the graph anew.
        output = model.outputs[0]
        sparse = is_sparse(model)
        if self._output() is not output or sparse != self._is_sparse:
            self._cost = cost_if_known(model, input_shapes)
            self._output = weakref.ref(output)
            self._is_sparse = sparse
        return self._cost
