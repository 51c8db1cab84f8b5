"""The labels of the weights of one call: which axis has which numbers."""

from collections.abc import Callable

import numpy as np

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.flows import (
    NotFollowed,
    read_positions,
    repeats,
)
from keras_prunetrain.channels.labels import Label
from keras_prunetrain.channels.layer_rule import MIXES, READS, LayerRule
from keras_prunetrain.channels.numbers import Channels
from keras_prunetrain.channels.walk import Visit


def weight_labels(
    visit: Visit, rule: LayerRule, written: list[Channels]
) -> list[Label]:
    """Returns the labels of the weights of a layer.

    Args:
        visit: The `Visit` of a call.
        rule: The `LayerRule` of its layer.
        written: List of the `Channels` that the call writes.

    Raises:
        NotFollowed: If the rule does not fit the weights.
    """
    if rule.flow == MIXES:
        return _labels_by_path(visit, rule, written)
    labels = _labels_by_name(visit, rule, written)
    if rule.flow == READS and not any(x.is_kernel for x in labels):
        raise NotFollowed("`in_axis` of its rule names none of its weights")
    return labels


def _labels_by_name(visit, rule, written):
    labels = []
    for weight in getattr(visit.call.operation, "weights", ()):
        name = keras_internals.weight_name(weight)
        axes = {
            side: by_name[name]
            for side, by_name in (("in", rule.in_axis), ("out", rule.out_axis))
            if name in by_name
        }
        if not axes and rule.flow == READS:
            continue
        if not axes and (rule.in_axis or rule.out_axis or not rule.freezes):
            raise NotFollowed(f"its rule does not say where '{name}' lies")
        for side, axis in axes.items():
            channels = visit.inputs[0] if side == "in" else written[0]
            axis = _checked_axis(
                weight, channels.axis - 1 if axis is None else axis
            )
            size = weight.shape[axis]
            numbers = channels.numbers
            if side == "in":
                numbers = _as_read(numbers, visit.call.operation, rule, size)
            if len(numbers) == size:
                is_kernel = len(axes) == 2 or rule.flow == READS
                labels.append(
                    Label(
                        *(visit.key, weight, axis, numbers, side, is_kernel),
                        name=visit.key,
                    )
                )
            elif size != 1:  # All channels share an axis of size 1.
                raise NotFollowed(
                    f"its rule expects {len(numbers)} channels on axis {axis} "
                    f"of '{name}', which has shape {tuple(weight.shape)}"
                )
    return labels


def inner_labels(
    visit: Visit, rule: LayerRule, numbers: Callable[[str, int], np.ndarray]
) -> list[Label]:
    """Returns the labels of what a layer computes and reads itself.

    Args:
        visit: The `Visit` of a call.
        rule: The `LayerRule` of its layer.
        numbers: Function of the argument that counts them, and of their count.
            The function returns their numbers, the same in every call.

    Raises:
        NotFollowed: If the rule does not fit the weights.
    """
    labels = []
    for names, sides in rule.inner.items():
        argument = names if isinstance(names, str) else names[0]
        for side, axes in zip(("out", "in"), sides, strict=True):
            found = [
                _inner_label(visit, rule, path, axis, side, argument, numbers)
                for path, axis in axes.items()
                # A layer may have no biases.
                if _at_path(visit.call.operation, path) is not None
            ]
            if not any(label.is_kernel for label in found):
                raise NotFollowed(
                    f"it has none of the kernels that `inner[{names!r}]` of "
                    f"its rule names: {', '.join(axes)}"
                )
            labels += found
    return labels


def seen_outside(
    visit: Visit, rule: LayerRule, count: int, is_first: bool
) -> str | None:
    """Returns why what a layer computes for itself stays, or `None`.

    Args:
        visit: The `Visit` of a call.
        rule: The `LayerRule` of its layer.
        count: Integer, how many of them there are.
        is_first: Whether they are the first that the rule names: the heads of
            an attention, each of which has scores.
    """
    heads = next(iter(rule.inner.values()))[0]
    if is_first and any(
        _is_added_wrongly(_at_path(visit.call.operation, path))
        for path in heads
    ):
        return "Keras adds a bias of shape (n, 1) along the wrong axis"
    # So many heads of queries may read each head of keys.
    counts = {count, count * repeats(rule, visit.call.operation), None}
    further = visit.call.outputs[1:]
    if any(is_first or counts & {*x.shape[1:]} for x in further):
        return "another output may have an entry for each of them"
    # The axis of heads in a mask is one that other inputs lack, and its last
    # two are the steps that attend and those that they attend to.
    read = {*read_positions(visit, rule).values()}
    shapes = [x.shape for x in visit.inputs]
    rank = min((len(shapes[i]) for i in read), default=1)
    masks = [x for i, x in enumerate(shapes) if i not in read]
    if any(len(x) > rank and counts & {*x[1:-2]} for x in masks):
        return "its mask may have an entry for each of them"
    return None


def _is_added_wrongly(weight):
    """Whether a weight is a bias of shape `(n, 1)`, for any n."""
    return (
        weight is not None
        and keras_internals.weight_name(weight) == "bias"
        and len(weight.shape) > 1
        and weight.shape[-1] == 1
    )


def reads_with_kernel(visit: Visit, rule: LayerRule) -> bool:
    """Whether a weight of a layer tells how much an input channel matters."""
    weights = getattr(visit.call.operation, "weights", ())
    return any(keras_internals.weight_name(x) in rule.in_axis for x in weights)


def _labels_by_path(visit, rule, written):
    """Returns the labels of the weights of a layer that mixes."""
    positions = read_positions(visit, rule)
    labels, unread = [], set(positions.values())
    for path, axis in rule.in_axis.items():
        weight = _at_path(visit.call.operation, path)
        if weight is not None:  # A layer may have no gate.
            numbers = visit.inputs[positions[path]].numbers
            labels.append(_label_at(visit, rule, path, axis, "in", numbers))
            unread.discard(positions[path])
    if unread:
        raise NotFollowed(
            "it has none of the kernels that `in_axis` of its rule names for "
            f"an input: {', '.join(rule.in_axis)}"
        )
    for path, axis in rule.out_axis.items():
        if _at_path(visit.call.operation, path) is not None:
            numbers = written[0].numbers
            labels.append(_label_at(visit, rule, path, axis, "out", numbers))
    _check_others(visit, rule, labels)
    return labels


def _label_at(visit, rule, path, axis, side, numbers):
    """Returns the `Label` of the weight at `path` for a tensor's channels."""
    weight = _at_path(visit.call.operation, path)
    axis = _checked_axis(weight, axis)
    _check_size(weight, axis, path, len(numbers))
    return Label(
        *(visit.key, weight, axis, numbers, side),
        is_kernel=_is_kernel(weight, path, rule),
        name=visit.key,
    )


def _check_others(visit, rule, labels):
    """Raises `NotFollowed` if a weight may have channels on another axis."""
    sides = [axes for pair in rule.inner.values() for axes in pair]
    paths = {*rule.in_axis, *rule.out_axis}.union(*sides)
    named = {id(_at_path(visit.call.operation, path)) for path in paths}
    counts = {len(label.numbers) for label in labels}
    for weight in getattr(visit.call.operation, "weights", ()):
        if id(weight) not in named and counts & {*weight.shape}:
            raise NotFollowed(
                f"its rule does not say where '{weight.path}' lies"
            )


def _is_kernel(weight, path, rule):
    """Whether the weight at `path` says which channels are alive."""
    reading = {*rule.in_axis}.union(*(axes for _, axes in rule.inner.values()))
    return keras_internals.weight_name(weight) == "kernel" or path in reading


def _check_size(weight, axis, path, count):
    """Raises `NotFollowed` if an axis of a weight does not have `count`."""
    if weight.shape[axis] != count:
        raise NotFollowed(
            f"its rule expects {count} on axis {axis} of '{path}', which has "
            f"shape {tuple(weight.shape)}"
        )


def _inner_label(visit, rule, path, axis, side, argument, numbers):
    """Returns the `Label` of the weight at `path`; see `inner_labels`."""
    weight = _at_path(visit.call.operation, path)
    axis = _checked_axis(weight, axis)
    size = weight.shape[axis]
    made = numbers(argument, size)
    if len(made) != size:
        made = np.repeat(made, repeats(rule, visit.call.operation))
    _check_size(weight, axis, path, len(made))
    return Label(
        *(visit.key, weight, axis, made, side),
        is_kernel=_is_kernel(weight, path, rule),
        name=f"{visit.key}/{argument}",
    )


def _at_path(layer, path):
    """Returns the weight of `layer` whose path ends with `path`, or `None`."""
    found = [
        weight
        for weight in getattr(layer, "weights", ())
        if f"/{weight.path}".endswith(f"/{path}")
    ]
    if len(found) > 1:
        raise NotFollowed(
            f"its rule names '{path}', and the paths of {len(found)} of its "
            "weights end so"
        )
    return found[0] if found else None


def _checked_axis(weight, axis):
    """Returns `axis` of `weight`, counted from the front."""
    ndim = len(weight.shape)
    if not -ndim <= axis < ndim:
        raise NotFollowed(
            f"its rule names axis {axis} of "
            f"'{keras_internals.weight_name(weight)}', which has shape "
            f"{tuple(weight.shape)}"
        )
    return axis % ndim


def _as_read(numbers, layer, rule, size):
    """Returns the channel numbers along an input axis of a weight."""
    groups = rule.ask("groups", layer)
    if groups is not None:  # All groups are tied to the first one.
        return numbers[: len(numbers) // groups]
    if len(numbers) != size:  # The weight reads a depthwise kernel's outputs.
        return np.repeat(numbers, repeats(rule, layer))
    return numbers
