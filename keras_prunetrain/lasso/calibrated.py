"""The lasso of a training, from its attachment to its removal."""

import logging
import math
from collections.abc import Collection, Mapping
from typing import Any

import keras

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.labels import Numbering
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.distribution import replica_count
from keras_prunetrain.lasso import attach
from keras_prunetrain.lasso.coupled import CoupledGroups
from keras_prunetrain.lasso.steps import (
    LassoSteps,
    check_proximal,
    may_skip_updates,
    preferred_solver,
)
from keras_prunetrain.trainers import optimizers_of, updating_optimizers

_LOG = logging.getLogger("keras_prunetrain")


class CalibratedLasso:
    """The group lasso on a model that `fit` trains.

    A lasso that layers already carry keeps its factor. If all factors are 0, or
    no layer carries a lasso, the factor is computed from the first batch. A
    lasso that this class has attached is detached at the end.

    Args:
        factor: Float above 0, the factor to use; `None` to compute it.
        solver: `"subgradient"`: the gradient of the penalty acts, and the
            penalty is in the loss unless groups are coupled; `"proximal"`: a
            proximal step acts behind each update; `"auto"`: as is better for
            the optimizer.
        coupled: Boolean. Whether all slices of a channel number are one group
            (`CoupledGroups`), instead of the channels of each kernel's side.

    Attributes:
        factor: Float, the largest of all; `None` before the first batch.
        acts: Boolean. Whether a kernel carries a lasso now.
    """

    def __init__(
        self,
        factor: float | None = None,
        solver: str = "subgradient",
        coupled: bool = False,
    ):
        self.factor = factor
        self._solver = solver
        self._coupled = coupled
        self._steps = None  # The `LassoSteps` of this `fit`, if any.
        self._skipped = ()
        self.acts = False
        self._given_factors = {}
        self._first_batch = None
        self._awaits_step = False
        self._is_in_val_loss = False

    def begin(
        self, model: keras.Model, numbering: Numbering, skipped: Collection[str]
    ) -> None:
        """Attaches the lasso, with the factor that is known so far.

        Args:
            model: The model, before its first step.
            numbering: Its `Numbering`.
            skipped: Keys of layers that get none.
        """
        self._first_batch = None
        attach.detach_lasso(model)  # Left by a `fit` that broke off.
        own = [lasso for lasso, _ in attach.lassos_of(model)]
        if any(lasso.factor for lasso in own):
            self._given_factors = {id(lasso): lasso.factor for lasso in own}
            self.factor = max(self._given_factors.values())
        self._skipped = skipped
        self._steps = self._begun_steps(model)
        self._couple(numbering)
        if not own:
            in_loss = self._steps is None
            attach.attach_lasso(model, numbering, skipped, in_loss)
        elif self._steps is not None:
            attach.take_out_of_loss(model)
        self.acts = bool(attach.lassos_of(model))
        self._set_factors(model)
        self._awaits_step = self.acts
        self._is_in_val_loss = False
        for lasso, _ in attach.lassos_of(model):
            lasso.was_differentiated = False
        _trace_anew(model)

    def _begun_steps(self, model):
        """Returns the steps around the updates, begun; `None` if none."""
        solver, is_trainer = self._solver, not keras_internals.is_graph(model)
        for optimizer in optimizers_of(model):
            # Of a trainer, only the steps say which weights are updated.
            is_known = not is_trainer and optimizer is model.optimizer
            if not optimizer.built and (is_known or _has_members(optimizer)):
                with keras_internals.strategy_scope(model):
                    optimizer.build(model.trainable_variables)
        leaves = updating_optimizers(model)
        if solver == "auto":
            solver = preferred_solver(leaves, is_trainer)
        if solver == "subgradient" and not self._coupled:
            return None
        steps = LassoSteps(leaves, solver, replica_count(model))
        steps.begin()
        return steps

    def _couple(self, numbering):
        if self._coupled:
            self._steps.groups = CoupledGroups(numbering, self._skipped)

    def after_cut(self, network: keras.Model) -> None:
        """Goes on with the smaller `network_of` the model."""
        if self._coupled and self._steps is not None:
            self._couple(number_channels(network))

    def check(self, model: keras.Model) -> None:
        """Raises a `ValueError` if the lasso cannot act on `model`."""
        if self._solver == "proximal":
            check_proximal(model)
        own = [kernel.path for _, kernel in attach.lassos_of(model)]
        if self._coupled and own:
            raise ValueError(
                "coupled=True makes groups of the channels of several layers, "
                "but some layers have a `GroupLasso` of their own, whose "
                "groups are their own channels. Build the model without, or "
                f"pass coupled=False. Received: '{own[0]}' with a `GroupLasso`."
            )

    def penalty(self, model: keras.Model) -> float:
        """Returns the penalty of the lasso, in the loss or not, a float."""
        if self._groups is not None and self.acts:
            return (self.factor or 0.0) * self._norms(model)
        return attach.lasso_penalty(model)

    @property
    def is_in_loss(self) -> bool:
        """Whether the penalty is in the loss, once the lasso has begun."""
        return self.acts and self._steps is None

    @property
    def _groups(self):
        return None if self._steps is None else self._steps.groups

    def _norms(self, model):
        if self._groups is not None:
            return self._groups.sum_of_norms()
        return attach.lasso_norms(model)

    def before_first_batch(self, model: keras.Model) -> None:
        """Measures the weights with which the first batch is computed."""
        if self.factor is None and self.acts:
            self._first_batch = (
                attach.weight_penalties(model),
                self._norms(model),
            )

    def after_first_batch(
        self,
        model: keras.Model,
        logs: Mapping[str, float],
        penalty_ratio: float,
    ) -> None:
        """Computes the factor if it is not known yet.

        Args:
            model: The model.
            logs: Dict. The metrics of the batch.
            penalty_ratio: Float in (0, 1). See `PruneTrainCallback`.

        Raises:
            ValueError: If `logs` has no loss, or a negative one, or if the step
                left the lasso out.
        """
        self._check_step(model)
        if self._first_batch is None:
            return
        (penalties, norms), self._first_batch = self._first_batch, None
        if "loss" not in logs:
            raise ValueError(
                "PruneTrainCallback computes the factor of the lasso from the "
                "'loss' of the first batch, but the logs have none. Return it "
                "from `train_step`, or pass the factor, as `factor`. Received: "
                f"logs={sorted(logs)}"
            )
        task_loss = logs["loss"] - penalties
        if not math.isfinite(task_loss) or task_loss == 0:
            _LOG.warning(
                "The loss of the first batch is %s: the lasso is calibrated "
                "on that of the next epoch.",
                task_loss,
            )
            return
        if task_loss < 0:
            raise ValueError(
                "PruneTrainCallback makes the penalty a share of the loss, "
                "which must be positive for that. Give the layers a "
                "`GroupLasso` with a factor above 0 yourself. Received: a "
                f"loss of {task_loss} for the first batch, without penalties."
            )
        self.factor = calibrated_factor(norms, task_loss, penalty_ratio)
        self._set_factors(model)

    def _check_step(self, model):
        """Raises a `ValueError` if the lasso has no part in the first step."""
        if not self._awaits_step:
            return
        self._awaits_step = False
        if self._steps is not None:
            done = self._steps.were_done or may_skip_updates(model)
            if not done:
                in_loss = "solver='subgradient'"
                if self._coupled:
                    in_loss += " and coupled=False"
                raise ValueError(
                    f"The training step of '{model.name}' leaves the lasso "
                    "out: no optimizer that is an attribute of the model has "
                    "updated a kernel, and no channel would ever "
                    "go. Update them by `self.optimizer.apply(...)` in the "
                    f"model's own `train_step`, or pass {in_loss}."
                )
        elif not any(
            lasso.was_differentiated for lasso, _ in attach.lassos_of(model)
        ):
            raise ValueError(
                f"The training step of '{model.name}' leaves the lasso out: no "
                "gradient of the penalty was computed in the first step, and "
                "no channel would ever go. Keras puts the penalties into "
                "`self.losses`. Add them to the loss inside the gradient's "
                "scope in the model's own `train_step` or `compute_loss`:\n\n"
                "    loss = loss + sum(self.losses)\n\n"
                "`self.compute_loss(x, y, y_pred)` of `keras.Model` does so."
            )

    def before_validation(self, model: keras.Model) -> None:
        """Prepares to note whether the validation loss has the penalties."""
        for lasso, _ in attach.lassos_of(model):
            lasso.was_called = False

    def after_validation(self, model: keras.Model) -> None:
        """Notes whether the validation loss has the penalties.

        A compiled step calls the regularizers only while it is traced.
        """
        if any(lasso.was_called for lasso, _ in attach.lassos_of(model)):
            self._is_in_val_loss = True

    def add_task_loss(self, model: keras.Model, logs: dict[str, float]) -> None:
        """Puts `val_task_loss` into the `logs` of an epoch with validation.

        That is `val_loss` without the penalties on weights, the lasso's and
        others. A metric of that name stays as it is.

        Args:
            model: The model, before the epoch's reconfiguration.
            logs: Dict, modified.
        """
        if self._is_in_val_loss and "val_loss" in logs:
            penalties = attach.weight_penalties(model)
            logs.setdefault("val_task_loss", logs["val_loss"] - penalties)

    def get_state(self) -> dict[str, Any]:
        """Returns what a further process needs to go on, for a backup."""
        return {"factor": self.factor, "is_in_val_loss": self._is_in_val_loss}

    def set_state(self, model: keras.Model, state: dict[str, Any]) -> None:
        """Goes on where `get_state` was called; after `begin`."""
        self.factor = state["factor"]
        self._is_in_val_loss = state["is_in_val_loss"]
        self._first_batch = None
        if self.acts:  # Else `pause` has set them to 0.
            self._set_factors(model)

    def pause(self, model: keras.Model) -> None:
        """Trains without the lasso for the rest of this `fit`."""
        # A `fit` that goes on in these epochs has no step with it.
        self.acts = self._awaits_step = False
        attach.detach_lasso(model)
        for lasso, _ in attach.lassos_of(model):  # The user's own.
            lasso.factor = 0.0
        _trace_anew(model)

    def end(self, model: keras.Model) -> None:
        """Leaves an ordinary model, with the user's own lassos on it."""
        self.acts = False
        if self._steps is not None:
            self._steps.end()
        attach.detach_lasso(model)
        self._set_factors(model)
        model.train_function = model.test_function = None

    def _set_factors(self, model):
        for lasso, _ in attach.lassos_of(model):
            lasso.factor = self._given_factors.get(
                id(lasso), self.factor or 0.0
            )


def calibrated_factor(
    norms: float, task_loss: float, penalty_ratio: float
) -> float:
    """Returns the lasso's factor for a wanted share of the loss (Eq. 3).

        penalty_ratio = factor * norms / (task_loss + factor * norms)

    Args:
        norms: Float above 0. `lasso_norms`, of the weights of `task_loss`.
        task_loss: Float above 0. The loss without any regularizer.
        penalty_ratio: Float in (0, 1).
    """
    return penalty_ratio * task_loss / (norms * (1.0 - penalty_ratio))


def _has_members(optimizer):
    """Whether `build` says which optimizers there are in `optimizer`."""
    return isinstance(optimizer, keras.optimizers.MultiOptimizer)


def _trace_anew(model):
    # The penalties are part of the traced steps.
    model.make_train_function(force=True)
    model.test_function = None
