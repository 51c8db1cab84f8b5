"""The base of every callback that makes the model smaller while it trains."""

import contextlib
import gc
import logging
import math
import time

import keras

from keras_prunetrain import keras_internals
from keras_prunetrain.callbacks.density_log import DensityLog
from keras_prunetrain.channels.liveness import matching_layers
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.cost import communication_bytes
from keras_prunetrain.distribution import (
    average_statistics,
    check_agreement,
    prepare_strategy,
    replica_count,
)
from keras_prunetrain.fit.arguments import check_batch, reconfigure_arguments
from keras_prunetrain.fit.growing_batch import GrowingBatch
from keras_prunetrain.fit.meter import EpochMeter
from keras_prunetrain.fit.progress import Progress
from keras_prunetrain.fit.record import record_of, totals
from keras_prunetrain.fit.siblings import check_siblings
from keras_prunetrain.lasso.attach import all_finite
from keras_prunetrain.memory import iteration_bytes
from keras_prunetrain.surgery.reconfigure import (
    carry_out,
    check_reconfigurable,
    make_plan,
)
from keras_prunetrain.surgery.takeover import take_over
from keras_prunetrain.variables import gradient_bytes

_LOG = logging.getLogger("keras_prunetrain")


class ReconfiguringCallback(keras.callbacks.Callback):
    """Makes the model smaller while it trains; subclasses say when, and how.

    A method of pruning is a subclass that answers two questions: `is_due`, is
    it time after this epoch, and `plan`, which channels stay. All the rest is
    here: the checks before the first step, the surgery, the records, the batch
    that grows, the history, TensorBoard, and that the model is an ordinary one
    once `fit` has ended.

    Example:

    ```python
    class Halfway(ReconfiguringCallback):
        def is_due(self, epoch):
            return epoch + 1 == self.params["epochs"] // 2
    ```

    Args:
        threshold: Float, at least 0. A channel is dead if no weight gives it a
            score of `threshold` or more.
        batch: A `DynamicBatch`, whose data set `fit` trains on: it grows after
            each reconfiguration. Defaults to `None`, a fixed batch size.
        reconfigure: Dict of further arguments for `reconfigure`:
            `channel_multiple`, `min_channels`, `skip`, `fold`, `score`.
        log_dir: Path of a folder for TensorBoard; see `DensityLog`. Defaults to
            `None`, no logs.

    Attributes:
        reports: List of a `Reconfiguration` for each that took place.
        epoch: Integer, the epoch that is trained or was last; `None` before
            the first one of a `fit`.
        meter: The `EpochMeter` of the `fit`.

    Raises:
        ValueError: If an argument is out of its range; in `fit`, before the
            first step, if the model has no known graph, if a layer or the
            optimizer cannot be rebuilt, if `skip` matches no layer, or if an
            `EarlyStopping(restore_best_weights=True)` or a second callback of
            this kind is among the callbacks.
    """

    def __init__(
        self, threshold=1e-4, batch=None, reconfigure=None, log_dir=None
    ):
        super().__init__()
        check_batch(batch)
        self.threshold = threshold
        self.batch = batch
        self.epoch = None
        self.meter = EpochMeter()
        self._arguments = reconfigure_arguments(threshold, reconfigure)
        self._progress = Progress()
        self._log = None if log_dir is None else DensityLog(log_dir)
        self._fit = None

    @property
    def reports(self):
        return self._progress.reports

    @property
    def skipped_layers(self):
        """Keys of the layers that `skip` names, a tuple; inside of `fit`."""
        return self._fit.skip

    # What a method says.

    def is_due(self, epoch):
        """Whether the model is to be reconfigured after `epoch`, from 0."""
        raise NotImplementedError(
            f"`{type(self).__name__}.is_due(epoch)` must return whether the "
            "model is to be reconfigured after an epoch."
        )

    def plan(self):
        """Returns the `Plan` of a cut of the model as it is now."""
        return make_plan(self.model, self.threshold, **self._plan_arguments())

    def settings(self):
        """Returns the settings of this method, a dict.

        Workers must agree on them, and TensorBoard shows them.
        """
        return {"threshold": self.threshold}

    def check(self):
        """Raises a `ValueError` if this `fit` cannot work; changes nothing."""

    def begin(self, numbering):
        """Prepares the model; the checks are over, the first step comes next.

        Args:
            numbering: The `Numbering` of the model.
        """
        del numbering

    def forget(self):
        """Forgets what belongs to the model that was trained before."""
        self._progress = Progress()

    def at_end(self, function, *arguments):
        """Has `function(*arguments)` called at the end of this `fit`.

        The last one first.
        """
        self._fit.undo.callback(function, *arguments)

    def penalty_share(self, loss):
        """Returns the share of this method's penalty in the loss, a fraction.

        Args:
            loss: Float. Mean loss of the epoch, all penalties included.
        """
        del loss
        return 0.0

    # What `fit` tells.

    def set_model(self, model):
        if self.model is not None and self.model is not model:
            self.forget()
        super().set_model(model)
        self._fit = _Fit(self, keras_internals.sibling_callbacks(), self._log)
        self._fit.parts.set_model(model)
        self._fit.log.set_model(model)

    def set_params(self, params):
        super().set_params(params)
        self._fit.parts.set_params(params)
        self._fit.log.set_params(params)

    def on_train_begin(self, logs=None):
        numbering = self._checked()
        self._fit.parts.on_train_begin()
        self._fit.log.on_train_begin()
        self.epoch = None
        self._progress.begin_fit(numbering.size)
        # Of a `fit` that broke off.
        keras_internals.restore_learning_rate(self.model.optimizer)
        self.at_end(keras_internals.renew_steps, self.model)
        self.at_end(keras_internals.restore_learning_rate, self.model.optimizer)
        if self._fit.growing is not None:
            self._fit.growing.scale_learning_rate()
        self.begin(numbering)

    def _checked(self):
        """Checks all that can be checked; returns the model's `Numbering`."""
        self._meet_siblings()
        prepare_strategy(self.model)
        self.check()
        numbering = number_channels(self.model)
        # As keys: a reconfigured model has other layer objects.
        skip = self._arguments.get("skip", ())
        self._fit.skip = tuple(matching_layers(numbering, skip))
        check_reconfigurable(self.model, self._fit.skip)
        check_agreement(self.model, self._description())
        return numbering

    def _meet_siblings(self):
        """Checks the other callbacks; lets each `DensityLog` log this one."""
        siblings = self._fit.siblings
        name = type(self).__name__
        for other in siblings:
            if isinstance(other, ReconfiguringCallback) and other is not self:
                raise ValueError(
                    "There are two callbacks that make the model smaller "
                    "among those of one `fit`, and each would cut the other's "
                    "channels. Pass one of them. Received: "
                    f"{name}, {type(other).__name__}"
                )
        check_siblings(siblings)
        logs = [x for x in siblings if isinstance(x, DensityLog)]
        for log in logs:
            if siblings.index(log) < siblings.index(self):
                raise ValueError(
                    f"DensityLog stands in front of the {name} whose figures "
                    "it logs. Put it behind in the list of callbacks, or use "
                    f"`{name}(log_dir=...)`."
                )
        for log in (*logs, *self._fit.log.callbacks):
            log.follow(self)

    def _plan_arguments(self):
        return {**self._arguments, "skip": self.skipped_layers}

    def _description(self):
        """Says all that decides when this callback does what."""
        optimizer = self.model.optimizer
        facts = {
            **self.settings(),
            "reconfigure": self._plan_arguments(),
            "batch": self.batch,
            "epochs": self.params["epochs"],
            "steps": self.params["steps"],
            # It takes part in an exchange of its own.
            "log_dir given": self._log is not None,
            "optimizer": type(optimizer).__name__,
            "learning_rate": keras_internals.shown_rate(optimizer),
            "weights": [tuple(w.shape) for w in self.model.weights],
        }
        return ", ".join(f"{name}={value}" for name, value in facts.items())

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self._fit.parts.on_epoch_begin(epoch)
        self._fit.log.on_epoch_begin(epoch)

    def on_train_batch_begin(self, batch, logs=None):
        self._fit.parts.on_train_batch_begin(batch)
        self._fit.log.on_train_batch_begin(batch)

    def on_train_batch_end(self, batch, logs=None):
        self._fit.parts.on_train_batch_end(batch)
        self._progress.end_step(self.meter.step_seconds)
        self._fit.log.on_train_batch_end(batch)

    def on_test_begin(self, logs=None):
        self._fit.parts.on_test_begin()
        average_statistics(self.model)
        self._fit.log.on_test_begin()

    def on_test_end(self, logs=None):
        self._fit.parts.on_test_end()
        self._fit.log.on_test_end()

    def on_epoch_end(self, epoch, logs=None):
        self._progress.end_epoch(self.meter.seconds)
        self._fit.parts.on_epoch_end(epoch)
        average_statistics(self.model)
        # Of the model that the epoch was trained with.
        trained = self._epoch_logs()
        if self.is_due(epoch):
            self.reconfigure(logs)
        if logs is not None:
            logs["density"] = self._progress.density
            logs.update(trained)
        self._fit.log.on_epoch_end(epoch, logs)

    def on_train_end(self, logs=None):
        # The last reconfiguration may have come after the last epoch.
        densities = self.model.history.history.get("density")
        if densities:
            densities[-1] = self._progress.density
        self._fit.undo.close()
        self._fit.log.on_train_end()

    # What this callback does.

    def reconfigure(self, logs):
        """Makes the model smaller now, at the end of an epoch, if it can be.

        Args:
            logs: Dict with the mean `loss` of the epoch, or `None`.
        """
        started = time.perf_counter()
        loss = (logs or {}).get("loss", 0.0)
        if not (math.isfinite(loss) and all_finite(self.model)):
            _LOG.warning(
                "No reconfiguration after epoch %d: the loss (%s) or a weight "
                "of '%s' is not finite.",
                self.epoch,
                loss,
                self.model.name,
            )
            return
        report = self._cut(loss)
        if report is None:
            return
        # Layers and graph refer to each other: without this the old weights
        # would stay in memory until Python happens to look for cycles. Nothing
        # here may hold them any more.
        gc.collect()
        self._progress.add(report)
        report.seconds = time.perf_counter() - started
        _LOG.info("%s", report)

    def _cut(self, loss):
        """Makes the model smaller; returns the report, `None` if it is not."""
        plan = self.plan()
        if plan.removes_nothing:
            return None
        smaller = carry_out(self.model, plan)
        report = record_of(
            plan,
            epoch=self.epoch,
            batch_size=self.batch.size if self.batch else self.meter.batch_size,
            learning_rate=self._trained_rate(),
            penalty_ratio=self.penalty_share(loss),
        )
        report.cost_before = totals(self.meter.current_cost())
        take_over(self.model, smaller)
        report.cost_after = totals(self.meter.current_cost())
        self._progress.size = int(plan.alive.sum())
        if self._fit.growing is not None:
            report.batch_size_after = self._fit.growing.grow()
        return report

    def _trained_rate(self):
        """Returns the learning rate of the last step; `None` if several."""
        rate = self.meter.learning_rate
        if rate is None or self.batch is None:
            return rate
        return rate * self.batch.learning_rate_ratio

    def _epoch_logs(self):
        """Returns what the history says of the epoch, a dict."""
        logs = {"training_flops": self.meter.training_flops}
        replicas = replica_count(self.model)
        if self.batch is not None:
            cost = self.meter.current_cost()
            fixed, per_example = iteration_bytes(self.model, cost=cost)
            examples = self.batch.size // replicas
            logs["batch_size"] = self.batch.size
            logs["memory_bytes"] = fixed + examples * per_example
            rate = self._trained_rate()
            if rate is not None:
                logs["learning_rate"] = rate
        if replicas > 1:
            sent = communication_bytes(gradient_bytes(self.model), replicas)
            steps = self.params.get("steps") or math.nan
            logs["communication_bytes"] = sent * steps
        return logs


class _Fit:
    """One `fit` of a `ReconfiguringCallback`.

    Attributes:
        siblings: List of all callbacks of this `fit`.
        growing: A `GrowingBatch`, `None` where the batch size is fixed.
        parts: `CallbackList` of those that act before the callback itself.
        log: `CallbackList` of the `DensityLog` that acts after it, or empty.
        skip: Keys of the layers that are left alone.
        undo: `contextlib.ExitStack` of what the end of the `fit` undoes.
    """

    def __init__(self, callback, siblings, log):
        self.siblings = siblings
        self.growing = None
        if callback.batch is not None:
            self.growing = GrowingBatch(
                callback.batch, callback.meter, siblings
            )
        self.parts = keras.callbacks.CallbackList(
            [callback.meter, *([self.growing] if self.growing else [])]
        )
        self.log = keras.callbacks.CallbackList([] if log is None else [log])
        self.skip = ()
        self.undo = contextlib.ExitStack()
