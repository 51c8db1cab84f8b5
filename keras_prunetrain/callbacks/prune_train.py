"""PruneTrain as one callback (paper, Algorithm 1)."""

import os
from typing import Any, Literal

from keras_prunetrain.batching import DynamicBatch
from keras_prunetrain.callbacks.reconfiguring import ReconfiguringCallback
from keras_prunetrain.channels.labels import Numbering
from keras_prunetrain.fit.arguments import check_schedule, check_solver
from keras_prunetrain.fit.epoch_logs import has_diverged
from keras_prunetrain.fit.monitors import warn_of_monitors
from keras_prunetrain.fit.nothing_dead import NothingDead
from keras_prunetrain.fit.record import Reconfiguration, penalty_share
from keras_prunetrain.lasso.calibrated import CalibratedLasso
from keras_prunetrain.trainers import Submodels


class PruneTrainCallback(ReconfiguringCallback):
    """Makes the model smaller while it trains.

    A group lasso drives whole channels to zero; every few epochs the model is
    rebuilt without the channels that are zero, and `fit` goes on with the
    smaller model. Weights and optimizer slots are carried over.

    The model, its layers, models nested in it, and its optimizer stay the same
    Python objects. Other live models on these layers go on with the smaller
    layers, or a warning names these models. The variables of weights
    (`layer.kernel`) are new objects after a reconfiguration, so read them from
    the layer each time.

    Of a model that holds functional models and trains them in its own
    `train_step`, as a GAN does, these become smaller (`submodels`).

    The lasso's factor is computed from the first batch and never changes
    afterwards: with it, the penalty of the first batch's weights is
    `penalty_ratio` of the sum of that penalty and the loss without any
    regularizer (paper, Eq. 3). The factor is 0 until the first batch is done,
    so the penalty acts from step 1 on. With
    `steps_per_execution=n` the callback sees the mean loss of the first n
    batches instead, and the penalty acts from step n on. Losses that layers add
    themselves (`add_loss`, activity regularizers) count as part of the task.

    Under SGD the lasso is a penalty in the loss, as in the paper. Under
    optimizers whose step does not shrink with the gradient, such as Adam,
    weights would swing around zero by the learning rate, above the threshold.
    There a proximal step follows each update: every channel of a kernel becomes
    shorter by the same length, or exactly zero (`solver`). The length is the
    lasso's factor times what a gradient of 1 moves the channel, so lasso and
    task pull as in SGD. No loss then contains the penalty, and reports show the
    share that it would have.

    Example:

    ```python
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(images, labels, epochs=90, callbacks=[PruneTrainCallback()])
    model.save("small.keras")  # An ordinary Keras model.
    ```

    The history of `fit` gains `val_task_loss` with each validation: `val_loss`
    without the penalties on weights. `val_loss` may contain the lasso, and then
    values before and after a reconfiguration are not comparable; let
    `EarlyStopping`, `ReduceLROnPlateau` and `ModelCheckpoint` monitor
    `val_task_loss`, with `mode="min"` and behind this callback in the list.
    Under SGD, your own `train_step` must add `sum(self.losses)` to its loss.

    The history also gains two values per epoch. `density` is the number of
    channels after the epoch's reconfiguration over their number when the model
    was first trained with this callback, a fraction; channels that layers share
    count once. `training_flops` is the work of the whole epoch. It is NaN if
    the model takes images of any size and the size of the data is unknown, or
    if the model's own `train_step` does not weigh the loss by the examples. On
    several replicas, `communication_bytes` is what each of them sent in the
    epoch, in a ring all-reduce. With a `batch` there are `batch_size`,
    `memory_bytes` (see `training_bytes`; per replica) and `learning_rate`, the
    one that the optimizer trained with last. (Callbacks that log
    `optimizer.learning_rate`, such as `TensorBoard`, and
    `LearningRateScheduler` and `ReduceLROnPlateau` after this one in the list,
    show the unscaled rate.) If a metric of the model has one of these names,
    the history keeps the metric, and a warning says so.

    If layers of the model already have a `GroupLasso`, no other layer gets one,
    and their factors stay; if all of these factors are 0, one is computed for
    them and stays after `fit`. Otherwise each kernel whose channels may go gets
    a `GroupLasso` beside its own regularizer, until `fit` ends. A second `fit`
    of the model with the same callback goes on with the factor of the first.

    Whatever ends `fit`, an exception or Ctrl-C included, the model is an
    ordinary one afterwards: a lasso that was put on is off, the layers' own
    have their factors back, and the optimizer trains with the learning rate
    that it shows.

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
            `channel_multiple`, `min_channels`, `skip`, `fold`, `score`.
        factor: Float above 0. The lasso's factor, instead of one computed from
            the first batch: pass that of the first run to a run that goes on
            from a file, whose smaller loss would give a smaller factor.
            Defaults to `None`, computed.
        finetune_epochs: Integer. So many epochs at the end run without lasso
            (paper, table 1). Defaults to `0`.
        log_dir: Path of a folder for TensorBoard (`DensityLog`), or `None`.
        solver: `"subgradient"`: the lasso is a penalty in the loss.
            `"proximal"`: a proximal step follows each update, for every
            optimizer but `Ftrl`, `ScheduleFreeAdamW` and those that Keras does
            not know. Defaults to `"auto"`: proximal where it can be and the
            optimizer is not `SGD`, or the model holds the models it trains.
        coupled: Boolean. Whether all slices of a channel, in every kernel that
            writes or reads it, are one group of the lasso, so that they arrive
            at zero together. Each slice is pulled as hard as in the paper if
            the slices of a channel have equal norms. The penalty is in none of
            the losses. Defaults to `False`, the paper's groups: each channel of
            each side of a kernel.
        submodels: Names of attributes of a model that holds functional models
            and trains them in its own `train_step`: only those in these
            attributes become smaller. Defaults to `None`, all that train.

    Attributes:
        reports: List of a `Reconfiguration` for each that took place.
        factor: Float, the lasso's factor, the largest if layers came with
            theirs; `None` until it is computed from the first batch.
        epoch: Integer, the epoch that is trained or was last; `None` before
            the first one of a `fit`.
        meter: The `EpochMeter` of the `fit`.

    Raises:
        ValueError: If an argument is out of its range; in `fit`, before the
            first step, as `ReconfiguringCallback`, if `skip` matches no layer
            or `score` fails, if proximal steps cannot follow the optimizer, if
            `finetune_epochs` leaves no epoch with lasso, if `fit` does not read
            the data set of `batch`, or if the workers are not started alike;
            after it, if the loss is negative, the logs have none, or the
            `train_step` leaves the penalties, or a part, out.

    Reference:
        - [Lym et al., 2019](https://arxiv.org/abs/1901.09290), Algorithm 1.
    """

    def __init__(
        self,
        penalty_ratio: float = 0.25,
        interval: int = 10,
        threshold: float = 1e-4,
        batch: DynamicBatch | None = None,
        reconfigure: dict[str, Any] | None = None,
        *,
        finetune_epochs: int = 0,
        factor: float | None = None,
        log_dir: str | os.PathLike | None = None,
        solver: Literal["auto", "subgradient", "proximal"] = "auto",
        coupled: bool = False,
        submodels: Submodels = None,
    ):
        super().__init__(threshold, batch, reconfigure, log_dir, submodels)
        check_schedule(penalty_ratio, interval, finetune_epochs, factor)
        check_solver(solver, coupled)
        self.penalty_ratio = float(penalty_ratio)
        self.interval = int(interval)
        self.finetune_epochs = int(finetune_epochs)
        self._first_factor = factor
        self.solver = solver
        self.coupled = coupled
        self.forget()

    @property
    def factor(self) -> float | None:
        return self._lasso.factor

    def is_due(self, epoch: int) -> bool:
        done, epochs = epoch + 1, self.params["epochs"]
        at_an_end = done in (epochs, epochs - self.finetune_epochs)
        is_due = at_an_end or (self._lasso.acts and done % self.interval == 0)
        return is_due and not self._fit.awaits_best(done)

    def settings(self) -> dict[str, Any]:
        names = "penalty_ratio", "interval", "finetune_epochs"
        names += "solver", "coupled"
        own = {name: getattr(self, name) for name in names}
        return super().settings() | own | {"factor": self._first_factor}

    def penalty_share(self, loss: float) -> float:
        penalty = self._lasso.penalty(self.model)
        return penalty_share(self.model, loss, penalty)

    def after_cut(self, report: Reconfiguration | None) -> None:
        if report is not None:
            self._lasso.after_cut(self.network)

    def check(self) -> None:
        if 0 < self.finetune_epochs >= self.params["epochs"]:
            raise ValueError(
                "`finetune_epochs` must leave at least one epoch with lasso. "
                f"Received: finetune_epochs={self.finetune_epochs}, and "
                f"epochs={self.params['epochs']} in `fit`."
            )
        self._lasso.check(self.model)

    def begin(self, numbering: Numbering) -> None:
        self.at_end(self._lasso.end, self.model)
        self._lasso.begin(self.model, numbering, self.options.skip)
        warn_of_monitors(self, self._fit.siblings, self._lasso.is_in_loss)
        if not self._lasso.acts:
            self._nothing_dead.say_no_lasso(self.model)

    def forget(self) -> None:
        super().forget()
        self._lasso = CalibratedLasso(
            self._first_factor, self.solver, self.coupled
        )
        self._nothing_dead = NothingDead()

    def get_state(self) -> dict[str, Any]:
        said = self._nothing_dead.said
        own = {"lasso": self._lasso.get_state(), "said": said}
        return super().get_state() | own

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self._lasso.set_state(self.model, state["lasso"])
        self._nothing_dead.said = state["said"]

    def on_epoch_begin(self, epoch, logs=None):
        finetuning = epoch >= self.params["epochs"] - self.finetune_epochs
        if finetuning and self._lasso.acts:
            self._lasso.pause(self.model)
        super().on_epoch_begin(epoch, logs)

    def on_train_batch_begin(self, batch, logs=None):
        # In the logs of later batches is the mean over the epoch.
        if batch == 0:
            self._lasso.before_first_batch(self.model)
        super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        self._lasso.after_first_batch(
            self.model, logs or {}, self.penalty_ratio
        )

    def on_test_begin(self, logs=None):
        super().on_test_begin(logs)
        self._lasso.before_validation(self.model)

    def on_test_end(self, logs=None):
        super().on_test_end(logs)
        self._lasso.after_validation(self.model)

    def on_epoch_end(self, epoch, logs=None):
        self._lasso.add_task_loss(self.model, {} if logs is None else logs)
        super().on_epoch_end(epoch, logs)

    def on_train_end(self, logs=None):
        if self.epoch is not None and not self.is_due(self.epoch):
            self._fit.restore_best()
            self.reconfigure(logs)  # It was stopped early.
        super().on_train_end(logs)
        found_nothing = self.factor is not None and not self.reports
        if found_nothing and not has_diverged(self.model, logs):
            self._nothing_dead.say_none_dead(self.model, self.threshold)
