"""TensorBoard shows which channels left, when, and what that saved."""

import contextlib
import logging
import os
import weakref
from typing import Any

import keras

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.channels.scores import scores_of_layers
from keras_prunetrain.checks import is_number
from keras_prunetrain.distribution import is_first_worker
from keras_prunetrain.fit.dense import DenseTraining, check_training
from keras_prunetrain.tensorboard import curves, dashboard, hparams
from keras_prunetrain.tensorboard.event_writer import (
    EventWriter,
    check_installed,
    curve_values,
    write_errors,
)
from keras_prunetrain.tensorboard.logged_run import LoggedRun
from keras_prunetrain.trainers import optimizer_of

_LOG = logging.getLogger("keras_prunetrain")


class DensityLog(keras.callbacks.Callback):
    """Lets TensorBoard show how a model shrinks and what that saves.

    One step is an epoch, from 0, counted on over every `fit` with this
    callback. The *Custom Scalars* tab shows the cost of the training, then the
    channels of each layer; layers with outputs of the same size share a chart.
    (The curve `reference/zero` lets the axes begin at 0.) The other tabs:

    * *Scalars*: density of the model, FLOPs, parameters, bytes, batch size,
      learning rate, share of the lasso, seconds;
    * *Images*: a heat map of layers and epochs (needs matplotlib), new after
      each reconfiguration and at the end;
    * *Histograms*: the largest weight magnitude of each channel of each layer,
      or its value of the user's `score`, divided by the threshold, as a decimal
      logarithm: a channel below 0 is dead;
    * *Text*: each reconfiguration, and why channels stayed; when
      `EarlyCroPCallback` prunes, and why then;
    * *HParams*: the settings and the final figures (`final/`).

    Only metrics that are a single number have a curve. A log that can no longer
    be written (a full disk, a deleted folder) ends with a warning, and the
    training goes on.

    The callback also works in a training without pruning, so that two runs can
    be compared: give each run its own folder, and TensorBoard the folder around
    both. It needs the package tensorboard.

    Example:

    ```python
    model.fit(
        images,
        labels,
        epochs=90,
        callbacks=[PruneTrainCallback(), DensityLog("logs/shrinking")],
    )
    ```

    Args:
        log_dir: Path of a local folder for the event files of one run. A run is
            continued by the next `fit` with the same callback, or, in a new
            process, by one with the same model and `initial_epoch`; an epoch
            that is trained once more is not logged again.
        threshold: Float above 0. Divisor of the histograms if no pruning
            callback gives a positive threshold. Defaults to `1e-4`.

    Raises:
        ValueError: If `threshold` is no number above 0, or `log_dir` no path;
            in `fit`, before the first step, if `log_dir` cannot be written or
            holds another run, if no graph is known, if a callback that prunes
            stands behind this one, or if tensorboard is not installed.

    Reference:
        - [Lym et al., 2019](https://arxiv.org/abs/1901.09290), figure 12.
    """

    def __init__(self, log_dir: str | os.PathLike, threshold: float = 1e-4):
        super().__init__()
        if not is_number(threshold) or not threshold > 0:
            raise ValueError(
                "`threshold` must be a number above 0: the histograms are "
                f"relative to it. Received: threshold={threshold!r}"
            )
        self._threshold = float(threshold)
        self._run = LoggedRun(log_dir)
        self._trained = None
        self._writer = None

    def follow(self, pruning: keras.callbacks.Callback) -> None:
        """Logs what a `ReconfiguringCallback` does in the next `fit`.

        To be called by `pruning` when `fit` begins, before its hooks are called
        here.

        Raises:
            ValueError: If `pruning` is none, or its `fit` has not begun.
        """
        check_training(pruning)
        self._training = pruning
        self._measures = keras.callbacks.Callback()  # `pruning` does.

    def note(self, text: str) -> None:
        """Shows `text` beside the reconfigurations of the current epoch."""
        self._notes.append(text)

    def set_model(self, model):
        super().set_model(model)
        self._notes = []
        self._training = DenseTraining(model)  # Unless one says `follow`.
        self._measures = self._training.meter
        self._measures.set_model(model)

    def set_params(self, params):
        super().set_params(params)
        self._measures.set_params(params)

    def get_state(self) -> dict[str, Any]:
        """Returns what the folder's own record does not have, for a backup."""
        return {
            "reports": self._reports,
            "awaits_first_step": self._last_report is not None,
            "heat_map_step": self._heat_map_step,
            "last_logs": self._last_logs,
            "notes": self._notes,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on where `get_state` was called; after `on_train_begin`."""
        self._reports = state["reports"]
        self._heat_map_step = state["heat_map_step"]
        self._last_logs = state["last_logs"]
        self._notes = list(state["notes"])
        if state["awaits_first_step"]:
            self._last_report = self._training.reports[-1]

    # The life of a run.

    def on_train_begin(self, logs=None):
        self._measures.on_train_begin()
        self._acts = is_first_worker(self.model)
        if not self._acts:
            return
        check_installed()
        if self._trained is not None and self._trained() is not self.model:
            self._run = LoggedRun(self._run.folder)  # That was another one.
            self._writer = None
        self._trained = weakref.ref(self.model)
        self._reports = len(self._training.reports)
        self._last_report = self._heat_map_step = self._offset = None
        self._last_logs = None  # Until an epoch is logged.
        self._first_rate = keras_internals.shown_rate(optimizer_of(self.model))
        # Of all layers: the first epoch may remove some.
        self._stages = dashboard.stages(self._look_at_model())
        cost = self._training.meter.current_cost()
        self._run.begin(self._size, self._counts, curves.dense_flops(cost))

    def _look_at_model(self):
        """Returns the `Numbering` of the model, and notes its channels.

        Keeps no layer or weight: they are to be freed when the model shrinks.
        """
        numbering = number_channels(self._training.network)
        counts = {
            name: len(label.numbers)
            for name, label in numbering.computed().items()
        }
        self._counts = counts
        self._size = numbering.size
        self._parameters = self._training.network.count_params()
        return numbering

    def on_epoch_begin(self, epoch, logs=None):
        if self._acts and self._offset is None:
            self._offset = self._run.offset(epoch, self._counts)
            with self._unless_it_fails():
                self._open()
        self._measures.on_epoch_begin(epoch)

    def _open(self):
        if self._writer is None:
            self._writer = EventWriter(self._run.folder)

    def on_train_batch_begin(self, batch, logs=None):
        self._measures.on_train_batch_begin(batch)

    def on_train_batch_end(self, batch, logs=None):
        # On all workers: they count together.
        self._measures.on_train_batch_end(batch)

    def on_test_begin(self, logs=None):
        self._measures.on_test_begin()

    def on_test_end(self, logs=None):
        self._measures.on_test_end()

    def on_epoch_end(self, epoch, logs=None):
        self._measures.on_epoch_end(epoch)
        if not self._acts:
            return
        numbering = self._look_at_model()
        news = self._news()
        step = epoch + self._offset
        if step < len(self._run.densities):
            _LOG.info(
                "Epoch %d is in the log of '%s' already.",
                epoch + 1,
                self._run.folder,
            )
            return  # Trained once more, from a backup.
        self._last_logs = curve_values(logs or {})
        with self._unless_it_fails():
            self._write_epoch(step, numbering, news)

    def _write_epoch(self, step, numbering, news):
        self._run.note(self._counts)
        with self._writer.at(step):
            if step == 0:
                self._write_settings()
            self._write_scalars(self._last_logs)
            self._write_histograms(numbering)
            self._write_news(*news)
        self._run.save()

    def _write_histograms(self, numbering):
        options = self._training.options
        try:
            scores = scores_of_layers(numbering, options.score)
        except ValueError:  # Of weights that are not finite.
            return
        threshold = options.threshold or self._threshold
        self._writer.histograms(scores, options.score, threshold)

    @contextlib.contextmanager
    def _unless_it_fails(self):
        """Ends the log, but not the training, if a file cannot be written."""
        try:
            yield
        except write_errors() as error:
            _LOG.warning(
                "DensityLog cannot write into '%s' any more, and the training "
                "goes on without it. Free some space, or make the folder "
                "writable, and log the next `fit` into another folder. The "
                "system says: %s",
                self._run.folder,
                error,
            )
            self._acts = False
            # The next `fit` looks at the folder anew.
            self._run, self._writer = LoggedRun(self._run.folder), None

    def on_train_end(self, logs=None):
        if not self._acts or self._last_logs is None:
            return
        with self._unless_it_fails():
            self._write_end()

    def _write_end(self):
        """Writes what is only known at the end: heat map and final figures."""
        self._open()  # A `fit` that goes on behind its last epoch has none.
        numbering = self._look_at_model()
        self._run.note(self._counts, again=True)
        steps = len(self._run.densities)
        with self._writer.at(steps - 1):
            # Of a `fit` that was stopped early.
            self._write_news(*self._news())
            if self._heat_map_step != steps:
                self._write_heat_map()
            final = {
                **self._last_logs,
                "density": numbering.size / self._run.channels,
                "parameters": self._parameters,
            }
            self._writer.values({f"final/{k}": v for k, v in final.items()})
        self._run.save()

    def _news(self):
        """Returns the reports and the notes since it was called last."""
        reports = self._training.reports[self._reports :]
        self._reports += len(reports)
        notes, self._notes = self._notes, []
        return reports, notes

    def _write_settings(self):
        kept = curves.kept_points(self.model)
        self._writer.layout(self._stages, self._last_logs, kept)
        settings = hparams.settings_of(self._training, self.model) | {
            "optimizer": type(self.model.optimizer).__name__,
            "learning_rate": self._first_rate,
            "epochs": self.params.get("epochs"),
        }
        tags = hparams.result_tags(self._last_logs)
        run = hparams.name_of_run(self._run.folder)
        self._writer.settings(settings, tags, run)

    def _write_scalars(self, logs):
        """Writes a point of each curve; what is not known has no point."""
        rate = keras_internals.shown_rate(optimizer_of(self.model))
        points = {
            **curves.channel_points(self._run, self._size),
            **curves.training_points(self._run, self._training, rate, logs),
            "cost/parameters": self._parameters,
        }
        self._writer.values(points)

    def _write_news(self, reports, notes):
        """Writes the reconfigurations after this epoch, and a new heat map."""
        # The first step after a reconfiguration is one of the next epoch.
        last, self._last_report = self._last_report, None
        if last is not None and last.first_step_seconds:
            seconds = last.first_step_seconds
            self._writer.values({"time/first_step_seconds": seconds})
        for report in reports:
            self._writer.reconfiguration(report)
            self._last_report = report
        self._writer.notes(notes)
        if reports:
            self._write_heat_map()

    def _write_heat_map(self):
        self._writer.heat_map(self._run.densities, self._run.layers)
        self._heat_map_step = len(self._run.densities)
