"""One training run: recipe in, a folder of records and a model out."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
import sys
import time

import keras
import numpy as np

import keras_prunetrain as kpt
from apps.environment import environment
from keras_prunetrain import models

_RECORDS = (
    *("recipe.json", "metrics.jsonl", "reconfigurations.jsonl"),
    *("channels.npz", "result.json", "model.keras"),
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that a run depends on.

    Attributes:
        method: `"dense"` or `"prunetrain"`.
        dataset: Name of a data set, for the record.
        network: Name of a function in `keras_prunetrain.models` or in
            `keras.applications`.
        epochs: Passes over the training images.
        batch_size: Images per optimizer update.
        seed: Of initial weights, order of images and augmentation.
        learning_rate: Of SGD, before the drops.
        learning_rate_drops: Epochs at whose beginning it is divided by 10.
        momentum: Of SGD.
        weight_decay: Coupled (an L2 penalty of half this factor in the loss),
            on all trainable weights.
        dtype_policy: Keras's, `"float32"` or `"mixed_bfloat16"`.
        penalty_ratio, interval, threshold, finetune_epochs: Arguments of
            `PruneTrainCallback`; a dense run ignores them.
        granularity: That of a `DynamicBatch`, with the memory of the first
            architecture as its budget; `None` for a fixed batch size.
        width: Channels of the first stage of a ResNet; `None` for its own.
    """

    method: str
    dataset: str
    network: str
    epochs: int
    batch_size: int
    seed: int
    learning_rate: float
    learning_rate_drops: tuple[int, ...]
    momentum: float
    weight_decay: float
    dtype_policy: str
    penalty_ratio: float
    interval: int
    threshold: float
    finetune_epochs: int
    granularity: int | None = None
    width: int | None = None


def train(recipe, data, workdir, strategy=None):
    """Trains as `recipe` says and writes the records of the run.

    Args:
        recipe: A `Recipe`.
        data: A `data.Dataset` or `imagenet.Images`.
        workdir: Folder for `recipe.json`, `metrics.jsonl` (a line per epoch),
            `reconfigurations.jsonl`, `channels.npz` (layer -> largest
            magnitude of each output channel of its kernel, shape
            `(epochs, channels)`, NaN once a channel is gone, and for epochs to
            come), `tensorboard` with event files, and at the end `model.keras`
            and `result.json`. Made if it does not exist; the records of an
            earlier run in it are replaced. Of several workers, all but the
            first write into folders of their own in it.
        strategy: A `tf.distribute.Strategy`; `None` for one device.

    Returns:
        What `result.json` holds, a dict.
    """
    workdir = pathlib.Path(workdir)
    workdir /= _own_folder(strategy)
    workdir.mkdir(parents=True, exist_ok=True)
    for name in _RECORDS:
        (workdir / name).unlink(missing_ok=True)
    shutil.rmtree(workdir / "tensorboard", ignore_errors=True)
    _write_json(workdir / "recipe.json", dataclasses.asdict(recipe))
    keras.config.set_dtype_policy(recipe.dtype_policy)
    keras.utils.set_random_seed(recipe.seed)
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = _compiled_model(recipe, data)
    draws = data.training_draws(recipe.seed)
    pruning = batch = None
    if recipe.method == "prunetrain":
        if recipe.granularity is not None:
            batch = kpt.DynamicBatch(recipe.batch_size, recipe.granularity)
        pruning = kpt.PruneTrainCallback(
            penalty_ratio=recipe.penalty_ratio,
            interval=recipe.interval,
            threshold=recipe.threshold,
            batch=batch,
            finetune_epochs=recipe.finetune_epochs,
        )
    drops = keras.callbacks.LearningRateScheduler(
        lambda epoch: (
            recipe.learning_rate
            * 0.1 ** sum(epoch >= drop for drop in recipe.learning_rate_drops)
        )
    )
    batches = data.drawn_batches(
        _fixed_batches(draws, recipe.batch_size, strategy)
        if batch is None
        else batch(draws)
    )
    # The histograms of dense and shrinking runs can be laid side by side.
    log = kpt.DensityLog(workdir / "tensorboard", recipe.threshold or 1e-4)
    recorder = _Recorder(workdir, recipe, data, pruning)
    model.fit(
        batches,
        validation_data=data.validation_batches(recipe.batch_size),
        epochs=recipe.epochs,
        callbacks=[drops, *([pruning] if pruning else []), log, recorder],
        shuffle=False,  # The data set shuffles itself; else Keras warns.
        verbose=1 if sys.stdout.isatty() else 2,
    )
    model.save(workdir / "model.keras")
    result = recorder.result(model)
    _write_json(workdir / "result.json", result)
    return result


def _fixed_batches(draws, size, strategy):
    """Forms batches of which each replica gets a part.

    TensorFlow fills one replica after the other: the last batch may leave some
    without an example, on which layers fail. It is left out then; the images
    are shuffled, so that it is another one in each epoch.
    """
    replicas = strategy.num_replicas_in_sync if strategy else 1
    rest = int(draws.cardinality()) % size
    # The first ones have the larger parts.
    is_short = 0 < rest <= size - size // replicas
    return draws.batch(size, drop_remainder=is_short)


def _write_json(path, content):
    path.write_text(json.dumps(content, indent=2) + "\n")


def _own_folder(strategy):
    """Returns the folder of this worker: none of its own for the first."""
    resolver = strategy and strategy.cluster_resolver
    if not resolver or not resolver.cluster_spec().jobs:
        return ""
    has_chief = "chief" in resolver.cluster_spec().jobs
    first = ("chief" if has_chief else "worker", 0)
    this = resolver.task_type, resolver.task_id
    return "" if this == first else f"{this[0]}{this[1]}"


def _compiled_model(recipe, data):
    model = _model(recipe, data)
    model.compile(
        keras.optimizers.SGD(recipe.learning_rate, momentum=recipe.momentum),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[
            "accuracy",
            # The loss that Keras reports contains the penalties.
            keras.metrics.SparseCategoricalCrossentropy(
                from_logits=True, name="task_loss"
            ),
        ],
    )
    return model


def _model(recipe, data):
    if hasattr(models, recipe.network):
        build = getattr(models, recipe.network)
        width = {} if recipe.width is None else {"width": recipe.width}
        shape, decay = data.image_shape, recipe.weight_decay
        return build(shape, data.classes, decay, **width)
    model = getattr(keras.applications, recipe.network)(
        weights=None,
        input_shape=data.image_shape,
        classes=data.classes,
        classifier_activation=None,
    )
    for weight in model.trainable_variables:
        weight.regularizer = keras.regularizers.L2(recipe.weight_decay / 2)
    return model


class _Recorder(keras.callbacks.Callback):
    """Writes the files of a run; comes after all other callbacks.

    Its clock runs from its making to the end of the last epoch, surgery
    included, and stands still during validation.
    """

    def __init__(self, workdir, recipe, data, pruning):
        super().__init__()
        self._workdir = workdir
        self._recipe = recipe
        self._data = data
        self._pruning = pruning
        self._rows = []
        self._magnitudes = {}
        self._positions = {}
        self._known_reports = 0
        self._clock = self._epoch_seconds = 0.0
        self._started = time.perf_counter()

    def on_train_begin(self, logs=None):
        (self._workdir / "metrics.jsonl").write_text("")
        self._cost = kpt.model_cost(self.model)
        for name, magnitudes in self._channel_magnitudes().items():
            shape = self._recipe.epochs, len(magnitudes)
            self._positions[name] = np.arange(len(magnitudes))
            self._magnitudes[name] = np.full(shape, np.nan, "float32")

    def on_epoch_begin(self, epoch, logs=None):
        # Before the epoch's reconfiguration changes them.
        self._gradient_bytes = kpt.gradient_bytes(self.model)
        replicas = self.model.distribute_strategy.num_replicas_in_sync
        self._memory_bytes = kpt.training_bytes(
            self.model, self._recipe.batch_size // replicas
        )
        self._updates = 0
        # Of all images, or of all but a short last batch.
        steps, size = self.params["steps"], self._recipe.batch_size
        self._images = min(self._data.train_size, steps * size)

    def on_train_batch_end(self, batch, logs=None):
        self._updates += 1

    def on_test_begin(self, logs=None):
        self._stop_clock()

    def on_test_end(self, logs=None):
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self._stop_clock()
        row = {
            "epoch": epoch,
            **{name: float(value) for name, value in (logs or {}).items()},
            "seconds": self._clock - self._epoch_seconds,
            "parameters": self.model.count_params(),
            "gradient_bytes": self._gradient_bytes,
            "updates": self._updates,
        }
        row["batch_size"] = int(row.get("batch_size", self._recipe.batch_size))
        row.setdefault("memory_bytes", self._memory_bytes)
        if self._pruning is None:
            row["density"] = 1.0
            row["training_flops"] = self._cost.training_flops * self._images
        self._epoch_seconds = self._clock
        self._rows.append(row)
        # In this order: an epoch with metrics has all its other records.
        self._write_reports()
        self._record_channels(epoch)
        with (self._workdir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._started = time.perf_counter()

    def _stop_clock(self):
        self._clock += time.perf_counter() - self._started

    def _record_channels(self, epoch):
        reports = self._pruning.reports if self._pruning else []
        for report in reports[self._known_reports :]:
            for name, keep in report.keep.items():
                if name in self._positions:
                    self._positions[name] = self._positions[name][keep]
        self._known_reports = len(reports)
        for name, magnitudes in self._channel_magnitudes().items():
            self._magnitudes[name][epoch, self._positions[name]] = magnitudes
        scratch = self._workdir / "channels.new.npz"
        np.savez_compressed(scratch, **self._magnitudes)
        scratch.replace(self._workdir / "channels.npz")

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

    def on_train_end(self, logs=None):
        self._write_reports()

    def _write_reports(self):
        # All of them each time: the last one gets its first step's seconds
        # an epoch later.
        reports = self._pruning.reports if self._pruning else []
        (self._workdir / "reconfigurations.jsonl").write_text(
            "".join(json.dumps(dataclasses.asdict(r)) + "\n" for r in reports)
        )

    def result(self, model):
        """Returns what `result.json` holds."""
        reports = self._pruning.reports if self._pruning else []
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
            "seconds": self._clock,
            "reconfiguration_seconds": sum(
                report.seconds + report.first_step_seconds for report in reports
            ),
            "reconfigurations": len(reports),
            "recipe": dataclasses.asdict(self._recipe),
            **environment([self._recipe.seed]),
        }
