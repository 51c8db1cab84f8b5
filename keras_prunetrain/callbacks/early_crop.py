"""EarlyCroP: one cut, at the moment and by the score of the gradient flow."""

import logging
import math
import os
from collections.abc import Mapping
from typing import Any

from keras_prunetrain import keras_internals
from keras_prunetrain.batching import DynamicBatch
from keras_prunetrain.callbacks.reconfiguring import ReconfiguringCallback
from keras_prunetrain.channels.labels import Numbering
from keras_prunetrain.channels.liveness import Plan
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.choice import Choice, check_sparsity, distinct
from keras_prunetrain.distribution import mean_over_workers
from keras_prunetrain.fit.arguments import (
    check_backend,
    check_iterations,
    check_no_score,
    check_what_goes,
)
from keras_prunetrain.fit.epoch_logs import cannot_be_cut
from keras_prunetrain.fit.masks import (
    Masks,
    check_masked,
    check_structured,
    kernels_of,
    prune_weights,
)
from keras_prunetrain.fit.moment import (
    Moment,
    check_moment,
    default_last_epoch,
)
from keras_prunetrain.fit.scoring_data import scoring_batches
from keras_prunetrain.scoring import check_batches, measured_flow
from keras_prunetrain.trainers import Submodels

_LOG = logging.getLogger("keras_prunetrain")

_QUANTITIES = {
    "channels": "channels",
    "parameters": "parameters",
    "flops": "forward_flops",
}


class EarlyCroPCallback(ReconfiguringCallback):
    """Makes the model smaller once, early, when its weights move little.

    After each epoch the callback measures how far the weights are from their
    first values. Once this distance hardly changes (`when`), the callback
    removes the channels that matter least to the gradient flow, the squared
    norm of the loss's gradient. The small model then trains on as usual.

    Example:

    ```python
    pruning = EarlyCroPCallback(0.5, scoring_data=train)
    model.fit(train, epochs=80, callbacks=[pruning])
    ```

    The history gains `weight_distance`: the norm of the weights minus the first
    weights, over the norm of the first weights, per epoch up to the first cut,
    and NaN after it. What `PruneTrainCallback` says of the model's objects, of
    `batch`, the history and the state after `fit` holds for this one, too.

    Args:
        sparsity: Float in (0, 1): the part of the model that goes.
        scoring_data: Training data, of which the first five batches are used: a
            `tf.data.Dataset` of batches, or a tuple of arrays, `(x, y)`.
        target: What `sparsity` is a part of: `"channels"` (those that are not
            frozen), `"parameters"` or `"flops"` (of inference).
        when: `"lazy"`, the paper's criterion: the first epoch that changes
            `weight_distance` by less than `1 - sparsity`. `"paper_code"`, that
            of the authors' code: distances are from the weights after the first
            epoch, and a change is compared with the first one. `"start"`:
            before the first step (CroP). Or an integer of at least 1: after so
            many epochs.
        score: How much a channel or a weight matters: `"gradient_flow"`, the
            paper's; or a score that was made for networks before their
            training: `"snip"`, `"grasp"` or `"synflow"`.
        structured: Boolean. Whether whole channels go. Otherwise the weights of
            all kernels that matter least go one by one: they are zero from then
            on, in every step of this callback's `fit`, and so are their slots.
            Each kernel keeps one at least. The shapes stay, so this saves no
            time, and takes no `reconfigure` and no `batch`.
            `mask_report(model)` counts the zeros.
        iterations: Integer, at least 1: the number of cuts, before each of
            which the channels or weights are scored anew. Each cut leaves the
            same part of what the one before has left.
        interval: Integer, the number of epochs between these cuts, in which the
            rest is trained. Defaults to `0`: all at the same moment.
        first_epoch: Integer, at least 1: so many epochs are trained in any case
            before a criterion counts.
        last_epoch: Integer: after so many epochs, the channels go though the
            criterion has not been met, and a warning says so. Defaults to
            `None`: half of the epochs, one more than `first_epoch` at least,
            fewer if later cuts need the rest. Both do not count where `when`
            is an integer or `"start"`.
        reconfigure: Dict of further arguments for `reconfigure`:
            `channel_multiple`, `min_channels`, `skip`.
        batch: A `DynamicBatch`, whose data set `fit` trains on.
        log_dir: Path of a folder for TensorBoard; see `DensityLog`.
        submodels: As of `PruneTrainCallback`.

    Attributes:
        moment: `moment.distances` is the list of `weight_distance`, and
            `moment.chosen` the number of epochs after which the model was
            pruned, `None` before; `None` before the first `fit`.
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
        interval: int = 0,
        first_epoch: int = 1,
        last_epoch: int | None = None,
        reconfigure: dict[str, Any] | None = None,
        batch: DynamicBatch | None = None,
        log_dir: str | os.PathLike | None = None,
        submodels: Submodels = None,
    ):
        super().__init__(1e-4, batch, reconfigure, log_dir, submodels)
        check_backend(type(self).__name__)
        check_no_score(reconfigure)
        check_what_goes(sparsity, target, tuple(_QUANTITIES), score)
        check_structured(structured, target, reconfigure, batch)
        check_moment(when, first_epoch, last_epoch)
        check_iterations(iterations, interval)
        self.sparsity = float(sparsity)
        self.scoring_data = scoring_data
        self.target = target
        self.when = when
        self.score = score
        self.structured = structured
        self.iterations, self.interval = iterations, interval
        self.first_epoch, self.last_epoch = first_epoch, last_epoch
        self.moment = None
        self._batches = []
        self.forget()

    def is_due(self, epoch: int) -> bool:
        if self._is_over:
            return False
        if self._cuts_done:
            return self._epochs_since >= self.interval
        return self.when != "start" and self.moment.has_come

    @property
    def _is_over(self):
        return self._cuts_done == self.iterations

    @property
    def _left(self):
        """What the next cut leaves, a fraction of the first model."""
        return (1.0 - self.sparsity) ** (
            (self._cuts_done + 1) / self.iterations
        )

    def plan(self) -> Plan:
        """Returns the `Plan` of the next of `iterations` cuts."""
        numbering = number_channels(self.network)
        flow = measured_flow(self.model, self._batches, self.score)
        scores = flow.channel_scores(numbering, self.score)
        scores = mean_over_workers(self.model, scores)
        choice = self._choice(numbering)
        limit = self._left * self._first_cost
        return choice.plan(distinct(scores, choice.candidates), limit)

    def settings(self) -> dict[str, Any]:
        names = (
            *("sparsity", "target", "when", "score"),
            *("structured", "iterations", "interval"),
        )
        return {name: getattr(self, name) for name in names}

    def begin(self, numbering: Numbering) -> None:
        self.at_end(self._detach_masks)
        if self._masks is not None:
            self._masks.attach(self.model)
        if self._is_over:
            return
        if not self.structured:
            check_masked(self.model, self.sparsity)
        # Once: an iterator has them only once.
        self._batches = self._batches or scoring_batches(self.scoring_data)
        arguments = self.model, self._batches, self.score
        check_batches(*arguments, derivatives=self.when != "start")
        if self._cuts_done:
            return
        if self.structured and not self.cuts:
            choice = self._choice(numbering)
            check_sparsity(choice, self.sparsity, self.target, self.model.name)
            self._first_cost = choice.total
        if self.moment is None:
            self.moment = Moment(
                *(self.when, self.sparsity, self.first_epoch),
                *(self._last_epoch(), self.structured),
            )
        self.moment.begin(self.model)

    def _last_epoch(self):
        if self.last_epoch is not None:
            return self.last_epoch
        begun = keras_internals.fit_argument("initial_epoch") or 0
        epochs = self.params["epochs"] - begun
        later = (self.iterations - 1) * self.interval
        return default_last_epoch(epochs, self.first_epoch, later)

    def forget(self) -> None:
        super().forget()
        self.moment = None
        self._first_cost = None
        self._cuts_done = 0
        self._epochs_since = 0  # The last of them.
        self._masks = None

    def get_state(self) -> dict[str, Any]:
        own = {
            "moment": self.moment and self.moment.get_state(),
            "first_cost": self._first_cost,
            "cuts_done": self._cuts_done,
            "epochs_since": self._epochs_since,
            # By position: another process may count names otherwise.
            "masks": self._masks and list(self._masks.masks.values()),
        }
        return super().get_state() | own

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if state["moment"] is not None:
            self.moment.set_state(state["moment"])
        self._first_cost = state["first_cost"]
        self._cuts_done = state["cuts_done"]
        self._epochs_since = state["epochs_since"]
        if state["masks"] is not None:
            masks = zip(kernels_of(self.model), state["masks"], strict=True)
            self._masks = Masks(self.model, dict(masks))
            self._masks.attach(self.model)

    def on_epoch_begin(self, epoch, logs=None):
        if self.when == "start" and not self._cuts_done:
            self.epoch = epoch  # Cut before the base counts what it costs.
            self.reconfigure(logs)
        super().on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch, logs=None):
        distance = math.nan
        if self._cuts_done:
            self._epochs_since += 1
        else:
            self.moment.end_epoch(self.model)
            distance = self.moment.distances[-1]
        if logs is not None:
            self._epoch_logs.add(logs, {"weight_distance": distance})
        super().on_epoch_end(epoch, logs)

    def on_train_end(self, logs=None):
        if not self._is_over:
            _LOG.warning(
                "'%s' has been pruned in %d of %d iterations: this `fit` has "
                "ended before %s.",
                self.model.name,
                self._cuts_done,
                self.iterations,
                f"{self.interval} epochs had passed since the last of them"
                if self._cuts_done
                else f"the moment when={self.when!r}, "
                f"{len(self.moment.distances)} epochs after the first step",
            )
        super().on_train_end(logs)

    def reconfigure(self, logs: Mapping[str, float] | None) -> None:
        """Removes what goes now: all, or the part of one iteration."""
        if cannot_be_cut(self.model, self.epoch, logs):
            return
        if not self._cuts_done:
            text = f"'{self.model.name}' is pruned {self.moment.reason}."
            is_late = self.moment.is_late
            self.note(text, logging.WARNING if is_late else logging.INFO)
            self.moment.choose()
        for _ in range(1 if self.interval else self.iterations):
            if self.structured:
                super().reconfigure(logs)
            else:
                arguments = self.model, self._batches, self.score
                self._masks = prune_weights(*arguments, self._left, self._masks)
                self._fit.forget_best()
            self._cuts_done += 1
        self._epochs_since = 0
        if self._is_over:
            self._batches = []

    def _detach_masks(self):
        if self._masks is not None:
            self._masks.detach(self.model)

    def _choice(self, numbering):
        return Choice(
            self.network,
            numbering,
            _QUANTITIES[self.target],
            self.options,
            {},
            self.meter.input_shapes,
        )
