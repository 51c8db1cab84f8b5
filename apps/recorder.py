"""Writes the records of a run while it trains."""

import dataclasses
import json
import time

import keras
import numpy as np

import keras_prunetrain as kpt
from apps.environment import environment


class Recorder(keras.callbacks.Callback):
    """Writes the files of a run; comes after all other callbacks.

    The seconds of a run are those of `fit`: surgery is part of them, validation
    and the writing of these records are not.

    Args:
        files: The `Workdir` of the run.
        recipe: Its `training.Recipe`.
        pruning: Its `PruneTrainCallback`; `None` if nothing shrinks.
        meter: A `keras_prunetrain.EpochMeter` that stands in front of this
            callback.
    """

    def __init__(self, files, recipe, pruning, meter):
        super().__init__()
        self._files = files
        self._recipe = recipe
        self._pruning = pruning
        self._rows = []
        self._magnitudes = {}
        self._positions = {}
        self._known_reports = 0
        self._meter = meter
        self._writing_seconds = 0.0
        self._seconds = 0.0  # Of the run, at the end of the last epoch.
        self._updates = 0
        self._ended = None  # When the records of the last epoch were written.

    def on_train_begin(self, logs=None):
        self._files.write_text("metrics.jsonl", "")
        for name, magnitudes in self._channel_magnitudes().items():
            shape = self._recipe.epochs, len(magnitudes)
            self._positions[name] = np.arange(len(magnitudes))
            self._magnitudes[name] = np.full(shape, np.nan, "float32")

    def get_state(self):
        """Returns all that a further process needs to write the same files."""
        return {
            "rows": self._rows,
            "magnitudes": self._magnitudes,
            "positions": self._positions,
            "known_reports": self._known_reports,
            "writing_seconds": self._writing_seconds,
            "seconds": self._seconds,
            "updates": self._updates,
        }

    def set_state(self, state):
        """Goes on where `get_state` was called, and writes what was lost."""
        self._rows = state["rows"]
        self._magnitudes = state["magnitudes"]
        self._positions = state["positions"]
        self._known_reports = state["known_reports"]
        self._writing_seconds = state["writing_seconds"]
        self._seconds = state["seconds"]
        self._updates = state["updates"]
        self._files.write_text("metrics.jsonl", "".join(map(_line, self._rows)))

    def on_epoch_begin(self, epoch, logs=None):
        if self._ended is not None:  # Since then a backup has been written.
            self._writing_seconds += time.perf_counter() - self._ended
            self._ended = None
        # Before the epoch's reconfiguration changes them.
        self._gradient_bytes = kpt.gradient_bytes(self.model)
        replicas = self.model.distribute_strategy.num_replicas_in_sync
        self._memory_bytes = kpt.training_bytes(
            self.model, self._recipe.batch_size // replicas
        )
        self._updates = 0

    def on_train_batch_end(self, batch, logs=None):
        self._updates += 1

    def on_epoch_end(self, epoch, logs=None):
        started = time.perf_counter()
        before, self._seconds = self._seconds, self._run_seconds()
        row = {
            "epoch": epoch,
            **{name: float(value) for name, value in (logs or {}).items()},
            "seconds": self._seconds - before,
            "parameters": self.model.count_params(),
            "gradient_bytes": self._gradient_bytes,
            "updates": self._updates,
        }
        row["batch_size"] = int(row.get("batch_size", self._recipe.batch_size))
        row.setdefault("memory_bytes", self._memory_bytes)
        # What only hardware for n:m sparsity would leave out.
        row["emulated_flops"] = self._meter.emulated_flops
        if self._pruning is None:
            row["density"] = 1.0
            row["training_flops"] = self._meter.training_flops
        self._rows.append(row)
        # In this order: an epoch with metrics has all its other records.
        self._write_reports()
        self._record_channels(epoch)
        self._files.append("metrics.jsonl", _line(row))
        self._ended = time.perf_counter()
        self._writing_seconds += self._ended - started

    def _run_seconds(self):
        return self._meter.fit_seconds - self._writing_seconds

    def _record_channels(self, epoch):
        reports = self._reports()
        for report in reports[self._known_reports :]:
            for name, keep in report.keep.items():
                if name in self._positions:
                    self._positions[name] = self._positions[name][keep]
        self._known_reports = len(reports)
        for name, magnitudes in self._channel_magnitudes().items():
            self._magnitudes[name][epoch, self._positions[name]] = magnitudes
        with self._files.replacing("channels.npz") as path:
            np.savez_compressed(path, **self._magnitudes)

    def _channel_magnitudes(self):
        """Returns the largest magnitude of each output channel, per layer."""
        kernels = {}
        for layer in self.model.layers:
            if isinstance(layer, keras.layers.SeparableConv2D):
                kernels[layer.name] = layer.pointwise_kernel
            elif isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
                kernels[layer.name] = layer.kernel
        return {
            name: np.abs(keras.ops.convert_to_numpy(kernel)).max(
                axis=tuple(range(len(kernel.shape) - 1))
            )
            for name, kernel in kernels.items()
        }

    def _reports(self):
        return self._pruning.reports if self._pruning else []

    def on_train_end(self, logs=None):
        self._write_reports()

    def _write_reports(self):
        # All of them each time: the last one gets its first step's seconds
        # an epoch later.
        reports = self._reports()
        self._files.write_text(
            "reconfigurations.jsonl",
            "".join(json.dumps(dataclasses.asdict(r)) + "\n" for r in reports),
        )

    def result(self, model):
        """Returns what `result.json` holds."""
        reports = self._reports()
        cost = kpt.model_cost(model)
        last = self._rows[-1]
        return {
            "method": self._recipe.method,
            "dataset": self._recipe.dataset,
            "network": self._recipe.network,
            "epochs": self._recipe.epochs,
            "seed": self._recipe.seed,
            "val_accuracy": last["val_accuracy"],
            "parameters": cost.parameters,
            "forward_flops": cost.forward_flops,
            "total_training_flops": sum(
                row["training_flops"] for row in self._rows
            ),
            "total_emulated_flops": sum(
                row["emulated_flops"] for row in self._rows
            ),
            "seconds": self._seconds,
            "reconfiguration_seconds": sum(
                report.seconds + report.first_step_seconds for report in reports
            ),
            "reconfigurations": len(reports),
            **self._of_method(),
            "recipe": dataclasses.asdict(self._recipe),
            **environment([self._recipe.seed]),
        }

    def _of_method(self):
        """Returns what only some callbacks find out, a dict."""
        if isinstance(self._pruning, kpt.PruneTrainCallback):
            return {"factor": self._pruning.factor}
        if isinstance(self._pruning, kpt.EarlyCroPCallback):
            # `None` where the training has ended before.
            return {"pruned_after_epochs": self._pruning.moment.chosen}
        return {}


def _line(row):
    return json.dumps(row) + "\n"
