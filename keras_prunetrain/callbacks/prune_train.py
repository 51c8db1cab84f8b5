"""PruneTrain as one callback (paper, Algorithm 1)."""

import gc
import logging
import math
import time

import keras

from keras_prunetrain import keras_internals
from keras_prunetrain.callbacks.density_log import DensityLog
from keras_prunetrain.channels.liveness import matching_layers
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.cost import (
    communication_bytes,
    cost_if_known,
)
from keras_prunetrain.distribution import (
    average_statistics,
    check_agreement,
    prepare_strategy,
    replica_count,
)
from keras_prunetrain.example_shapes import shapes_in
from keras_prunetrain.fit.arguments import (
    check_arguments,
    check_siblings,
    reconfigure_arguments,
)
from keras_prunetrain.fit.record import (
    ReconfiguringCallback,
    learning_rate,
    record_of,
)
from keras_prunetrain.growth import begin_growth
from keras_prunetrain.lasso import attach
from keras_prunetrain.lasso.calibrated import CalibratedLasso
from keras_prunetrain.memory import training_bytes
from keras_prunetrain.surgery.reconfigure import (
    carry_out,
    check_reconfigurable,
    make_plan,
)
from keras_prunetrain.surgery.takeover import take_over
from keras_prunetrain.variables import gradient_bytes

_LOG = logging.getLogger("keras_prunetrain")


class PruneTrainCallback(ReconfiguringCallback):
    """Makes the model smaller while it trains.

    A group lasso drives whole channels to zero; every few epochs the model is
    rebuilt without those that have arrived there, and `fit` goes on with the
    smaller one, weights and optimizer slots carried over. The caller's model
    and optimizer objects stay the same objects throughout.

    The lasso's factor is computed from the first batch and never changes
    afterwards: the penalty is then `penalty_ratio` of the whole loss, the loss
    without any regularizer being the rest (paper, Eq. 3). The factor is 0 until
    that batch is done, so the penalty acts from step 1 on. With
    `steps_per_execution=n` the callback sees the mean loss of the first n
    batches instead, and the penalty acts from step n on. Losses that layers add
    themselves (`add_loss`, activity regularizers) count as part of the task.

    Example:

    ```python
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(images, labels, epochs=90, callbacks=[PruneTrainCallback()])
    model.save("small.keras")  # An ordinary Keras model.
    ```

    The history of `fit` gains two values per epoch: `density`, the kept share
    of the channels that the model had when it was first trained with this
    callback (a fraction, after the epoch's reconfiguration), and
    `training_flops`, those of the whole epoch; NaN if the model takes images of
    any size and the data do not say theirs, or if its own `train_step` does not
    weigh the loss by the examples. On several replicas, `communication_bytes`
    is what each of them sent in the epoch, in a ring all-reduce. With a `batch`
    there are `batch_size`, `memory_bytes` (see `training_bytes`; per replica)
    and `learning_rate`, the one that the optimizer trained with last.
    (Callbacks that log `optimizer.learning_rate`, `LearningRateScheduler` and
    `ReduceLROnPlateau` behind this one and `TensorBoard`, show the unscaled
    one. After a `fit` that broke off, the next one with this callback makes the
    optimizer an ordinary one again.)

    Models nested in the caller's are rebuilt: `model.get_layer("encoder")` is
    another object after a reconfiguration.

    Layers that carry a `GroupLasso` already keep it, with its factor, and no
    other gets one; only if all of these factors are 0 is one computed. Without
    any, one is put beside the regularizer of each kernel, and is off again when
    `fit` returns (not if it breaks off with an exception; the next `fit` with
    this callback sees to that). A second `fit` with the same callback goes on
    with the factor of the first.

    Args:
        penalty_ratio: Float in (0, 1). The lasso's share of the loss of the
            first batch. The paper uses 0.2 to 0.25; larger removes more.
        interval: Integer. Epochs between reconfigurations. Each costs a
            tracing of the train step.
        threshold: Float, at least 0. A channel is dead if no weight of it
            reaches this magnitude.
        batch: A `DynamicBatch`, whose data set `fit` trains on: it grows after
            each reconfiguration. Defaults to `None`, a fixed batch size.
        reconfigure: Dict of further arguments for `reconfigure`:
            `channel_multiple`, `min_channels`, `skip`, `fold`.
        finetune_epochs: Integer. So many epochs at the end run without lasso
            (paper, table 1). Defaults to `0`.
        log_dir: Path of a folder for TensorBoard; see `DensityLog`. Defaults to
            `None`, no logs.

    Attributes:
        reports: List of a `Reconfiguration` for each that took place.
        factor: Float, the lasso's factor, the largest if layers came with
            theirs; `None` before the first batch.

    Raises:
        ValueError: If an argument is out of its range; in `fit`, before the
            first step, if the model has no known graph, if a layer or the
            optimizer cannot be rebuilt, if `skip` matches no layer, if
            `finetune_epochs` leaves no epoch with lasso, or if an
            `EarlyStopping(restore_best_weights=True)` or a second callback of
            this class is among the callbacks; after it, if the loss is negative
            or the logs have none.

    Reference:
        - [Lym et al., 2019](https://arxiv.org/abs/1901.09290), Algorithm 1.
    """

    def __init__(
        self,
        penalty_ratio=0.25,
        interval=10,
        threshold=1e-4,
        batch=None,
        reconfigure=None,
        *,
        finetune_epochs=0,
        log_dir=None,
    ):
        super().__init__()
        check_arguments(penalty_ratio, interval, finetune_epochs, batch)
        self.batch = batch
        self.penalty_ratio = penalty_ratio
        self.interval = interval
        self.threshold = threshold
        self.finetune_epochs = finetune_epochs
        self._arguments = reconfigure_arguments(threshold, reconfigure)
        self._log = None if log_dir is None else DensityLog(log_dir)
        if self._log is not None:
            self._log.follow(self)
        self._forget()

    def _forget(self):
        self._lasso = CalibratedLasso()
        self.reports = []
        self._first_size = None
        self._first_seconds = math.inf
        self._epoch_started = 0.0
        self._batch_size = None
        self._examples = self._batch = self._counted = None
        self._said_nothing_dead = False

    @property
    def factor(self):
        return self._lasso.factor

    def set_model(self, model):
        if self._model is not None and self._model is not model:
            self._forget()  # What was another model's: its factor, its size.
        super().set_model(model)
        self._siblings = keras_internals.sibling_callbacks()
        self._tell_log("set_model", model)

    def set_params(self, params):
        super().set_params(params)
        self._tell_log("set_params", params)

    def _tell_log(self, hook, *arguments):
        if self._log is not None:
            getattr(self._log, hook)(*arguments)

    def on_train_begin(self, logs=None):
        check_siblings(self, self._siblings)
        prepare_strategy(self.model)
        if 0 < self.finetune_epochs >= self.params["epochs"]:
            raise ValueError(
                "`finetune_epochs` must leave at least one epoch with lasso. "
                f"Received: finetune_epochs={self.finetune_epochs}, and "
                f"epochs={self.params['epochs']} in `fit`."
            )
        numbering = number_channels(self.model)
        # As keys: a reconfigured model has other layer objects.
        skipped = matching_layers(numbering, self._arguments.get("skip", ()))
        self._keys_to_skip = tuple(skipped)
        # Better now than after ten epochs.
        check_reconfigurable(self.model, self._keys_to_skip)
        self._input_shapes = shapes_in(
            keras_internals.fit_argument("x"), self.model
        )
        self._cost = cost_if_known(self.model, self._input_shapes)
        if self._first_size is None:
            self._first_size = numbering.size
        self._size = numbering.size
        self._batch_size = self._batch = None
        self._epoch = None
        self._reconfigured_after = None
        self._awaits_first_step = False
        # Of a `fit` that broke off.
        keras_internals.restore_learning_rate(self.model.optimizer)
        self._replicas = replica_count(self.model)
        check_agreement(self.model, self._description())
        if self.batch is not None:
            steps = self.params["steps"]
            begin_growth(self.batch, self.model, steps, self._input_shapes)
            self._scale_learning_rate()
        self._tell_log("on_train_begin")
        self._begin_lasso(numbering, skipped)

    def _description(self):
        """Says all that decides when this callback does what."""
        names = ("penalty_ratio", "interval", "threshold", "finetune_epochs")
        parts = [f"{name}={getattr(self, name)}" for name in names]
        arguments = {**self._arguments, "skip": self._keys_to_skip}
        parts += [f"reconfigure={arguments}", f"batch={self.batch}"]
        parts += [f"{name}={self.params[name]}" for name in ("epochs", "steps")]
        shapes = [tuple(w.shape) for w in self.model.weights]
        # It takes part in an exchange of its own.
        parts.append(f"log_dir given: {self._log is not None}")
        optimizer = self.model.optimizer
        parts += [type(optimizer).__name__, str(learning_rate(optimizer))]
        return ", ".join([*parts, f"weights of shapes {shapes}"])

    def _begin_lasso(self, numbering, skipped):
        self._lasso.begin(self.model, numbering, skipped)
        if not self._lasso.acts:
            self._said_nothing_dead = True
            _LOG.warning(
                "Nothing to prune in '%s': it has no kernel that trains and "
                "whose channels may go. keras_prunetrain.channel_report(model) "
                "says why.",
                self.model.name,
            )

    def on_train_batch_begin(self, batch, logs=None):
        steps = self.params.get("steps") or math.inf
        if batch + self.model.steps_per_execution >= steps:
            self._rate = keras_internals.scheduled_rate(self.model.optimizer)
        # In the logs of later batches is the mean over the epoch.
        if batch == 0:
            self._lasso.before_first_batch(self.model)
        self._step_started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self._tell_log("on_train_batch_end", batch)
        if self._awaits_first_step:
            self._awaits_first_step = False
            seconds = time.perf_counter() - self._step_started
            self.reports[-1].first_step_seconds = seconds
        steps = self.params.get("steps")
        is_first = batch < self.model.steps_per_execution
        is_last = steps is not None and batch + 1 >= steps
        # At the last one at least: whoever calls `evaluate` resets it. Replicas
        # have to exchange it, so they do it no more often.
        self._batch = batch
        if self._replicas == 1 or is_first or is_last or steps is None:
            self._count_examples()
        if self.batch is not None and batch == 0 and self._examples is not None:
            self.batch.growth.check_first_step(self._examples)
        self._lasso.after_first_batch(
            self.model, logs or {}, self.penalty_ratio
        )
        # Callbacks change it at the end of the epoch.
        if is_last and self._rate is None:
            self._rate = learning_rate(self.model.optimizer)
        # `fit` goes on until the number of steps that it began with.
        last = self.batch is not None and batch + 1 >= self.batch.steps
        if last and not self.model.stop_training:
            self.model.stop_training = _END_OF_EPOCH

    def _count_examples(self):
        if self._batch is None or self._counted == self._batch:
            return
        self._counted = self._batch
        # With `steps_per_execution`, it may lie behind the last one.
        steps = min(self._batch + 1, self.params.get("steps") or math.inf)
        self._examples = keras_internals.example_count(self.model, steps)
        if self._batch_size is None and self._examples is not None:
            self._batch_size = math.ceil(self._examples / steps)

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._examples = self._batch = self._counted = None
        self._rate = None
        if self.batch is not None:
            self._announce_steps(self.batch.steps)
        finetuning = epoch >= self.params["epochs"] - self.finetune_epochs
        if finetuning and self._lasso.acts:
            self._lasso.pause(self.model)
        self._tell_log("on_epoch_begin", epoch)
        self._epoch_started = time.perf_counter()

    def on_test_begin(self, logs=None):
        self._count_examples()  # If a callback ended the epoch early.
        self._tell_log("on_test_begin")
        self._test_started = time.perf_counter()
        average_statistics(self.model)

    def on_test_end(self, logs=None):
        self._tell_log("on_test_end")
        # Validation is no part of an epoch's time.
        self._epoch_started += time.perf_counter() - self._test_started

    def on_epoch_end(self, epoch, logs=None):
        self._epoch_seconds = time.perf_counter() - self._epoch_started
        self._count_examples()
        if not self.reports:  # The shortest: the very first one is traced.
            self._first_seconds = min(self._first_seconds, self._epoch_seconds)
        average_statistics(self.model)
        # Unless another callback wants the training to end, and said so.
        if self.model.stop_training is _END_OF_EPOCH:
            self.model.stop_training = False
        done, epochs = epoch + 1, self.params["epochs"]
        examples = math.nan if self._examples is None else self._examples
        flops = self._cost.training_flops if self._cost else math.nan
        trained_flops = flops * examples
        # Of the model that the epoch was trained with.
        trained = {**self._batch_logs(), **self._communication_logs()}
        if done in (epochs, epochs - self.finetune_epochs) or (
            self._lasso.acts and done % self.interval == 0
        ):
            self._reconfigure(logs or {})
        if logs is not None:
            logs["density"] = self._size / self._first_size
            logs["training_flops"] = trained_flops
            logs.update(trained)
        self._tell_log("on_epoch_end", epoch, logs)

    def _batch_logs(self):
        if self.batch is None:
            return {}
        logs = {
            "batch_size": self.batch.size,
            "memory_bytes": training_bytes(
                self.model,
                self.batch.size // self._replicas,
                self._input_shapes,
            ),
        }
        rate = self._trained_rate()
        if rate is not None:
            logs["learning_rate"] = rate
        return logs

    def _trained_rate(self):
        """Returns the learning rate of the last step; `None` if several."""
        rate = self._rate
        if rate is None:
            rate = learning_rate(self.model.optimizer)
        if rate is None or self.batch is None:
            return rate
        return rate * self.batch.learning_rate_ratio

    def _communication_logs(self):
        if self._replicas == 1:
            return {}
        sent = communication_bytes(gradient_bytes(self.model), self._replicas)
        steps = self.params.get("steps") or math.nan
        return {"communication_bytes": sent * steps}

    def _announce_steps(self, steps):
        """Tells the callbacks how long the epoch is; they share `params`."""
        self.params["steps"] = steps
        for callback in self._siblings:
            if isinstance(callback, keras.callbacks.ProgbarLogger):
                callback.target = steps  # It has read them when `fit` began.
                if callback.progbar is not None:
                    callback.progbar.target = steps

    def _scale_learning_rate(self):
        keras_internals.scale_learning_rate(
            self.model.optimizer,
            self.batch.learning_rate_ratio,
            self.batch.growth.initial_updates,
        )

    def on_train_end(self, logs=None):
        if self._reconfigured_after != self._epoch:  # Stopped early.
            self._reconfigure(logs or {})
            densities = self.model.history.history.get("density")
            if densities:
                densities[-1] = self._size / self._first_size
        self._lasso.end(self.model)
        keras_internals.restore_learning_rate(self.model.optimizer)
        calibrated = self.factor is not None
        if calibrated and not self.reports and not self._said_nothing_dead:
            self._said_nothing_dead = True
            _LOG.warning(
                "No channel of '%s' fell below threshold=%g. A longer training "
                "at a high learning rate, or a larger `penalty_ratio`, removes "
                "more; keras_prunetrain.channel_report(model) tells.",
                self.model.name,
                self.threshold,
            )
        self._tell_log("on_train_end")

    def _reconfigure(self, logs):
        started = time.perf_counter()
        self._reconfigured_after = self._epoch
        loss = logs.get("loss", 0.0)
        if not (math.isfinite(loss) and attach.all_finite(self.model)):
            _LOG.warning(
                "No reconfiguration after epoch %d: the loss (%s) or a weight "
                "of '%s' is not finite.",
                self._epoch,
                loss,
                self.model.name,
            )
            return
        report = self._cut(loss)
        if report is None:
            return
        # Layers and graph refer to each other: without this the old weights
        # would stay in memory until Python happens to look for cycles.
        gc.collect()
        if self.reports:
            report.seconds_saved = self._first_seconds - self._epoch_seconds
        report.seconds = time.perf_counter() - started
        self.reports.append(report)
        self._awaits_first_step = True
        _LOG.info("%s", report)

    def _cut(self, loss):
        """Makes the model smaller; returns the report, `None` if it is not."""
        arguments = {**self._arguments, "skip": self._keys_to_skip}
        plan = make_plan(self.model, self.threshold, **arguments)
        if plan.removes_nothing:
            return None
        smaller = carry_out(self.model, plan)
        cost = cost_if_known(smaller, self._input_shapes)
        report = record_of(
            plan,
            self.model,
            epoch=self._epoch,
            loss=loss,
            costs=(self._cost, cost),
            rate=self._trained_rate(),
            batch_size=self.batch.size if self.batch else self._batch_size,
        )
        take_over(self.model, smaller)
        self._size = int(plan.alive.sum())
        self._cost = cost
        if self.batch is not None:
            report.batch_size_after = self.batch.growth.grow(self.model)
            self._scale_learning_rate()
        return report


# What `Model.stop_training` is at the end of an epoch that is shorter than the
# first ones; true, and yet not what a callback sets that ends the training.
_END_OF_EPOCH = "the end of the epoch"
