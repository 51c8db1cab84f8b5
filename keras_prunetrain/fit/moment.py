"""When a training has entered the regime in which its weights hardly turn."""

import math
from typing import Any

import keras
import numpy as np

from keras_prunetrain import keras_internals
from keras_prunetrain.checks import is_count

# In the authors' code, for whole channels.
_CODE_MARGIN = 0.1
_CODE_MOST = 0.99


class Moment:
    """Finds the epoch after which to prune, by the distance of the weights.

    The weights of a network move fast at first. Once the relative change of
    their distance from the initial weights is small, the gradient flow at this
    moment says what the rest of the training needs (EarlyCroP, section 4.2).

    Args:
        when: `"lazy"`, the paper's criterion: the first epoch whose distance
            differs from that of the epoch before by less than `1 - sparsity`
            of the norm of the initial weights. `"paper_code"`, that of the
            authors' code: distances are from the weights after the first epoch,
            and changes are compared with the first of them. An integer: so many
            epochs. `"start"`: before the first step.
        sparsity: Float in (0, 1).
        first: Integer, the least number of epochs.
        last: Integer, the largest number of epochs, after which the moment has
            come in any case.
        structured: Boolean, whether whole channels go. The authors' code has
            another bound for them, 0.1 lower, which no training meets from a
            `sparsity` of 0.9 on.

    Attributes:
        distances: List of the distances after each epoch, floats: the norm of
            the difference, over the norm of the first weights.
        chosen: Integer, after how many epochs the model was pruned; `None`
            before.
    """

    def __init__(
        self,
        when: str | int,
        sparsity: float,
        first: int,
        last: int,
        structured: bool = True,
    ):
        self.distances = []
        self.chosen = None
        self._when = when
        self._sparsity = sparsity
        self._first = first
        self._last = last
        self._structured = structured
        self._origin = None

    def begin(self, model: keras.Model) -> None:
        """Takes note of the weights before the first step."""
        if self._origin is None and self._when != "paper_code":
            self._origin = _values(model)

    def end_epoch(self, model: keras.Model) -> None:
        """Measures the distance after an epoch."""
        if self._origin is None:  # After the first epoch, by the code.
            self._origin = _values(model)
        differences = [
            now - then
            for now, then in zip(_values(model), self._origin, strict=True)
        ]
        first = _norm(self._origin)
        # From weights that are all zero, no distance is near.
        relative = _norm(differences) / first if first else math.inf
        self.distances.append(relative)

    def choose(self) -> None:
        """Takes note that the model is pruned now; frees the first weights."""
        self.chosen = len(self.distances)
        self._origin = None

    @property
    def has_come(self) -> bool:
        """Whether the model is to be pruned now, after the last epoch."""
        done = len(self.distances)
        if not isinstance(self._when, str):
            return done >= self._when
        return done >= self._first and (self._fires() or done >= self._last)

    @property
    def is_late(self) -> bool:
        """Whether it has come only because the last epoch is over."""
        return self._when in ("lazy", "paper_code") and not self._fires()

    @property
    def reason(self) -> str:
        """Why the model is pruned after the last epoch, a part of a sentence.

        Example: `"after 7 epochs (when='lazy'): the distance from the first
        weights has changed by 0.0123 of their norm, less than 0.1"`.
        """
        done = len(self.distances)
        epochs = "1 epoch" if done == 1 else f"{done} epochs"
        text = f"after {epochs} (when={self._when!r})"
        if self._when == "start":
            return "before the first step (when='start')"
        if not isinstance(self._when, str):
            return text
        if self.is_late:
            distances = ", ".join(f"{x:.3g}" for x in self.distances)
            return (
                f"{text}, though the weights have not met the criterion: their "
                f"distances from the first ones are {distances}"
            )
        change, bound = abs(self.distances[-1] - self.distances[-2]), self.bound
        return (
            f"{text}: the distance from the first weights has changed by "
            f"{change:.3g} of their norm, less than {bound:.3g}"
        )

    @property
    def bound(self) -> float:
        """Below what the distance must change in an epoch, a fraction."""
        part = 1.0 - self._sparsity
        if self._when == "lazy":
            return part
        if self._structured:
            part = min(part - _CODE_MARGIN, _CODE_MOST)
        # The first distance, from itself, is 0; the second is the yardstick.
        return self.distances[1] * part if len(self.distances) > 1 else 0.0

    def _fires(self):
        by_code = self._when == "paper_code"
        if len(self.distances) < (3 if by_code else 2):
            return False
        change = abs(self.distances[-1] - self.distances[-2])
        return (by_code or change > 0.0) and change < self.bound

    def get_state(self) -> dict[str, Any]:
        """Returns the state from which another process can go on."""
        return {
            "distances": self.distances,
            "chosen": self.chosen,
            "origin": self._origin,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores the state that `get_state` returned."""
        self.distances = list(state["distances"])
        self.chosen = state["chosen"]
        self._origin = state["origin"]


def default_last_epoch(epochs: int, first: int, later: int) -> int:
    """Returns after how many epochs a model is pruned in any case.

    Half of the epochs, but one more than `first`, so that a criterion can be
    met, and few enough for later cuts.

    Args:
        epochs: Integer, the epochs of `fit`.
        first: Integer, the least number before a criterion counts.
        later: Integer, the epochs that later cuts need.
    """
    return max(1, min(max(epochs // 2, first + 1), epochs - 1 - later))


def check_moment(
    when: str | int, first_epoch: int, last_epoch: int | None
) -> None:
    """Raises a `ValueError` if one of them is out of its range."""
    is_known = isinstance(when, str) and when in ("lazy", "paper_code", "start")
    if not is_known and not is_count(when, 1):
        raise ValueError(
            "`when` must be 'lazy', 'paper_code', 'start', or a number of "
            f"epochs, an integer of at least 1. Received: when={when!r}"
        )
    for name, value in (
        ("first_epoch", first_epoch),
        *([] if last_epoch is None else [("last_epoch", last_epoch)]),
    ):
        if not is_count(value, 1):
            raise ValueError(
                f"`{name}` must be an integer of at least 1. Received: "
                f"{name}={value!r}"
            )
    if last_epoch is not None and last_epoch < first_epoch:
        raise ValueError(
            "`last_epoch` must not be below `first_epoch`. Received: "
            f"first_epoch={first_epoch}, last_epoch={last_epoch}"
        )


def _values(model):
    return [keras_internals.values_of(v) for v in model.trainable_weights]


def _norm(arrays):
    return math.sqrt(
        sum(float(np.square(x, dtype=float).sum()) for x in arrays)
    )
