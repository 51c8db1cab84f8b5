"""A target for the model's cost, met early in the training."""

import dataclasses
import logging
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_prunetrain import keras_internals
from keras_prunetrain.batching import DynamicBatch
from keras_prunetrain.callbacks.reconfiguring import ReconfiguringCallback
from keras_prunetrain.channels.labels import Numbering
from keras_prunetrain.channels.liveness import Plan
from keras_prunetrain.choice import Choice, is_met, least_channels
from keras_prunetrain.cost import Cost, model_cost
from keras_prunetrain.distribution import mean_over_workers
from keras_prunetrain.fit.arguments import (
    check_backend,
    check_first_cost,
    target_options,
)
from keras_prunetrain.fit.record import Reconfiguration
from keras_prunetrain.fit.rounds import (
    Round,
    check_window,
    rounds_of,
    target_of,
    warn_of_early_drop,
    warn_of_short_rounds,
)
from keras_prunetrain.fit.running_round import RunningRound
from keras_prunetrain.fit.scoring_data import (
    check_scoring_data,
    scoring_batches,
)
from keras_prunetrain.saliency import ON_DATA, number_score
from keras_prunetrain.scoring import check_batches, measured_flow
from keras_prunetrain.trainers import Submodels

_LOG = logging.getLogger("keras_prunetrain")


class TargetPruneCallback(ReconfiguringCallback):
    """Makes the model as small as a target says, early in the training.

    After a warm-up, the channels that matter least to the loss are chosen, in a
    few rounds. In each round, the chosen channels shrink linearly to zero, and
    are then cut out of the model, its weights and the optimizer's slots. All
    other channels are trained as without this callback: no penalty acts on
    them. After the last round nothing remains of the method, and the small
    model trains to the end at full speed.

    Example:

    ```python
    pruning = TargetPruneCallback(flops=0.5)
    model.fit(images, labels, epochs=40, callbacks=[pruning])
    ```

    Exactly one of the four targets is given, as a fraction of the model that
    `fit` finds. The cost of the resulting model is counted (`model_cost`), so
    the target is met by the very model that results. Channels that layers
    share, as in a residual stage, have one score and go together.

    What `PruneTrainCallback` says of the model's objects, of `batch`, of the
    history and of the state after `fit` holds for this callback, too.

    Args:
        flops: Float in (0, 1). FLOPs of inference.
        parameters: Float in (0, 1). Number of weights.
        activation_bytes: Float in (0, 1). Bytes that an example's activations
            take in a training step.
        training_flops: Float in (0, 1). FLOPs of all epochs of this `fit`; the
            inference FLOPs follow from it and from the rounds. Products that
            `SDGPCallback` computes with zeros count in full.
        score: How much a channel number matters. `"taylor"`: the magnitude of
            the loss's gradient by a factor on the channel, averaged over the
            first steps of a round, without the penalties on weights.
            `"magnitude"`: the squared norm of its weights, in the mean over
            the channels of each kernel. `"gradient_flow"`, `"snip"`, `"grasp"`,
            `"synflow"`: see `EarlyCroPCallback`. `"random"`: drawn, as a
            control. Or a function of a `Numbering` (`channels/labels.py`) that
            returns a float array of at least 0, shape `(numbering.size,)`.
        warmup: How long the model trains before the first round: a fraction of
            the epochs, a float in (0, 1), at least one epoch; or an integer of
            at least 0, a number of epochs.
        decay: Likewise how long all rounds take, at least one epoch.
        rounds: Integer, at least 1: the number of cuts. There are fewer if
            `decay` has fewer epochs.
        max_layer_cut: Float in (0, 1): the part of a layer's channels that may
            go, over all rounds.
        scoring_data: As of `EarlyCroPCallback`, for the scores
            `"gradient_flow"`, `"snip"`, `"grasp"` and `"synflow"`.
        of: The `Cost` of which the target is a fraction. Defaults to `None`,
            that of the model as `fit` finds it.
        reconfigure: Dict of further arguments for `reconfigure`:
            `channel_multiple` (default: `"auto"`), `min_channels`, `skip`.
        batch: A `DynamicBatch`, whose data set `fit` trains on.
        log_dir: Path of a folder for TensorBoard; see `DensityLog`.
        submodels: As of `PruneTrainCallback`.

    Attributes:
        reports: List of a `Reconfiguration` for each that took place.
        epoch: Integer, the epoch that is trained or was last; `None` before
            the first one of a `fit`.
        meter: The `EpochMeter` of the `fit`.

    Raises:
        ValueError: If an argument is out of its range; in `fit`, before the
            first step, as `PruneTrainCallback`, and if the target is below what
            `max_layer_cut`, `skip`, `min_channels` and frozen channels leave,
            if warm-up and decay leave no epoch, if `score` fails, or if Keras
            does not run on TensorFlow; after it, if the `train_step` does not
            use the optimizer of the model.
    """

    def __init__(
        self,
        flops: float | None = None,
        *,
        parameters: float | None = None,
        activation_bytes: float | None = None,
        training_flops: float | None = None,
        score: str | Callable[[Numbering], np.ndarray] = "taylor",
        warmup: float = 0.05,
        decay: float = 0.1,
        rounds: int = 4,
        max_layer_cut: float = 0.7,
        scoring_data: Any = None,
        of: Cost | None = None,
        reconfigure: dict[str, Any] | None = None,
        batch: DynamicBatch | None = None,
        log_dir: str | os.PathLike | None = None,
        submodels: Submodels = None,
    ):
        options = target_options(reconfigure)
        super().__init__(1e-4, batch, options, log_dir, submodels)
        self.target = target_of(
            flops=flops,
            parameters=parameters,
            activation_bytes=activation_bytes,
            training_flops=training_flops,
        )
        check_window(warmup, decay, rounds, max_layer_cut)
        check_first_cost(of)
        self.score = score
        self.warmup, self.decay, self.rounds = warmup, decay, rounds
        self.max_layer_cut = max_layer_cut
        self.of = of
        self._score = number_score(score)
        if score in ON_DATA:
            check_scoring_data(score, scoring_data)
            self._score = self._on_data
        self.scoring_data = scoring_data
        self._batches = []  # The first of these data.
        self.forget()

    # What the base asks for.

    def is_due(self, epoch: int) -> bool:
        running = self._round
        return (
            running is not None
            and running.alive is not None
            and running.bounds.end <= epoch + 1
        )

    def plan(self) -> Plan:
        return self._round.plan(self.options)

    def settings(self) -> dict[str, Any]:
        names = ("warmup", "decay", "rounds", "max_layer_cut")
        score = self.score
        if not isinstance(score, str):
            # A text with an address would differ between workers.
            score = getattr(score, "__qualname__", type(score).__name__)
        return {
            "target": str(self.target),
            "score": score,
            **{name: getattr(self, name) for name in names},
        }

    def check(self) -> None:
        check_backend(type(self).__name__)

    def begin(self, numbering: Numbering) -> None:
        self.at_end(self._leave_round)
        if self._is_over:
            return
        if self._first_cost is None:
            cost = self.of or model_cost(self.network, self.meter.input_shapes)
            self._first_cost = getattr(cost, self.target.quantity)
            self._least = least_channels(numbering, self.max_layer_cut)
        first = keras_internals.fit_argument("initial_epoch") or 0
        self._rounds = rounds_of(
            self.target,
            first,
            self.params["epochs"],
            self.warmup,
            self.decay,
            self.rounds,
        )
        if not self.cuts:  # The cuts of another process have met the target.
            self._check_target(numbering)
        if self._score is not None:
            self._score(numbering)
        steps = self.params.get("steps")
        warn_of_short_rounds(self.model, self._rounds, steps)
        warn_of_early_drop(
            *(self.model, self._rounds, steps),
            *(self._fit.siblings, first),
        )

    def forget(self) -> None:
        super().forget()
        self._first_cost = None
        self._least = {}
        self._rounds = []  # Those to come, and the running one.
        self._round = None
        self._is_over = False
        self._steps = 0  # Of the epoch so far.

    def get_state(self) -> dict[str, Any]:
        own = {
            "first_cost": self._first_cost,
            "least": self._least,
            "rounds": [dataclasses.astuple(x) for x in self._rounds],
            "round": self._round and self._round.get_state(),
            "is_over": self._is_over,
            "steps": self._steps,
        }
        return super().get_state() | own

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self._leave_round()
        self._first_cost = state["first_cost"]
        self._least = dict(state["least"])
        self._rounds = [Round(*values) for values in state["rounds"]]
        self._is_over = state["is_over"]
        self._steps = state["steps"]
        if state["round"] is not None:
            self._begin_round(self.epoch)
            self._round.set_state(state["round"])

    # Hooks of Keras.

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        awaits_round = not self._is_over and self._round is None
        if awaits_round and self._rounds[0].begin <= epoch:
            self._begin_round(epoch)

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        # Of data of unknown length, the epoch before tells.
        steps = self.params.get("steps") or max(self._steps, batch + 1)
        self._steps = batch + 1
        if self._round is not None:
            self._round.end_step(self.epoch, batch, steps, self._choice)

    def on_epoch_end(self, epoch, logs=None):
        if self._round is not None:
            self._round.end_epoch(epoch, self._choice)
        super().on_epoch_end(epoch, logs)

    def on_train_end(self, logs=None):
        if self._round is not None:
            _LOG.warning(
                "`fit` has ended before the channels were cut that are chosen: "
                "'%s' keeps them, as far as they have shrunk.",
                self.model.name,
            )
        super().on_train_end(logs)

    def after_cut(self, report: Reconfiguration | None) -> None:
        self._leave_round()
        self._rounds = self._rounds[1:]
        self._is_over = not self._rounds
        if self._is_over:
            self._batches = []

    # The rounds.

    def _begin_round(self, epoch):
        bounds = self._rounds[0]
        limit = bounds.fraction * self._first_cost
        self._round = RunningRound(
            *(self.model, self.network, bounds, limit, self._score, epoch)
        )

    def _leave_round(self):
        if self._round is not None:
            self._round.leave()
        self._round = None

    def _choice(self, numbering):
        return Choice(
            *(self.network, numbering, self.target.quantity),
            *(self.options, self._least, self.meter.input_shapes),
        )

    def _on_data(self, numbering):
        if not self._batches:  # Once: an iterator has them only once.
            self._batches = scoring_batches(self.scoring_data)
            check_batches(self.model, self._batches, self.score, False)
        flow = measured_flow(self.model, self._batches, self.score)
        scores = flow.channel_scores(numbering, self.score)
        return mean_over_workers(self.model, scores)

    def _check_target(self, numbering):
        """Raises a `ValueError` if the model cannot become so small."""
        least = self._choice(numbering).least_cost()
        # A model may have no FLOPs.
        least = least / self._first_cost if self._first_cost else 1.0
        fraction = self._rounds[-1].fraction
        if is_met(least, fraction):
            return
        meant = "" if fraction == self.target.fraction else " at inference"
        raise ValueError(
            f"The target {self.target} asks for {fraction:.3g} of the cost"
            f"{meant}, and the least that '{self.model.name}' can have is "
            f"{least:.3g}: `max_layer_cut`, `skip`, `min_channels`, "
            "`channel_multiple` and frozen channels hold the rest. "
            "keras_prunetrain.channel_report(model) says which are frozen. "
            f"Received: max_layer_cut={self.max_layer_cut}, "
            f"channel_multiple={self.options.channel_multiple!r}"
        )
