"""Why a channel stays, for every layer, in words."""

import collections
import dataclasses

import numpy as np

from keras_prunetrain.channels.liveness import Plan, plan_cut
from keras_prunetrain.channels.scores import magnitude


@dataclasses.dataclass(frozen=True)
class LayerChannels:
    """The channels that one layer computes.

    Attributes:
        layer: Key of the layer; names of nested models come first.
        channels: How many it computes.
        dead: How many of them this layer's own kernel computes with weights
            below the threshold only.
        removable: How many of them can go: dead in every layer that computes
            or reads them, and not frozen.
        coupled_with: Other layers that compute the same channels, because what
            they compute is added, or multiplied, channel by channel.
        held_by: What holds its other channels: frozen ones, and those that are
            dead here and stay, with how many of them each holds.
    """

    layer: str
    channels: int
    dead: int
    removable: int
    coupled_with: tuple[str, ...]
    held_by: tuple[str, ...]


class ChannelReport(tuple):
    """A `LayerChannels` for each layer with a kernel. Prints as a table."""

    def __str__(self):
        head = ("layer", "channels", "dead", "removable", "held by")
        rows = [
            (x.layer, x.channels, x.dead, x.removable, "; ".join(x.held_by))
            for x in self
        ]
        widths = [
            max(len(str(row[i])) for row in [head, *rows]) for i in range(4)
        ]
        lines = [
            "  ".join(
                [
                    str(row[0]).ljust(widths[0]),
                    *(str(row[i]).rjust(widths[i]) for i in (1, 2, 3)),
                    row[4],
                ]
            ).rstrip()
            for row in [head, *rows]
        ]
        return "\n".join(lines)


def channel_report(model, threshold=1e-4, score=magnitude):
    """Says which channels of each layer could go, and what holds the others.

    Args:
        model: A functional or `Sequential` model.
        threshold: Float, at least 0, in the unit of the weights. Defaults to
            `1e-4`.
        score: As in `reconfigure`.

    Returns:
        A `ChannelReport`: a tuple of `LayerChannels`; `print` shows a table.

    Raises:
        ValueError: If `model` has no known graph, or `threshold` is negative.
    """
    return report_of(plan_cut(model, threshold, score=score))


def report_of(plan: Plan) -> ChannelReport:
    """Returns the `ChannelReport` of a `Plan`."""
    numbering = plan.numbering
    holding = collections.defaultdict(list)  # Number -> labels it lives by.
    writers = collections.defaultdict(set)  # Number -> layers that compute it.
    for label, living in zip(numbering.labels, plan.living, strict=True):
        if living is not None:
            for number in set(label.numbers[living].tolist()):
                holding[number].append(label)
    for label in numbering.kernels("out"):
        for number in set(label.numbers.tolist()):
            writers[number].add(label.layer)
    rows = []
    for label, living in zip(numbering.labels, plan.living, strict=True):
        if not label.is_kernel or label.side != "out":
            continue
        dead = np.ones(len(label.numbers), bool)
        if living is not None:
            dead = ~np.isin(label.numbers, label.numbers[living])
        gone = ~plan.alive[label.numbers]
        coupled = set().union(*(writers[n] for n in label.numbers.tolist()))
        rows.append(
            LayerChannels(
                label.layer,
                len(label.numbers),
                int(dead.sum()),
                int(gone.sum()),
                tuple(sorted(coupled - {label.layer})),
                _holders(plan, holding, label, dead & ~gone),
            )
        )
    return ChannelReport(rows)


def _holders(plan, holding, label, positions):
    """Returns what keeps the dead channels at these `positions` of `label`."""
    holders = collections.Counter()
    for number in label.numbers.tolist():
        if number in plan.numbering.frozen:
            holders[plan.numbering.frozen[number]] += 1
    for number in label.numbers[positions].tolist():
        if number in plan.numbering.frozen:
            continue
        if number in plan.kept:
            holders[plan.kept[number]] += 1
        for other in holding[number]:
            if other is not label:
                verb = "writes" if other.side == "out" else "reads"
                holders[f"{other.layer} {verb}"] += 1
    return tuple(f"{reason} ({n})" for reason, n in holders.items())
