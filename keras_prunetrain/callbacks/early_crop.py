"""EarlyCroP: one cut, at the moment and by the score of the gradient flow."""

import logging
import math
import os
from collections.abc import Mapping
from typing import Any

from keras_prunetrain.batching import DynamicBatch
from keras_prunetrain.callbacks.reconfiguring import ReconfiguringCallback
from keras_prunetrain.channels.labels import Numbering
from keras_prunetrain.channels.liveness import Plan
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.checks import is_number
from keras_prunetrain.choice import Choice, distinct
from keras_prunetrain.distribution import mean_over_workers
from keras_prunetrain.fit.arguments import check_no_score
from keras_prunetrain.fit.epoch_logs import has_diverged
from keras_prunetrain.fit.masks import Masks, kernels_of, largest
from keras_prunetrain.fit.moment import Moment, check_moment
from keras_prunetrain.fit.scoring_data import scoring_batches
from keras_prunetrain.gradient_flow import check_batches, measured_flow
from keras_prunetrain.saliency import ON_DATA

_LOG = logging.getLogger("keras_prunetrain")

_QUANTITIES = {
    "channels": "channels",
    "parameters": "parameters",
    "flops": "forward_flops",
}


class EarlyCroPCallback(ReconfiguringCallback):
    """Makes the model smaller once, at the moment that the training gives.

    The channels go that matter least to the gradient flow (`gradient_flow`),
    once the weights have entered the regime in which they hardly turn. From
    then on the small model trains at full speed: no regularizer, no threshold.

    Example:

    ```python
    pruning = EarlyCroPCallback(0.5, scoring_data=train)
    model.fit(train, epochs=80, callbacks=[pruning])
    ```

    The history gains `weight_distance`: the distance of the weights from those
    at first, over the norm of these, per epoch up to the cut, and NaN after it.
    What `PruneTrainCallback` says of the model's objects, of `batch`, of the
    history and of the state after `fit` holds for this callback, too.

    Args:
        sparsity: Float in (0, 1): the part of the model that goes.
        scoring_data: Training data, of which the first five batches are used: a
            `tf.data.Dataset` of batches, or a tuple of arrays, `(x, y)`.
        target: What `sparsity` is a part of: `"channels"` (those that are not
            frozen), `"parameters"` or `"flops"` (of inference).
        when: `"lazy"`, the paper's criterion; `"paper_code"`, that of the
            authors' code; `"start"`, before the first step (CroP); or an
            integer, so many epochs. See `Moment`.
        score: How much a channel or a weight matters: `"gradient_flow"`, the
            paper's; or a score that was made for networks before their
            training: `"snip"`, `"grasp"` or `"synflow"`.
        structured: Boolean. Whether whole channels go. Otherwise the weights of
            all kernels that matter least go one by one: they are zero from then
            on, in every step of this callback's `fit`, and so are their slots.
            The shapes stay, so this saves no time. `mask_report(model)` counts
            the zeros.
        iterations: Integer, at least 1: the number of steps in which channels
            or weights are scored anew and removed, all at the same moment.
        first_epoch: Integer, at least 1: so many epochs are trained in any case
            before a criterion counts.
        last_epoch: Integer: after so many epochs, the channels go though the
            criterion has not been met, and a warning says so. Defaults to
            `None`, half of the epochs.
        reconfigure: Dict of further arguments for `reconfigure`:
            `channel_multiple`, `min_channels`, `skip`.
        batch: A `DynamicBatch`, whose data set `fit` trains on.
        log_dir: Path of a folder for TensorBoard; see `DensityLog`.

    Attributes:
        moment: The `Moment`: `moment.distances` is the curve of the distance.
        reports: List of a `Reconfiguration` for each that took place.
        epoch: Integer, the epoch that is trained or was last; `None` before
            the first one of a `fit`.
        meter: The `EpochMeter` of the `fit`.

    Raises:
        ValueError: If an argument is out of its range; in `fit`, before the
            first step, as `PruneTrainCallback`, and if the scoring data have no
            batch or do not fit the model; later, if the loss cannot be
            differentiated twice.

    Reference:
        - [Rachwan et al., 2022](https://arxiv.org/abs/2206.10451), Winning the
          Lottery Ahead of Time: Efficient Early Network Pruning.
    """

    def __init__(
        self,
        sparsity: float,
        scoring_data: Any,
        target: str = "channels",
        when: str | int = "lazy",
        *,
        score: str = "gradient_flow",
        structured: bool = True,
        iterations: int = 1,
        first_epoch: int = 1,
        last_epoch: int | None = None,
        reconfigure: dict[str, Any] | None = None,
        batch: DynamicBatch | None = None,
        log_dir: str | os.PathLike | None = None,
    ):
        super().__init__(batch=batch, reconfigure=reconfigure, log_dir=log_dir)
        check_no_score(reconfigure)
        _check_what_goes(sparsity, target, score, structured)
        check_moment(when, iterations, first_epoch, last_epoch)
        self.sparsity = float(sparsity)
        self.scoring_data = scoring_data
        self.target = target
        self.when = when
        self.score = score
        self.structured = structured
        self.iterations = iterations
        self.first_epoch, self.last_epoch = first_epoch, last_epoch
        self.moment = None
        self._batches = []
        self.forget()

    def is_due(self, epoch: int) -> bool:
        return (
            not self._is_over and self.when != "start" and self.moment.has_come
        )

    def plan(self) -> Plan:
        """Returns the `Plan` of the next of `iterations` cuts."""
        numbering = number_channels(self.model)
        flow = measured_flow(self.model, self._batches, self.score)
        scores = flow.channel_scores(numbering, self.score)
        scores = mean_over_workers(self.model, scores)
        choice = self._choice(numbering)
        done = (self._cuts_done + 1) / self.iterations
        limit = (1.0 - self.sparsity) ** done * self._first_cost
        return choice.plan(distinct(scores, choice.candidates), limit)

    def settings(self) -> dict[str, Any]:
        names = (
            *("sparsity", "target", "when", "score"),
            *("structured", "iterations"),
        )
        return {name: getattr(self, name) for name in names}

    def begin(self, numbering: Numbering) -> None:
        self.at_end(self._detach_masks)
        if self._is_over:
            if self._masks is not None:
                self._masks.attach(self.model)
            return
        self._batches = scoring_batches(self.scoring_data)
        check_batches(self.model, self._batches, self.score)
        if self.structured:
            self._check_target(numbering)
        if self.moment is None:
            last = self.last_epoch or max(1, self.params["epochs"] // 2)
            self.moment = Moment(
                self.when,
                self.sparsity,
                self.first_epoch,
                last,
                self.structured,
            )
        self.moment.begin(self.model)

    def forget(self) -> None:
        super().forget()
        self.moment = None
        self._is_over = False
        self._first_cost = None
        self._cuts_done = 0
        self._masks = None

    def get_state(self) -> dict[str, Any]:
        own = {
            "moment": self.moment and self.moment.get_state(),
            "is_over": self._is_over,
            "first_cost": self._first_cost,
            # By position: another process may count names otherwise.
            "masks": self._masks and list(self._masks.masks.values()),
        }
        return super().get_state() | own

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if state["moment"] is not None:
            self.moment.set_state(state["moment"])
        self._is_over = state["is_over"]
        self._first_cost = state["first_cost"]
        if state["masks"] is not None:
            names = kernels_of(self.model)
            masks = dict(zip(names, state["masks"], strict=True))
            self._masks = Masks(self.model, masks)
            self._masks.attach(self.model)

    def on_epoch_begin(self, epoch, logs=None):
        if self.when == "start" and not self._is_over:
            self.epoch = epoch  # Cut before the base counts what it costs.
            self._prune(logs)
        super().on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch, logs=None):
        distance = math.nan
        if not self._is_over:
            self.moment.end_epoch(self.model)
            distance = self.moment.distances[-1]
        if logs is not None:
            self._epoch_logs.add(logs, {"weight_distance": distance})
        super().on_epoch_end(epoch, logs)

    def on_train_end(self, logs=None):
        if not self._is_over:
            _LOG.warning(
                "'%s' has not been pruned: this `fit` has ended before the "
                "moment when=%r, %d epochs after the first step.",
                self.model.name,
                self.when,
                len(self.moment.distances),
            )
        super().on_train_end(logs)

    def reconfigure(self, logs: Mapping[str, float] | None) -> None:
        if self.moment.is_late:
            _LOG.warning(
                "The weights of '%s' have not met the criterion when=%r within "
                "%d epochs: the model is pruned now. Their distances from the "
                "first weights: %s",
                self.model.name,
                self.when,
                len(self.moment.distances),
                ", ".join(f"{x:.3g}" for x in self.moment.distances),
            )
        self._prune(logs)

    def _prune(self, logs):
        """Removes channels or weights, in `iterations` steps."""
        if has_diverged(self.model, logs):
            super().reconfigure(logs)  # Says so; the next epoch tries again.
            return
        for done in range(self.iterations):
            self._cuts_done = done
            if self.structured:
                super().reconfigure(logs)
            else:
                self._mask()
        self._is_over = True
        self._batches = []
        self.moment.drop_weights()

    def _mask(self):
        """Sets the weights to zero that matter least, and lets them stay so."""
        self._detach_masks()
        flow = measured_flow(self.model, self._batches, self.score)
        by_weight = flow.weight_scores(self.score)
        scores = {
            name: mean_over_workers(self.model, by_weight[id(v)])
            for name, v in kernels_of(self.model).items()
        }
        total = sum(x.size for x in scores.values())
        done = (self._cuts_done + 1) / self.iterations
        kept = max(1, round((1.0 - self.sparsity) ** done * total))
        self._masks = Masks(self.model, largest(scores, kept))
        self._masks.attach(self.model)

    def _detach_masks(self):
        if self._masks is not None:
            self._masks.detach(self.model)

    def _check_target(self, numbering):
        """Raises a `ValueError` if the model cannot become so small."""
        choice = self._choice(numbering)
        self._first_cost = choice.total
        # A model may have no channel that is not frozen.
        least = choice.least_cost() / choice.total if choice.total else 1.0
        if 1.0 - self.sparsity < least:
            raise ValueError(
                f"`sparsity` of the {self.target} of '{self.model.name}' can "
                f"be at most {1.0 - least:.3g}: every layer keeps a channel, "
                "and `skip`, `min_channels` and frozen channels hold others. "
                f"Received: sparsity={self.sparsity}"
            )

    def _choice(self, numbering):
        return Choice(
            self.model,
            numbering,
            _QUANTITIES[self.target],
            self.options,
            {},
            self.meter.input_shapes,
        )


def _check_what_goes(sparsity, target, score, structured):
    if not is_number(sparsity) or not 0.0 < sparsity < 1.0:
        raise ValueError(
            "`sparsity` is the part of the model that goes, a number above 0 "
            f"and below 1. Received: sparsity={sparsity!r}"
        )
    if target not in _QUANTITIES:
        raise ValueError(
            f"`target` must be one of {', '.join(map(repr, _QUANTITIES))}. "
            f"Received: target={target!r}"
        )
    if score not in ON_DATA:
        raise ValueError(
            f"`score` must be one of {', '.join(map(repr, ON_DATA))}. "
            f"Received: score={score!r}"
        )
    if not structured and target != "channels":
        raise ValueError(
            "`target` says what whole channels are to save. Leave it out with "
            "structured=False, where `sparsity` is the part of all weights of "
            f"kernels. Received: target={target!r}"
        )
