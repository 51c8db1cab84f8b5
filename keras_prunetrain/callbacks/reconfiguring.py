"""The base of every callback that makes the model smaller while it trains."""

import abc
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras

from keras_prunetrain import keras_internals
from keras_prunetrain.batching import DynamicBatch
from keras_prunetrain.callbacks.density_log import DensityLog
from keras_prunetrain.channels.labels import Numbering
from keras_prunetrain.channels.liveness import Plan, plan_cut
from keras_prunetrain.channels.options import CutOptions
from keras_prunetrain.distribution import average_statistics
from keras_prunetrain.fit import arguments
from keras_prunetrain.fit.admission import admit
from keras_prunetrain.fit.epoch_logs import (
    EpochLogs,
    cannot_be_cut,
    loss_in,
    values_of_epoch,
)
from keras_prunetrain.fit.meter import EpochMeter
from keras_prunetrain.fit.progress import Progress
from keras_prunetrain.fit.record import Reconfiguration, record_of, totals
from keras_prunetrain.fit.running_fit import RunningFit
from keras_prunetrain.fit.siblings import (
    check_outer_fits,
    check_siblings,
    logs_behind,
)
from keras_prunetrain.surgery.reconfigure import prepare_cut
from keras_prunetrain.surgery.redoing import record_of_cut
from keras_prunetrain.surgery.takeover import free_replaced, take_over
from keras_prunetrain.trainers import Submodels, names_of

_LOG = logging.getLogger("keras_prunetrain")


class ReconfiguringCallback(keras.callbacks.Callback, abc.ABC):
    """Makes the model smaller while it trains; subclasses say when, and how.

    A method of pruning is a subclass with two methods: `is_due` says whether
    the model is cut after this epoch, and `plan` says which channels stay. This
    class does everything else: the checks before the first step, the surgery,
    the records, the growing batch, the history, TensorBoard and the cleanup.
    A hook of Keras that a subclass defines must call that of this class.

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
        log_dir: Path of a folder for TensorBoard (`DensityLog`), or `None`.
        submodels: Names of attributes of a model that holds functional models
            and trains them in its own `train_step`: only those in these
            attributes become smaller. Defaults to `None`, all that train.

    Attributes:
        network: The functional model whose channels may go: that of `fit`, or
            one in which the models that it holds stand side by side.
        reports: List of a `Reconfiguration` for each that took place.
        epoch: Integer, the epoch that is trained or was last; `None` before
            the first one of a `fit`.
        meter: The `EpochMeter` of the `fit`.
        cuts: List of a record of each cut of this `fit`. A further process
            makes the cuts again before it begins.

    Raises:
        ValueError: If an argument is out of its range; in `fit`, before the
            first step, if the model, its optimizer, its strategy or the
            callbacks beside this one do not allow it. `docs/limits.md` has the
            list.
    """

    def __init__(
        self,
        threshold: float = 1e-4,
        batch: DynamicBatch | None = None,
        reconfigure: dict[str, Any] | None = None,
        log_dir: str | os.PathLike | None = None,
        submodels: Submodels = None,
    ):
        super().__init__()
        self._options = arguments.options_of(threshold, reconfigure)
        arguments.check_batch(batch)
        # As text, a NumPy number differs, and workers compare texts.
        self.threshold = float(threshold)
        self.batch = batch
        self.submodels = names_of(submodels)
        self.epoch = None
        self.meter = EpochMeter()
        self._progress = Progress()
        self._log = None if log_dir is None else DensityLog(log_dir)
        self._epoch_logs = EpochLogs()
        self._fit = None
        self.cuts = []

    @property
    def reports(self) -> list[Reconfiguration]:
        return self._progress.reports

    @property
    def network(self) -> keras.Model:
        return self._fit.network

    @property
    def options(self) -> CutOptions:
        """The `CutOptions`; in a `fit`, `skip` holds the keys of layers."""
        options = self._fit.options or self._options
        return dataclasses.replace(options, threshold=self.threshold)

    # Methods that a subclass defines.

    @abc.abstractmethod
    def is_due(self, epoch: int) -> bool:
        """Whether the model is to be reconfigured after `epoch`, from 0."""

    def plan(self) -> Plan:
        """Returns the `Plan` of a cut of the model as it is now."""
        return plan_cut(self.network, self.options)

    def settings(self) -> dict[str, Any]:
        """Returns the settings of this method; a subclass adds its own.

        Dict from names to numbers, strings, booleans or `None`. Workers must
        agree on the settings, and TensorBoard shows them.
        """
        return {"threshold": self.threshold}

    def check(self) -> None:
        """Raises a `ValueError` if this `fit` cannot work; changes nothing."""

    def begin(self, numbering: Numbering) -> None:
        """Prepares the model, after all checks and before the first step.

        Args:
            numbering: The `Numbering` of the model.
        """
        del numbering

    def after_cut(self, report: Reconfiguration | None) -> None:
        """Goes on behind a cut; `report` is `None` if it removed nothing."""
        del report

    def forget(self) -> None:
        """Drops the state of the model that was trained before."""
        self._progress = Progress()

    def at_end(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Has `function(*arguments)` called as `fit` ends, the last first."""
        self._fit.at_end(function, *arguments)

    def note(self, text: str, level: int = logging.INFO) -> None:
        """Logs `text`, and lets TensorBoard show it at this epoch."""
        self._fit.note(text, level)

    def penalty_share(self, loss: float) -> float:
        """Returns the share of this method's penalty in the loss, a fraction.

        Args:
            loss: Float. Mean loss of the epoch, all penalties included.
        """
        del loss
        return 0.0

    # For `BackupAndRestore`.

    def get_state(self) -> dict[str, Any]:
        """Returns the state from which another process can go on."""
        return {
            "cuts": self.cuts,
            "epoch": self.epoch,
            "progress": self._progress.get_state(),
            "meter": self.meter.get_state(),
            "batch": self.batch and self.batch.get_state(),
            "log": self._log and self._log.get_state(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores the state that `get_state` returned."""
        self.epoch = state["epoch"]
        self._progress.set_state(state["progress"])
        self.meter.set_state(state["meter"])
        if self.batch is not None:
            self.batch.set_state(state["batch"])
            self._fit.growing.begin()
        if self._log is not None:
            self._log.set_state(state["log"])

    # Hooks of Keras.

    def set_model(self, model):
        check_outer_fits(self, model, ReconfiguringCallback)
        if self._fit is not None:
            self._fit.leave()  # No guard may have seen its end.
        if self.model is not None and self.model is not model:
            self.forget()
        super().set_model(model)
        self._fit = RunningFit(self.meter, self.batch, self._log)
        self.cuts = []
        self._fit.set_model(model, self.submodels)

    def set_params(self, params):
        super().set_params(params)
        self._fit.set_params(params)

    def on_train_begin(self, logs=None):
        keras_internals.guard_loop(self._fit.leave)
        numbering = self._admit()
        self._fit.before.on_train_begin()
        self._fit.after.on_train_begin()
        # Nothing has been changed up to here.
        self.epoch = None
        self._progress.begin_fit(numbering.size)
        self._epoch_logs = EpochLogs()
        self.at_end(keras_internals.renew_steps, self.model)
        self._fit.begin_growing()
        self.begin(numbering)

    def _admit(self):
        """Checks all that can be checked; returns the model's `Numbering`."""
        siblings = self._fit.siblings
        check_siblings(self, siblings, ReconfiguringCallback)
        self._fit.logs += logs_behind(self, siblings, DensityLog)
        for log in self._fit.logs:
            log.follow(self)
        self.check()
        settings = arguments.agreed_by(self, self._log)
        numbering, self._fit.options = admit(
            self.model, self.network, self._options, settings, self.params
        )
        return numbering

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self._fit.before.on_epoch_begin(epoch)
        self._fit.after.on_epoch_begin(epoch)

    def on_train_batch_begin(self, batch, logs=None):
        self._fit.before.on_train_batch_begin(batch)
        self._fit.after.on_train_batch_begin(batch)

    def on_train_batch_end(self, batch, logs=None):
        self._epoch_logs.note_metrics(logs or {})
        self._fit.before.on_train_batch_end(batch)
        self._progress.end_step(self.meter.step_seconds)
        self._fit.after.on_train_batch_end(batch)

    def on_test_begin(self, logs=None):
        keras_internals.guard_loop(self._fit.leave)
        self._fit.before.on_test_begin()
        average_statistics(self.model)
        self._fit.after.on_test_begin()

    def on_test_end(self, logs=None):
        self._fit.before.on_test_end()
        self._fit.after.on_test_end()

    def on_epoch_end(self, epoch, logs=None):
        arguments.check_hooks(self, self._fit.options is not None, epoch)
        self._progress.end_epoch(self.meter.seconds)
        self._fit.before.on_epoch_end(epoch)
        average_statistics(self.model)
        values = values_of_epoch(
            self.model, self.meter, self.batch, self.params.get("steps")
        )
        if self.is_due(epoch):
            self.reconfigure(logs)
        values["density"] = self._progress.density
        if logs is not None:
            self._epoch_logs.add(logs, values)
        self._fit.after.on_epoch_end(epoch, logs)

    def on_train_end(self, logs=None):
        # The last reconfiguration may have come after the last epoch.
        self._epoch_logs.correct(
            self.model.history.history, "density", self._progress.density
        )
        self._fit.leave()
        self._fit.after.on_train_end()

    # The reconfiguration.

    def reconfigure(self, logs: Mapping[str, float] | None) -> None:
        """Makes the model smaller now, at the end of an epoch, if it can be.

        Args:
            logs: Dict with the mean `loss` of the epoch, or `None`.
        """
        started = time.perf_counter()
        if cannot_be_cut(self.model, self.epoch, logs):
            return
        report = self._cut(loss_in(logs))
        if report is not None:
            free_replaced()
            self._progress.add(report)
            report.seconds = time.perf_counter() - started
            _LOG.info("%s", report)
        self.after_cut(report)

    def _cut(self, loss):
        """Makes the model smaller; returns the report, `None` if it is not."""
        plan = arguments.planned_by(self)
        if plan.removes_nothing:
            return None
        smaller = prepare_cut(self.network, plan, self.model)
        share = self.penalty_share(loss)
        report = record_of(plan, self.epoch, self.meter, self.batch, share)
        take_over(self.network, smaller)
        self.cuts.append(record_of_cut(plan))
        report.cost_after = totals(self.meter.current_cost())
        self._progress.size = int(plan.alive.sum())
        self._fit.after_cut(report)
        return report
