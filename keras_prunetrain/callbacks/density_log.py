"""TensorBoard shows where the channels went, when, and what it saved."""

import json
import logging
import pathlib
import time

import keras
import numpy as np

from keras_prunetrain import keras_internals
from keras_prunetrain.callbacks import dashboard
from keras_prunetrain.callbacks.record import learning_rate, penalty_share
from keras_prunetrain.channels.liveness import slice_magnitudes
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.cost import known_cost
from keras_prunetrain.distribution import is_first_worker

_LOG = logging.getLogger("keras_prunetrain")
_RECORD = "density_log.json"
_SMALLEST = 1e-12  # Of which a logarithm is shown.
_SETTINGS = ("penalty_ratio", "interval", "threshold", "finetune_epochs")


class DensityLog(keras.callbacks.Callback):
    """Lets TensorBoard show how a model shrinks and what that saves.

    One step is an epoch, counted on over every `fit` with this callback. The
    *Custom Scalars* tab has all of it in order: what training costs, and the
    channels of each layer, by the size of what the layers compute. Besides:

    * *Scalars*: density of the model, FLOPs, parameters, bytes, batch size,
      learning rate, share of the lasso, seconds;
    * *Images*: a heat map of layers and epochs (needs matplotlib), new after
      each reconfiguration and at the end;
    * *Histograms*: the largest magnitude in each channel of each layer, as a
      decimal logarithm: what lies below that of the threshold is dead;
    * *Text*: each reconfiguration, with what held the channels that stayed;
    * *HParams*: the settings, with the last values of all metrics.

    Works in a dense training too, so that two runs can be compared: give each a
    folder of its own, and TensorBoard the folder that holds both.

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
        log_dir: Path of a folder for the event files of one run. A run is
            continued by the next `fit` with the same callback, or, in a new
            process, by one with the same model and `initial_epoch`.

    Raises:
        ValueError: In `fit`, before the first step, if `log_dir` cannot be
            written or holds another run, if the model has no known graph, or if
            a `PruneTrainCallback` stands behind this callback.

    Reference:
        - [Lym et al., 2019](https://arxiv.org/abs/1901.09290), figure 12.
    """

    def __init__(self, log_dir):
        super().__init__()
        self._folder = pathlib.Path(log_dir).expanduser()
        self._pruning = None
        self._run = None
        self._writer = None
        self._started = None

    def follow(self, pruning):
        """Logs the `reports` of `pruning`, which calls these hooks itself."""
        self._pruning = pruning

    def set_model(self, model):
        super().set_model(model)
        self._siblings = keras_internals.sibling_callbacks()

    def on_train_begin(self, logs=None):
        self._acts = is_first_worker(self.model)
        if not self._acts:
            return
        siblings = self._siblings
        place = siblings.index(self) if self in siblings else len(siblings)
        for i, callback in enumerate(siblings):
            if hasattr(callback, "reports"):
                if i > place:
                    raise ValueError(
                        "DensityLog stands in front of the "
                        f"{type(callback).__name__} whose figures it logs. Put "
                        "it behind in the list of callbacks, or use "
                        "`PruneTrainCallback(log_dir=...)`."
                    )
                self._pruning = self._pruning or callback
        self._look_at_model()
        self._reports = len(self._pruning.reports) if self._pruning else 0
        self._last_report = None
        self._heat_map_step = None
        self._epoch = None
        if self._run is None:
            self._run = self._known_run()
            self._resumes = self._run is not None
        if self._run is None:
            self._run = {
                "layers": self._counts(),
                "channels": self._numbering.size,
                "training_flops": self._cost and self._cost.training_flops,
                "densities": [],
            }
        self._offset = None

    def _look_at_model(self):
        """Numbers its channels; again only when there are fewer of them."""
        self._parameters = self.model.count_params()
        self._numbering = number_channels(self.model)
        self._kernels = {
            label.layer: label
            for label in self._numbering.labels
            if label.is_kernel and label.side == "out"
        }
        self._cost = known_cost(self.model)

    def _counts(self):
        return {
            layer: len(label.numbers) for layer, label in self._kernels.items()
        }

    def _known_run(self):
        """Returns what is known of the run in the folder, `None` if nothing."""
        record = self._folder / _RECORD
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            record.with_suffix(".new").touch()
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
            last = run["densities"][-1]
        except (ValueError, LookupError):
            return self._refuse_folder("its record cannot be read")
        left = {
            layer: round(density * count)
            for (layer, count), density in zip(
                run["layers"].items(), last, strict=True
            )
        }
        if {k: n for k, n in left.items() if n} != self._counts():
            return self._refuse_folder("its model has other layers or channels")
        return run

    def _refuse_folder(self, reason):
        raise ValueError(
            f"The folder '{self._folder}' holds the log of another run: "
            f"{reason}. Give each run a folder of its own; to continue a run, "
            "load its model and pass `initial_epoch` to `fit`."
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
        # A second `fit` begins to count anew, a continued one does not.
        self._offset = 0 if self._resumes or epoch >= done else done - epoch
        self._resumes = False
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self._folder))
            if not done:
                self._write_layout()

    def on_epoch_begin(self, epoch, logs=None):
        if self._acts and self._offset is None:
            self._begin(epoch)
        self._seconds = 0.0
        self._examples = None
        self._started = time.perf_counter()

    def on_test_begin(self, logs=None):
        self._stop_clock()

    def on_test_end(self, logs=None):
        self._started = time.perf_counter()

    def _stop_clock(self):
        if self._started is not None:  # Else it is no validation of a `fit`.
            self._seconds += time.perf_counter() - self._started
            self._started = None
            if self._examples is None:  # `evaluate` begins to count anew.
                self._examples = keras_internals.example_count(self.model)

    def on_epoch_end(self, epoch, logs=None):
        # On all workers: they count the examples together.
        self._stop_clock()
        if not self._acts:
            return
        step = epoch + self._offset
        if step < len(self._run["densities"]):
            return  # Trained once more, from a backup.
        trained = self._cost
        new_reports = self._new_reports()
        if self.model.count_params() != self._parameters:
            self._look_at_model()
        self._run["densities"].append(self._densities())
        self._last_logs = dict(logs or {})
        with self._writer.as_default(step):
            if step == 0:
                self._write_settings()
            self._write_scalars(self._last_logs, trained)
            self._write_channels()
            self._write_reports(new_reports)
        self._writer.flush()
        self._save()

    def on_train_end(self, logs=None):
        self._started = None
        steps = len(self._run["densities"]) if self._acts else 0
        if not steps:
            return
        with self._writer.as_default(steps - 1):
            # Of a `fit` that was stopped early.
            self._write_reports(self._new_reports())
            if self._heat_map_step != steps:
                self._write_heat_map()
            self._write_values(
                {f"final/{k}": value for k, value in self._last_logs.items()}
            )
        self._writer.flush()

    def _densities(self):
        counts = self._counts()
        return [
            counts.get(layer, 0) / count
            for layer, count in self._run["layers"].items()
        ]

    def _new_reports(self):
        if self._pruning is None:
            return []
        new = self._pruning.reports[self._reports :]
        self._reports += len(new)
        return new

    def _save(self):
        path = self._folder / _RECORD
        scratch = path.with_suffix(".new")
        scratch.write_text(json.dumps(self._run))
        scratch.replace(path)

    # What is written.

    def _write_layout(self):
        import tensorflow as tf
        from tensorboard.plugins.custom_scalar import summary

        groups = dashboard.stages(self._numbering)
        layout = summary.pb(dashboard.layout(groups))
        with self._writer.as_default(0):
            tf.summary.experimental.write_raw_pb(layout.SerializeToString())

    def _write_settings(self):
        """Writes the settings, and which curves are results beside them."""
        from tensorboard.plugins.hparams import api

        settings = {
            "method": "dense",
            "optimizer": type(self.model.optimizer).__name__,
            "learning_rate": learning_rate(self.model.optimizer),
            "epochs": self.params.get("epochs"),
        }
        if self._pruning is not None:
            settings["method"] = type(self._pruning).__name__
            settings |= {
                name: getattr(self._pruning, name, None) for name in _SETTINGS
            }
        known = {k: v for k, v in settings.items() if v is not None}
        results = sorted(
            self._last_logs, key=lambda name: not name.startswith("val_")
        )
        tags = [
            *(f"final/{name}" for name in results[:1]),
            *("cost/relative_training_flops", "density/model"),
            *("cost/parameters", "time/epoch_seconds"),
            *(f"final/{name}" for name in results[1:]),
        ]
        api.hparams(known)
        api.hparams_config(
            hparams=[api.HParam(name) for name in known],
            metrics=[api.Metric(tag) for tag in tags],
        )

    def _write_scalars(self, logs, trained):
        values = {
            dashboard.ZERO: 0.0,
            "density/model": self._numbering.size / self._run["channels"],
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
                "cost/training_flops": logs.get(
                    "training_flops", trained.training_flops * self._examples
                ),
                "cost/relative_training_flops": trained.training_flops / dense,
                "memory/activation_bytes_per_example": trained.activation_bytes,
            }
        self._write_values(values)

    def _batch_size(self):
        """Returns the batch size of data that has one, `None` if unknown."""
        steps = self.params.get("steps")
        return steps and -(-self._examples // steps)

    def _write_channels(self):
        import tensorflow as tf

        densities = self._run["densities"][-1]
        names = self._run["layers"]
        self._write_values(
            {
                f"channels/{layer}": density
                for layer, density in zip(names, densities, strict=True)
            }
        )
        for layer, label in self._kernels.items():
            magnitudes = np.maximum(slice_magnitudes(label), _SMALLEST)
            tf.summary.histogram(
                f"magnitudes/{layer}",
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
            _LOG.warning(
                "No heat map in TensorBoard: it needs matplotlib. "
                "pip install keras-prunetrain[plot]"
            )
            return
        tf.summary.image("channels_of_layers", picture[None])
        self._heat_map_step = len(self._run["densities"])

    def _write_values(self, values):
        import tensorflow as tf

        for tag, value in values.items():
            if value is not None:
                tf.summary.scalar(tag, float(value))


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
