"""TensorBoard shows where the channels went, when, and what it saved."""

import contextlib
import json
import logging
import math
import pathlib
import time

import keras
import numpy as np

from keras_prunetrain import keras_internals
from keras_prunetrain.callbacks import dashboard
from keras_prunetrain.callbacks.record import (
    ReconfiguringCallback,
    learning_rate,
    penalty_share,
)
from keras_prunetrain.channels.liveness import slice_magnitudes
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.cost import known_cost
from keras_prunetrain.distribution import is_first_worker

_LOG = logging.getLogger("keras_prunetrain")
_RECORD = "density_log.json"
_SMALLEST = 1e-12  # Of which a logarithm is shown.
# Columns of *HParams*, the same in all runs: TensorBoard takes those of one.
_SETTINGS = (
    *("method", "penalty_ratio", "interval", "threshold", "finetune_epochs"),
    *("optimizer", "learning_rate", "epochs"),
)


class DensityLog(keras.callbacks.Callback):
    """Lets TensorBoard show how a model shrinks and what that saves.

    One step is an epoch, from 0, counted on over every `fit` with this
    callback. The *Custom Scalars* tab has all of it in order: what training
    costs, and the channels of each layer, by the size of what the layers
    compute. (Their curve `reference/zero` is there for the axes to begin at 0.)
    Besides:

    * *Scalars*: density of the model, FLOPs, parameters, bytes, batch size,
      learning rate, share of the lasso, seconds;
    * *Images*: a heat map of layers and epochs (needs matplotlib), new after
      each reconfiguration and at the end;
    * *Histograms*: the largest magnitude in each channel of each layer, as a
      decimal logarithm: what lies below that of the threshold is dead;
    * *Text*: each reconfiguration, with what held the channels that stayed;
    * *HParams*: the settings, beside the last figures (`final/`).

    Works in a dense training too, so that two runs can be compared: give each a
    folder of its own, and TensorBoard the folder that holds both. Needs
    tensorboard.

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

    Raises:
        ValueError: In `fit`, before the first step, if `log_dir` cannot be
            written or holds another run, if the model has no known graph, or if
            a `PruneTrainCallback` stands behind this callback.

    Reference:
        - [Lym et al., 2019](https://arxiv.org/abs/1901.09290), figure 12.
    """

    def __init__(self, log_dir):
        super().__init__()
        if "://" in str(log_dir):
            raise ValueError(
                "`log_dir` must be a folder of this machine. Received: "
                f"log_dir={str(log_dir)!r}"
            )
        self._folder = pathlib.Path(log_dir).expanduser()
        self._followed = None
        self._run = None
        self._writer = None
        self._seconds = 0.0
        self._started = None
        self._said_no_heat_map = False

    def follow(self, pruning):
        """Logs the `reports` of `pruning`, which calls these hooks itself."""
        self._followed = pruning

    def set_model(self, model):
        super().set_model(model)
        self._siblings = keras_internals.sibling_callbacks()

    # The life of a run.

    def on_train_begin(self, logs=None):
        self._acts = is_first_worker(self.model)
        self._started = None
        if not self._acts:
            return
        self._pruning = self._followed or self._callback_in_front()
        self._reports = len(self._pruning.reports) if self._pruning else 0
        self._last_report = None
        self._last_logs = None  # Until this `fit` has logged an epoch.
        self._heat_map_step = None
        self._offset = None
        self._resumes = False
        numbering = self._look_at_model()
        if self._run is None:
            self._run = self._known_run()
            self._resumes = self._run is not None
        if self._run is None:
            self._run = {
                "layers": self._counts,
                "channels": numbering.size,
                "training_flops": self._cost and self._cost.training_flops,
                "densities": [],
            }

    def _callback_in_front(self):
        siblings = self._siblings
        place = siblings.index(self) if self in siblings else len(siblings)
        found = None
        for i, callback in enumerate(siblings):
            if isinstance(callback, ReconfiguringCallback):
                found = callback
                if i > place:
                    raise ValueError(
                        "DensityLog stands in front of the "
                        f"{type(callback).__name__} whose figures it logs. Put "
                        "it behind in the list of callbacks, or use "
                        "`PruneTrainCallback(log_dir=...)`."
                    )
        return found

    def _look_at_model(self):
        """Returns the `Numbering` of the model, and notes what it costs.

        Keeps no layer or weight: they are to be freed when the model shrinks.
        """
        numbering = number_channels(self.model)
        counts = {
            label.layer: len(label.numbers) for label in _kernels(numbering)
        }
        if counts != getattr(self, "_counts", None):
            self._cost = known_cost(self.model)
        self._counts = counts
        self._size = numbering.size
        self._parameters = self.model.count_params()
        return numbering

    def _known_run(self):
        """Returns what is known of the run in the folder, `None` if nothing."""
        record = self._folder / _RECORD
        scratch = record.with_suffix(".new")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            scratch.touch()
            scratch.unlink()
            text = record.read_text()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ValueError(
                f"DensityLog cannot write into '{self._folder}': {error}. Give "
                "it a folder that may be written."
            ) from error
        try:
            run = json.loads(text)
            widths = {len(row) for row in run["densities"]}
            if widths != {len(run["layers"])} or "channels" not in run:
                raise ValueError
        except (ValueError, LookupError, TypeError):
            self._refuse_folder("its record cannot be read")
        return run

    def _refuse_folder(self, reason):
        raise ValueError(
            f"The folder '{self._folder}' holds the log of another run: "
            f"{reason}. Give each run a folder of its own, or delete this one. "
            "To continue a run, load its model and pass `initial_epoch` to "
            "`fit`."
        )

    def _begin(self, epoch):
        """Finds the step of the first epoch, and opens the file."""
        import tensorflow as tf

        done = len(self._run["densities"])
        if self._resumes and not 0 < epoch <= done:
            self._refuse_folder(
                f"it has {done} epochs, and this `fit` begins with epoch "
                f"{epoch}"
            )
        # A checkpoint may have been written before the epoch's surgery.
        self._check_model(epoch - 2 if self._resumes else done - 1)
        # A second `fit` begins to count anew, a continued one does not.
        self._offset = 0 if self._resumes or epoch >= done else done - epoch
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self._folder))

    def _check_model(self, step):
        """Raises an error if the model has more channels than after `step`."""
        first = self._run["layers"]
        densities = [1.0] * len(first)
        if step >= 0:
            densities = self._run["densities"][step]
        limits = {
            layer: round(density * count)
            for (layer, count), density in zip(
                first.items(), densities, strict=True
            )
        }
        if any(n > limits.get(layer, 0) for layer, n in self._counts.items()):
            self._refuse_folder("its model has other layers or fewer channels")

    def on_epoch_begin(self, epoch, logs=None):
        if self._acts and self._offset is None:
            self._begin(epoch)
        self._seconds = 0.0
        self._examples = None
        self._started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        # On all workers: they count together. Whoever calls `evaluate` later
        # begins to count anew.
        steps = self.params.get("steps")
        if steps is None or batch + 1 >= steps:
            self._examples = keras_internals.example_count(
                self.model, steps or batch + 1
            )

    def on_test_begin(self, logs=None):
        self._stop_clock()

    def on_test_end(self, logs=None):
        self._started = time.perf_counter()

    def _stop_clock(self):
        if self._started is not None:  # Else it is no validation of a `fit`.
            self._seconds += time.perf_counter() - self._started
            self._started = None

    def on_epoch_end(self, epoch, logs=None):
        self._stop_clock()
        if not self._acts:
            return
        trained = self._cost
        numbering = self._look_at_model()
        reports = self._new_reports()
        step = epoch + self._offset
        if step < len(self._run["densities"]):
            return  # Trained once more, from a backup.
        self._last_logs = dict(logs or {})
        with self._at(step):
            if step == 0:
                self._write_layout(numbering)
                self._write_settings()
            self._run["densities"].append(self._densities())
            self._write_scalars(self._last_logs, trained)
            self._write_channels(numbering)
            self._write_reports(reports)
        self._save()

    def on_train_end(self, logs=None):
        self._started = None
        if not self._acts or self._last_logs is None:
            return
        numbering = self._look_at_model()
        self._run["densities"][-1] = self._densities()
        steps = len(self._run["densities"])
        with self._at(steps - 1):
            # Of a `fit` that was stopped early.
            self._write_reports(self._new_reports())
            if self._heat_map_step != steps:
                self._write_heat_map()
            final = {
                **self._last_logs,
                "density": numbering.size / self._run["channels"],
                "parameters": self._parameters,
            }
            self._write_values({f"final/{k}": v for k, v in final.items()})
        self._save()

    def _densities(self):
        return [
            self._counts.get(layer, 0) / count
            for layer, count in self._run["layers"].items()
        ]

    def _new_reports(self):
        if self._pruning is None:
            return []
        new = self._pruning.reports[self._reports :]
        self._reports += len(new)
        return new

    def _save(self):
        self._writer.flush()
        path = self._folder / _RECORD
        scratch = path.with_suffix(".new")
        scratch.write_text(json.dumps(self._run))
        scratch.replace(path)

    # What is written.

    @contextlib.contextmanager
    def _at(self, step):
        """Lets what is written belong to `step`."""
        import tensorflow as tf

        # Keras's own TensorBoard callback leaves another condition behind.
        with self._writer.as_default(step), tf.summary.record_if(True):
            yield

    def _write_layout(self, numbering):
        import tensorflow as tf
        from tensorboard.plugins.custom_scalar import summary

        layout = summary.pb(dashboard.layout(dashboard.stages(numbering)))
        tf.summary.experimental.write_raw_pb(layout.SerializeToString())

    def _write_settings(self):
        """Writes the settings, and which curves are results beside them."""
        from tensorboard.plugins.hparams import api

        settings = {
            name: getattr(self._pruning, name, None) for name in _SETTINGS
        } | {
            "method": type(self._pruning).__name__
            if self._pruning
            else "dense",
            "optimizer": type(self.model.optimizer).__name__,
            "learning_rate": learning_rate(self.model.optimizer),
            "epochs": self.params.get("epochs"),
        }
        results = sorted(
            self._last_logs, key=lambda name: not name.startswith("val_")
        )
        tags = [
            *(f"final/{name}" for name in results[:1]),
            *("cost/relative_training_flops", "final/density"),
            *("final/parameters", "time/epoch_seconds"),
            *(f"final/{name}" for name in results[1:] if name != "density"),
        ]
        # Runs of the same settings, but another seed, are rows of their own.
        api.hparams(
            {k: v for k, v in settings.items() if v is not None},
            trial_id=str(self._folder.resolve()),
        )
        api.hparams_config(
            hparams=[api.HParam(name) for name in _SETTINGS],
            metrics=[api.Metric(tag) for tag in tags],
        )

    def _write_scalars(self, logs, trained):
        values = {
            dashboard.ZERO: 0.0,
            "density/model": self._size / self._run["channels"],
            "cost/parameters": self._parameters,
            "time/epoch_seconds": self._seconds,
            "training/batch_size": logs.get("batch_size", self._batch_size()),
            "training/learning_rate": logs.get(
                "learning_rate", learning_rate(self.model.optimizer)
            ),
            "training/penalty_ratio": penalty_share(
                self.model, logs.get("loss", 0.0)
            ),
            "memory/training_bytes": logs.get("memory_bytes"),
            "communication/bytes": logs.get("communication_bytes"),
        }
        if trained is not None:
            dense = self._run["training_flops"]
            values |= {
                "cost/training_flops": self._examples
                and trained.training_flops * self._examples,
                "cost/relative_training_flops": trained.training_flops / dense,
                "memory/activation_bytes_per_example": trained.activation_bytes,
            }
        self._write_values(values)

    def _batch_size(self):
        """Returns the batch size of data that has one, `None` if unknown."""
        steps = self.params.get("steps")
        return steps and self._examples and -(-self._examples // steps)

    def _write_channels(self, numbering):
        import tensorflow as tf

        self._write_values(
            {
                f"channels/{layer}": density
                for layer, density in zip(
                    self._run["layers"], self._densities(), strict=True
                )
            }
        )
        for label in _kernels(numbering):
            magnitudes = np.maximum(slice_magnitudes(label), _SMALLEST)
            tf.summary.histogram(
                f"magnitudes/{label.layer}",
                np.log10(magnitudes),
                description=self._describe_magnitudes(),
            )

    def _describe_magnitudes(self):
        text = "Decimal logarithm of the largest |w| in each channel."
        threshold = getattr(self._pruning, "threshold", 0.0)
        if threshold:
            text += f" Below {np.log10(threshold):.1f} a channel is dead."
        return text

    def _write_reports(self, reports):
        import tensorflow as tf

        # The first step after a reconfiguration is one of the next epoch.
        last, self._last_report = self._last_report, None
        if last is not None and last.first_step_seconds:
            self._write_values(
                {"time/first_step_seconds": last.first_step_seconds}
            )
        for report in reports:
            tf.summary.text("reconfigurations", _markdown(report))
            self._write_values({"time/reconfiguration_seconds": report.seconds})
            self._last_report = report
        if reports:
            self._write_heat_map()

    def _write_heat_map(self):
        import tensorflow as tf

        try:
            picture = dashboard.heat_map(
                self._run["densities"], list(self._run["layers"])
            )
        except ImportError:
            if not self._said_no_heat_map:
                self._said_no_heat_map = True
                _LOG.warning(
                    "No heat map in TensorBoard: it needs matplotlib. "
                    "pip install matplotlib"
                )
            return
        tf.summary.image("channels_of_layers", picture[None])
        self._heat_map_step = len(self._run["densities"])

    def _write_values(self, values):
        import tensorflow as tf

        for tag, value in values.items():
            if value is not None and not math.isnan(value):
                tf.summary.scalar(tag, float(value))


def _kernels(numbering):
    """Returns the labels of what each layer with a kernel computes."""
    return [
        label
        for label in numbering.labels
        if label.is_kernel and label.side == "out"
    ]


def _markdown(report):
    """Returns a `Reconfiguration` as a Markdown table."""
    lines = [
        str(report),
        "",
        "| layer | channels before | after | held by |",
        "| --- | ---: | ---: | --- |",
    ]
    for layer, before in report.channels_before.items():
        held = ", ".join(report.held.get(layer, []))
        after = report.channels_after.get(layer, 0)
        lines.append(f"| {layer} | {before} | {after} | {held} |")
    return "\n".join(lines)
