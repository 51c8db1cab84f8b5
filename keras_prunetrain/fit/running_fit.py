"""One `fit` of a callback that makes the model smaller."""

import contextlib
import logging
import weakref
from collections.abc import Callable
from typing import Any

import keras

from keras_prunetrain import keras_internals
from keras_prunetrain.batching import DynamicBatch
from keras_prunetrain.fit.growing_batch import GrowingBatch
from keras_prunetrain.fit.meter import EpochMeter
from keras_prunetrain.fit.parts import PartsCheck
from keras_prunetrain.fit.record import Reconfiguration
from keras_prunetrain.trainers import Submodels, network_of

_LOG = logging.getLogger("keras_prunetrain")

# Weak references to the `RunningFit`s of models.
_RUNNING = weakref.WeakKeyDictionary()


class RunningFit:
    """The callbacks that take part in one `fit`, and the cleanup at its end.

    A callback makes this object in `Callback.set_model`. `leave` is called
    however `fit` ends: by the callback if `fit` succeeds, otherwise by guards.

    Args:
        meter: The `EpochMeter`, which acts before the callback.
        batch: A `DynamicBatch`, or `None`.
        log: A `DensityLog`, which acts after the callback, or `None`.

    Attributes:
        siblings: List of all callbacks of this `fit`.
        logs: List of the logs that follow the callback; at first `log` alone.
        growing: A `GrowingBatch`, which acts before the callback; `None` where
            the batch size is fixed.
        before: `keras.callbacks.CallbackList` of those that act before.
        after: `keras.callbacks.CallbackList` of those that act after.
        options: The `CutOptions`, checked against the model; `None` before.
        network: The functional model whose channels may go (`network_of`).
    """

    def __init__(
        self,
        meter: EpochMeter,
        batch: DynamicBatch | None,
        log: keras.callbacks.Callback | None,
    ):
        callbacks = keras_internals.calling_list()
        self.siblings = [] if callbacks is None else list(callbacks.callbacks)
        self.logs = [] if log is None else [log]
        self.network = None
        self._meter = meter
        self.growing = None
        if batch is not None:
            self.growing = GrowingBatch(batch, meter, self.siblings)
        self.before = keras.callbacks.CallbackList()
        self.after = keras.callbacks.CallbackList(list(self.logs))
        self.options = None
        self._undo = contextlib.ExitStack()
        if callbacks is not None:
            keras_internals.guard_hooks(callbacks, self.leave)

    def set_model(self, model: keras.Model, submodels: Submodels) -> None:
        earlier = _RUNNING.get(model, lambda: None)()
        if earlier is not None:
            earlier.leave()  # Nobody has seen the end of that `fit`.
        _RUNNING[model] = weakref.ref(self)
        self.network = network_of(model, submodels)
        before = [self._meter]
        if self.growing is not None:
            before.append(self.growing)
        if self.network is not model:
            self.at_end(keras_internals.forget_calls, self.network)
            before.insert(0, PartsCheck(self.network, self.growing is not None))
        self.before = keras.callbacks.CallbackList(before)
        self.before.set_model(model)
        self._meter.network = self.network
        self.after.set_model(model)

    def set_params(self, params: dict[str, Any]) -> None:
        self.before.set_params(params)
        self.after.set_params(params)

    def note(self, text: str, level: int) -> None:
        """Logs `text`, and lets the logs show it at this epoch."""
        _LOG.log(level, "%s", text)
        for log in self.logs:
            log.note(text)

    def after_cut(self, report: Reconfiguration) -> None:
        """Lets the batch grow, and callbacks forget weights that do not fit."""
        if self.growing is not None:
            report.batch_size_after = self.growing.grow()
        self.forget_best()

    def forget_best(self) -> None:
        """Lets callbacks forget weights from before a cut."""
        for sibling in self.siblings:
            _forget_best(sibling)

    def awaits_best(self, epochs: int) -> bool:
        """Whether `fit` ends with this epoch, and brings the best one back.

        A cut before that would make the best weights unfit.

        Args:
            epochs: Integer, how many are done.
        """
        is_last = epochs == self._meter.params["epochs"]
        is_over = is_last or self._meter.model.stop_training
        return bool(is_over) and any(map(_restores, self.siblings))

    def restore_best(self) -> None:
        """Brings the best weights back, where a callback would do it later.

        Of several callbacks the last one has its way, as without this.
        """
        for callback in filter(_restores, self.siblings):
            if callback.best_weights is not None:
                self._meter.model.set_weights(callback.best_weights)
                callback.best_weights = None

    def begin_growing(self) -> None:
        """Lets the batch grow until the end of this `fit`, if it may."""
        if self.growing is not None:
            self.at_end(self.growing.end)
            self.growing.begin()

    def at_end(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Lets `leave` call `function(*arguments)`, the last one first."""
        self._undo.callback(function, *arguments)

    def leave(self) -> None:
        """Calls the functions given to `at_end`, once."""
        self._undo.close()


def _restores(callback):
    """Whether a callback brings weights back when `fit` ends."""
    is_stopping = isinstance(callback, keras.callbacks.EarlyStopping)
    return is_stopping and callback.restore_best_weights


def _forget_best(callback):
    """Lets an `EarlyStopping` that restores weights begin anew.

    From now on it looks for the best epoch of the pruned model, to which
    neither the old best weights nor the old best value belong.
    """
    if _restores(callback) and callback.best_weights is not None:
        callback.best = callback.best_weights = None
        callback.wait = 0
        _LOG.info(
            "EarlyStopping looks for the best epoch anew: the weights of epoch "
            "%d are from before the model was pruned.",
            callback.best_epoch + 1,
        )
