"""Reports for every layer which channels could go, and why the others stay."""

import collections
import dataclasses

import keras
import numpy as np

from keras_prunetrain.channels.labels import Numbering
from keras_prunetrain.channels.layer_rule import PRODUCES, READS
from keras_prunetrain.channels.liveness import Plan, plan_cut
from keras_prunetrain.channels.options import CutOptions
from keras_prunetrain.channels.rules import rule_for
from keras_prunetrain.channels.scores import Score, magnitude


@dataclasses.dataclass(frozen=True)
class LayerChannels:
    """The channels that one layer computes.

    Attributes:
        layer: Key of the layer; names of nested models come first.
        channels: Number of channels that the layer computes.
        dead: Number of these channels that score below the threshold on the
            output side of the layer's own kernel. 0 for a layer that cannot be
            followed.
        removable: Number of these channels that can go: dead in every layer
            that computes or reads them, and not frozen.
        coupled_with: Other layers that compute the same channels, because
            their outputs are added, or multiplied, channel by channel.
        held_by: Reasons why the frozen channels, and the channels that are
            dead in this layer, stay; each with its number of channels.
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


def channel_report(
    model: keras.Model, threshold: float = 1e-4, score: Score = magnitude
) -> ChannelReport:
    """Says which channels of each layer could go, and why the others stay.

    Args:
        model: A functional or `Sequential` model.
        threshold: Float, at least 0, in the unit of the score: with the
            default, that of the weights. Defaults to `1e-4`.
        score: As in `reconfigure`.

    Returns:
        A `ChannelReport`: a tuple with one `LayerChannels` for each layer that
        computes channels with a kernel, in running order. `print` shows a
        table.

    Raises:
        ValueError: If `model` is no model or has no known graph, if
            `threshold` is out of its range, or if a weight is not finite.
    """
    options = CutOptions(threshold=threshold, score=score)
    return report_of(plan_cut(model, options))


def report_of(plan: Plan) -> ChannelReport:
    """Returns the `ChannelReport` of a `Plan`."""
    numbering = plan.numbering
    computed = _computed(numbering)
    living = collections.defaultdict(list)  # Number -> labels keeping it alive.
    for label, lives in zip(numbering.labels, plan.living, strict=True):
        if lives is not None:
            for number in set(label.numbers[lives].tolist()):
                living[number].append(label)
    writers = collections.defaultdict(set)  # Number -> layers that compute it.
    for key, numbers in computed.items():
        for number in numbers.tolist():
            writers[number].add(key)
    own = collections.defaultdict(list)  # Layer -> output labels of kernels.
    for label in numbering.kernels("out"):
        own[label.name].append(label)
    rows = []
    for key, numbers in computed.items():
        dead = np.array(
            [_is_dead(living[n], own[key]) for n in numbers.tolist()], bool
        )
        gone = ~plan.alive[numbers]
        coupled = set().union(*(writers[n] for n in numbers.tolist())) - {key}
        rows.append(
            LayerChannels(
                layer=key,
                channels=len(numbers),
                dead=int(dead.sum()),
                removable=int(gone.sum()),
                coupled_with=tuple(sorted(coupled)),
                held_by=_reasons(
                    plan, living, own[key], numbers, numbers[dead & ~gone]
                ),
            )
        )
    return ChannelReport(rows)


def _computed(numbering: Numbering) -> dict[str, np.ndarray]:
    """Returns the numbers that each layer with a kernel computes, by name.

    Where a layer computes several for itself, each has a name of its own.

    Layers that cannot be followed are included if they have a weight that may
    be a kernel: for example recurrent layers, or a model in a wrapper.
    """
    kernels = collections.defaultdict(dict)
    for name, label in numbering.computed().items():
        kernels[label.layer][name] = label.numbers
    labelled = {id(label.weight) for label in numbering.labels}
    computed = {}
    for key, layer in numbering.layers.items():
        if key in kernels:
            computed.update(kernels[key])
        elif key in numbering.outputs and any(
            len(weight.shape) > 1 and id(weight) not in labelled
            for weight in getattr(layer, "weights", ())
        ):
            rule = rule_for(layer)
            if rule is None or rule.flow in (PRODUCES, READS):
                computed[key] = numbering.outputs[key][0].numbers
    return computed


def _is_dead(labels, own):
    """Whether none of a layer's `own` labels is among the living `labels`."""
    return bool(own) and not any(x is y for x in labels for y in own)


def _reasons(plan, living, own, numbers, dead):
    """Returns why the frozen channels of `numbers` and the `dead` ones stay."""
    reasons = collections.Counter()
    frozen = plan.numbering.frozen
    for number in numbers.tolist():
        if number in frozen:
            reasons[frozen[number]] += 1
    for number in dead.tolist():
        if number in frozen:
            continue
        if number in plan.reasons:
            reasons[plan.reasons[number]] += 1
        for label in living[number]:
            if not any(label is x for x in own):
                verb = "writes" if label.side == "out" else "reads"
                reasons[f"{label.layer} {verb}"] += 1
    return tuple(f"{reason} ({n})" for reason, n in reasons.items())
