"""Which channels are alive, and why."""

import dataclasses
import fnmatch
import functools
import math
import operator
from numbers import Real

import keras
import numpy as np

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.branches import constant_branches
from keras_prunetrain.channels.folding import Folding
from keras_prunetrain.channels.numbering import Numbering, number_channels


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to keep of a model.

    Attributes:
        numbering: The model's `Numbering`.
        alive: Bool array, shape `(numbering.size,)`: which channels stay.
        strength: Float array, same shape: largest weight magnitude of each
            channel in any kernel, on either side.
        threshold: The magnitude below which a channel is dead.
        branches: Dict of the `Branch`es that leave the graph, see
            `constant_branches`.
        removed: Keys of the layers that leave the graph with them.
        kept: Dict from a number that is dead and stays all the same to the
            reason, a string.
        offsets: Dict from the `id` of a variable to a float array of its
            shape: what it takes over from channels that are folded.
    """

    numbering: Numbering
    alive: np.ndarray
    strength: np.ndarray
    threshold: float
    branches: dict
    removed: frozenset
    kept: dict
    offsets: dict = dataclasses.field(default_factory=dict)

    @property
    def removes_nothing(self):
        return bool(self.alive.all()) and not self.branches

    def keep(self, numbers):
        """Returns the positions in `numbers` that stay, sorted ints."""
        return np.flatnonzero(self.alive[numbers])


def plan_cut(
    model,
    threshold=1e-4,
    channel_multiple=1,
    min_channels=1,
    skip=(),
    fold=False,
):
    """Returns the `Plan` for `model`; arguments as in `reconfigure`."""
    check_limits(threshold, channel_multiple, min_channels)
    numbering = number_channels(model)
    reasons = dict(numbering.frozen)
    skipped = matching_layers(numbering, skip)
    for key in skipped:
        for number in _touched(numbering, key):
            reasons.setdefault(number, f"skip: {key}")
    removed = frozenset()
    while True:
        # A branch that leaves may have been the last to hold a channel alive.
        strength = _strength(numbering, removed)
        alive = strength >= threshold
        kept = {n: reason for n, reason in reasons.items() if not alive[n]}
        alive[list(kept)] = True
        branches, found = constant_branches(model, numbering, alive, skipped)
        if found == removed:
            break
        removed = found
    folding, unfolded = None, alive.copy()
    if fold:
        folding = Folding(model, numbering, threshold)
        folding.foldable[list(reasons)] = False
        alive &= ~folding.foldable
    limits = [
        *(
            (numbers, channel_multiple, min_channels)
            for numbers in _written(numbering, removed)
        ),
        # No tensor without channels: each piece of a split keeps one.
        *((numbers, 1, 1) for numbers in _passed_on(numbering, removed)),
    ]
    # Until nothing changes: what one layer revives may upset another's count.
    while sum(_round_up(*x, strength, alive, kept) for x in limits):
        pass
    offsets = folding.offsets(unfolded & ~alive) if fold else {}
    alive &= ~_vanished(numbering, removed)
    return Plan(
        numbering=numbering,
        alive=alive,
        strength=strength,
        threshold=threshold,
        branches=branches,
        removed=removed,
        kept=kept,
        offsets=offsets,
    )


def trial_plan(model, skip=()):
    """Returns a `Plan` that drops every second channel, dead or not."""
    plan = plan_cut(model, threshold=0.0, skip=skip)
    numbering = plan.numbering
    alive = np.arange(numbering.size) % 2 == 0
    alive[list(numbering.frozen)] = True
    for key in matching_layers(numbering, skip):
        alive[list(_touched(numbering, key))] = True
    for numbers in (*_written(numbering), *_passed_on(numbering)):
        alive[numbers[0]] |= not alive[numbers].any()
    return dataclasses.replace(plan, alive=alive)


def matching_layers(numbering, skip):
    """Returns the keys of the layers that `skip` names.

    Args:
        numbering: A `Numbering`.
        skip: Layers, names or patterns (`"stage1_*"`) of names or keys, or
            functions of a layer that return whether it is meant.

    Raises:
        ValueError: If one of them matches no layer.
    """
    if isinstance(skip, str) or not hasattr(skip, "__iter__"):
        skip = (skip,)
    found = []
    for wanted in skip:
        if isinstance(wanted, str):
            matches = [
                key
                for key, layer in numbering.layers.items()
                if fnmatch.fnmatchcase(layer.name, wanted)
                or fnmatch.fnmatchcase(key, wanted)
                or key == wanted
            ]
        else:
            # A layer is callable, too.
            is_wanted = wanted
            if isinstance(wanted, keras.Operation) or not callable(wanted):
                is_wanted = functools.partial(operator.is_, wanted)
            matches = [
                key
                for key, layer in numbering.layers.items()
                if is_wanted(layer)
            ]
        if not matches:
            name = getattr(wanted, "name", wanted)
            raise ValueError(
                f"`skip` names {name!r}, which is no layer of the model and "
                "matches no layer's name. Layers: "
                f"{', '.join(sorted(numbering.layers))}."
            )
        found += matches
    return found


def _touched(numbering, wanted):
    """Returns the numbers that a layer, or a nested model, reads or writes."""

    def within(key):
        return key == wanted or key.startswith(f"{wanted}/")

    vectors = [x.numbers for x in numbering.labels if within(x.layer)]
    for key, outputs in numbering.outputs.items():
        if within(key):
            vectors += [x.numbers for x in outputs]
    return {int(number) for vector in vectors for number in vector}


def slice_magnitudes(label):
    """Returns the largest magnitude of each slice of `label`'s weight.

    Shape `(channels,)`, one for each index of the labelled axis.
    """
    weight = keras_internals.values_of(label.weight)
    others = tuple(i for i in range(weight.ndim) if i != label.axis)
    # Without a third copy for the absolute values.
    return np.maximum(weight.max(axis=others), -weight.min(axis=others))


def _written(numbering, removed=()):
    """Returns the numbers that each layer writes that stays in the graph."""
    return [
        label.numbers
        for label in numbering.labels
        if label.is_kernel
        and label.side == "out"
        and label.layer not in removed
    ]


def _passed_on(numbering, removed=()):
    """Returns the numbers of each tensor that stays in the graph."""
    return [
        np.unique(channels.numbers)
        for key, outputs in numbering.outputs.items()
        for channels in outputs
        if key not in removed and len(channels.numbers)
    ]


def _strength(numbering, removed):
    strength = np.zeros(numbering.size)
    for label in numbering.labels:
        if label.is_kernel and label.layer not in removed:
            magnitudes = slice_magnitudes(label)
            if not np.isfinite(magnitudes).all():
                raise ValueError(
                    f"Cannot tell which channels are dead: '{label.layer}' has "
                    f"weights that are not finite ({label.weight.path}). The "
                    "training has diverged; lower the learning rate."
                )
            np.maximum.at(strength, label.numbers, magnitudes)
    return strength


def _vanished(numbering, removed):
    """Returns which channels only occur in layers that leave the graph."""
    lost, held = np.zeros((2, numbering.size), bool)
    for key, outputs in numbering.outputs.items():
        for channels in outputs:
            (lost if key in removed else held)[channels.numbers] = True
    for label in numbering.labels:  # The model's inputs are only read.
        if label.layer not in removed:
            held[label.numbers] = True
    return lost & ~held


def _round_up(numbers, channel_multiple, min_channels, strength, alive, kept):
    """Revives the strongest dead `numbers`, until there are enough of them.

    A number that stands at several positions, being tied, counts as often.

    Returns whether it revived any.
    """
    living = int(alive[numbers].sum())
    reason = "min_channels" if living < min_channels else "channel_multiple"
    dead = np.unique(numbers[~alive[numbers]])
    for number in dead[np.argsort(-strength[dead], kind="stable")].tolist():
        if living >= min_channels and living % channel_multiple == 0:
            break
        alive[number] = True
        kept[number] = reason
        living += int((numbers == number).sum())
    return len(dead) > int((~alive[dead]).sum())


def check_limits(threshold=0.0, channel_multiple=1, min_channels=1):
    """Raises a `ValueError` if an argument of `plan_cut` is out of range."""
    if not isinstance(threshold, Real) or not 0.0 <= threshold < math.inf:
        raise ValueError(
            "`threshold` must be a finite number, at least 0, in the unit of "
            f"the weights. Received: threshold={threshold}"
        )
    for name, value in (
        ("channel_multiple", channel_multiple),
        ("min_channels", min_channels),
    ):
        if type(value) is not int or value < 1:  # Nor a bool.
            raise ValueError(
                f"`{name}` must be an integer, at least 1. "
                f"Received: {name}={value}"
            )
