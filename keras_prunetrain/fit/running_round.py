"""One round of a training: channels are scored, chosen, and shrink to zero."""

import logging
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_prunetrain.channels.liveness import Plan, plan_of
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.channels.options import CutOptions
from keras_prunetrain.choice import Choice, distinct
from keras_prunetrain.fit.rounds import Round
from keras_prunetrain.fit.shrinking import ShrinkingChannels
from keras_prunetrain.saliency import NumberScore

_LOG = logging.getLogger("keras_prunetrain")

# Steps at the beginning of a round that score the channels: a quarter of the
# round, but no more than this.
_MOST_SCORED_STEPS = 50


class RunningRound:
    """One round of a `fit`, from its first step to the cut.

    Args:
        model: The model that trains; its step is traced anew.
        network: Its `network_of`.
        bounds: The `Round`.
        limit: Number, the cost that the chosen channels leave.
        score: A score function; `None` for the gradients of the steps.
        epoch: Integer, the epoch in which the round begins.

    Attributes:
        bounds: As passed.
        alive: Bool array, shape `(numbering.size,)`, which channels stay;
            `None` before they are chosen.
    """

    def __init__(
        self,
        model: keras.Model,
        network: keras.Model,
        bounds: Round,
        limit: float,
        score: NumberScore | None,
        epoch: int,
    ):
        self.bounds = bounds
        self.alive = None
        self._model, self._network = model, network
        self._limit = limit
        self._score = score
        self._first_epoch = epoch
        self._scores = None
        self._was_put_off = False
        self._numbering = number_channels(network)
        self._shrinking = ShrinkingChannels(model, self._numbering)
        self._shrinking.attach()
        model.make_train_function(force=True)

    def leave(self) -> None:
        """Leaves nothing of the round in the train step."""
        self._shrinking.detach(self._model)
        self._model.make_train_function(force=True)

    def plan(self, options: CutOptions) -> Plan:
        """Returns the `Plan` of the cut at the end of the round."""
        return plan_of(
            self._network, self._numbering, self.alive, options, self._scores
        )

    def end_step(
        self,
        epoch: int,
        batch: int,
        steps: int,
        choose: Callable[..., Choice],
    ) -> None:
        """Chooses the channels that go, once enough steps have scored them.

        Args:
            epoch: Integer, the epoch that is trained.
            batch: Integer, the step in it that has been done, from 0.
            steps: Integer, the steps of an epoch.
            choose: Function of a `Numbering` that returns a `Choice`.
        """
        if self.alive is not None:
            return
        # A choice that was put off may come after the end of the round.
        end = max(self.bounds.end, epoch + 1)
        total = (end - self._first_epoch) * steps
        done = (epoch - self._first_epoch) * steps + batch + 1
        is_enough = done >= min(_MOST_SCORED_STEPS, max(1, total // 4))
        if is_enough and self._is_measured():
            self.choose(max(1, total - done), epoch, choose)

    def end_epoch(self, epoch: int, choose: Callable[..., Choice]) -> None:
        """Chooses the channels that go, if the round ends with this epoch."""
        if self.alive is None and self.bounds.end <= epoch + 1:
            self.choose(1, epoch, choose)

    def choose(
        self, steps: int, epoch: int, choose: Callable[..., Choice]
    ) -> None:
        """Chooses the channels that go, and lets them shrink.

        Args:
            steps: Integer, at least 1: in so many steps they are zero.
            epoch: Integer, the epoch that is trained.
            choose: As of `end_step`.

        Raises:
            ValueError: If the train step does not use the model's optimizer.
        """
        self._check_step()
        scores = self._measured()
        if not np.isfinite(scores).all():
            self._put_off(epoch)
            return
        choice = choose(self._numbering)
        self._scores = distinct(scores, choice.candidates)
        self.alive = choice.plan(self._scores, self._limit).alive
        self._shrinking.shrink(~self.alive, steps)

    def _is_measured(self):
        """Whether there are scores, and all that is to shrink can shrink.

        A step may train a part of the weights only, and a `LossScaleOptimizer`
        skips the steps whose gradients are not finite.
        """
        if self._shrinking.unseen():
            return False
        return self._score is not None or self._shrinking.scores() is not None

    def _measured(self):
        if self._score is not None:
            return self._score(self._numbering)
        scores = self._shrinking.scores()
        if scores is None:
            return np.full(self._numbering.size, np.nan)
        return scores

    def _check_step(self):
        """Raises a `ValueError` if the optimizers leave out weights."""
        unseen = self._shrinking.unseen()
        if unseen:
            raise ValueError(
                f"The training step of '{self._model.name}' does not call "
                "`apply` of the optimizer that the model was compiled with, or "
                "of one among its attributes, for "
                f"{', '.join(unseen[:3])}, so their channels can neither be "
                "scored nor shrink. Call `self.optimizer.apply(gradients, "
                "self.trainable_variables)` in the model's own `train_step`, "
                "and keep further optimizers as attributes; weights that are "
                "not to be trained need `layer.trainable = False`."
            )

    def _put_off(self, epoch):
        """Scores the channels anew, without what is not finite."""
        if not self._was_put_off:
            _LOG.warning(
                "The gradients of epoch %d are not finite: the channels are "
                "chosen later. If that lasts, the training has diverged: lower "
                "the learning rate.",
                epoch,
            )
        self._was_put_off = True
        self._shrinking.drop_scores()

    def get_state(self) -> dict[str, Any]:
        """Returns the state from which another process can go on."""
        return {
            "first_epoch": self._first_epoch,
            "alive": self.alive,
            "scores": self._scores,
            "was_put_off": self._was_put_off,
            "shrinking": self._shrinking.get_state(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores the state that `get_state` returned."""
        self._first_epoch = state["first_epoch"]
        self.alive, self._scores = state["alive"], state["scores"]
        self._was_put_off = state["was_put_off"]
        self._shrinking.set_state(state["shrinking"])
