"""Decides which channels of a model stay, and why."""

import dataclasses

import keras
import numpy as np

from keras_prunetrain.channels.branches import Addition, constant_branches
from keras_prunetrain.channels.counts import computed, limits, passed_on
from keras_prunetrain.channels.folding import Folding
from keras_prunetrain.channels.labels import Numbering
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.channels.options import CutOptions
from keras_prunetrain.channels.scores import (
    channel_scores,
    label_scores,
    unscored,
)
from keras_prunetrain.channels.selection import Skip, matching_layers, touched
from keras_prunetrain.garbage import no_garbage_collection


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which channels and layers of a model stay in a cut.

    Attributes:
        numbering: The model's `Numbering`.
        alive: Bool array, shape `(numbering.size,)`: which channels stay.
        score: Float array, same shape: how much each channel matters, without
            the weights of removed branches.
        living: For each label of `numbering`, in their order, a bool array of
            the label's shape: which channels this label alone keeps alive;
            `None` if the label does not count.
        additions: Dict from the `id` of an addition's output to the `Addition`
            that is left after its constant branches are removed.
        removed: Keys of the layers that are removed with these branches.
        reasons: Dict from the number of each dead channel that stays to the
            reason, a string.
        offsets: Dict from the `id` of a variable to a float array of its
            shape: the values to add to the variable for folded channels.
    """

    numbering: Numbering
    alive: np.ndarray
    score: np.ndarray
    living: list[np.ndarray | None]
    additions: dict[int, Addition]
    removed: frozenset[str]
    reasons: dict[int, str]
    offsets: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def removes_nothing(self) -> bool:
        return bool(self.alive.all()) and not self.additions

    def keep(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the positions in `numbers` that stay, sorted ints."""
        return np.flatnonzero(self.alive[numbers])


@no_garbage_collection()
def plan_cut(model: keras.Model, options: CutOptions) -> Plan:
    """Returns the `Plan` that drops the channels that score too low.

    Args:
        model: A functional model.
        options: The options of `reconfigure`.

    Raises:
        ValueError: As `reconfigure`.
    """
    numbering = number_channels(model)
    by_label = label_scores(numbering, options.score)
    threshold = options.threshold
    living = [None if x is None else x >= threshold for x in by_label]
    draft = _Draft(model, numbering, options.skip)
    draft.hold(unscored(numbering, by_label), "no weight says if it counts")

    def decide(removed):
        scores = channel_scores(numbering, by_label, removed)
        return scores, scores >= threshold

    draft.choose(decide)
    if options.fold:
        draft.fold(Folding(model, numbering, living))
    draft.round_up(options.channel_multiple, options.min_channels)
    return draft.plan(living)


def plan_of(
    model: keras.Model,
    numbering: Numbering,
    alive: np.ndarray,
    options: CutOptions,
    score: np.ndarray | None = None,
) -> Plan:
    """Returns the `Plan` that keeps the channels that the caller has chosen.

    More channels may stay: frozen and skipped ones, and the best of the others
    if a layer would otherwise keep too few.

    Args:
        model: A functional model.
        numbering: Its `Numbering`.
        alive: Bool array, shape `(numbering.size,)`: the channels to keep.
        options: The options of the cut; only `channel_multiple`,
            `min_channels` and `skip` count here.
        score: Float array, shape `(numbering.size,)`: if more channels than
            `alive` must stay, those with the highest score are chosen first.
            Defaults to `None`, the lowest numbers first.

    Raises:
        ValueError: As `reconfigure`; if `alive` or `score` is no such array, or
            if `numbering` is that of another model.
    """
    _check_numbering(model, numbering)
    alive = _checked_choice(alive, numbering.size)
    score = _checked_score(score, numbering.size)
    living = [
        alive[label.numbers] if label.is_kernel else None
        for label in numbering.labels
    ]
    draft = _Draft(model, numbering, options.skip)
    draft.choose(lambda removed: (score, alive.copy()))
    draft.round_up(options.channel_multiple, options.min_channels)
    return draft.plan(living)


def _check_numbering(model, numbering):
    """Raises a `ValueError` if `numbering` does not fit the current `model`.

    A numbering from before a reconfiguration refers to replaced weights.
    """
    own = {id(variable) for variable in model.variables}
    if any(id(label.weight) not in own for label in numbering.labels):
        raise ValueError(
            f"`numbering` does not belong to '{model.name}' as it is now: a "
            "reconfiguration replaces the weights. Call "
            "`number_channels(model)` anew for each cut."
        )


def _checked_choice(alive, size):
    if not (
        isinstance(alive, np.ndarray)
        and alive.dtype == bool
        and alive.shape == (size,)
    ):
        raise ValueError(
            f"`alive` must be a bool array of shape ({size},), True for each "
            f"channel number that is to stay. Received: alive={alive!r}"
        )
    return alive


def _checked_score(score, size):
    if score is None:
        return np.zeros(size)
    try:
        values = np.asarray(score, float)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (size,) or not np.isfinite(values).all():
        raise ValueError(
            f"`score` must be `None` or a finite array of shape ({size},), a "
            f"number for each channel number. Received: score={score!r}"
        )
    return values


def trial_plan(model: keras.Model, skip: Skip = ()) -> Plan:
    """Returns a `Plan` that drops every second channel, dead or not."""
    numbering = number_channels(model)
    alive = np.arange(numbering.size) % 2 == 0
    # Every layer stays in the graph: the trial is to rebuild each of them.
    for numbers in (
        *computed(numbering),
        *passed_on(numbering),
        *numbering.inner_numbers(),
    ):
        alive[numbers[0]] |= not alive[numbers].any()
    return plan_of(model, numbering, alive, CutOptions(skip=skip))


class _Draft:
    """A `Plan` under construction, which each method takes further."""

    def __init__(self, model, numbering, skip):
        self._model = model
        self._numbering = numbering
        self._skipped = matching_layers(numbering, skip)
        self._reasons = dict(numbering.frozen)
        for key in self._skipped:
            self.hold(touched(numbering, key), f"skip: {key}")
        self._revived = {}
        self._removed = frozenset()
        self._folding = None

    def hold(self, numbers, reason):
        """Keeps `numbers`, whatever their scores."""
        for number in np.asarray(numbers, int).tolist():
            self._reasons.setdefault(number, reason)

    def choose(self, decide):
        """Decides which channels are alive, and which branches are removed.

        Args:
            decide: Function of the keys of the removed layers that returns the
                scores of all channels, and which channels are alive.
        """
        while True:
            # A removed branch may have been the last to keep a channel alive.
            self._score, self._alive = decide(self._removed)
            dead = ~self._alive
            self._revived = {n: r for n, r in self._reasons.items() if dead[n]}
            self._alive[list(self._revived)] = True
            self._additions, removed = constant_branches(
                self._model, self._numbering, self._alive, self._skipped
            )
            if removed == self._removed:
                return
            self._removed = removed

    def fold(self, folding):
        """Removes the foldable channels that need not stay."""
        self._folding = folding
        foldable = folding.foldable.copy()
        foldable[list(self._reasons)] = False
        self._unfolded = self._alive
        self._alive = self._alive & ~foldable

    def round_up(self, channel_multiple, min_channels):
        """Revives channels until every layer and every tensor has enough."""
        found = limits(
            self._numbering, self._removed, channel_multiple, min_channels
        )
        # Repeat until nothing changes: reviving channels for one layer may
        # change the count of another layer.
        while sum(self._revive(limit) for limit in found):
            pass

    def _revive(self, limit):
        """Revives the best dead channels until a `Limit` allows their count.

        Returns whether any channel was revived.
        """
        alive, numbers = self._alive, limit.numbers
        living = int(alive[numbers].sum())
        if limit.allows(living):
            return False
        dead = np.unique(numbers[~alive[numbers]])
        order = np.argsort(-self._score[dead], kind="stable")
        for number in dead[order].tolist():
            if limit.allows(living):
                break
            alive[number] = True
            self._revived[number] = limit.reason
            living += int((numbers == number).sum())
        return len(dead) > int((~alive[dead]).sum())

    def plan(self, living):
        """Returns the `Plan`."""
        offsets = {}
        if self._folding is not None:
            offsets = self._folding.offsets(self._unfolded & ~self._alive)
        gone = _only_in(self._numbering, self._removed)
        return Plan(
            numbering=self._numbering,
            alive=self._alive & ~gone,
            score=self._score,
            living=living,
            additions=self._additions,
            removed=self._removed,
            reasons=self._revived,
            offsets=offsets,
        )


def _only_in(numbering, removed):
    """Returns which channels occur only in the layers `removed`."""
    inside, outside = np.zeros((2, numbering.size), bool)
    for key, outputs in numbering.outputs.items():
        for channels in outputs:
            (inside if key in removed else outside)[channels.numbers] = True
    for label in numbering.labels:  # The model's inputs are only read.
        if label.layer not in removed:
            outside[label.numbers] = True
    return inside & ~outside
