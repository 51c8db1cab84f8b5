"""Lets whole groups of grouped convolutions go."""

import keras

from keras_prunetrain.channels.layers import WHOLE_GROUPS
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.channels.selection import Skip, selected


def prune_whole_groups(
    model: keras.Model, layers: Skip | None = None
) -> keras.Model:
    """Lets grouped convolutions lose whole groups, as ResNeXt has them.

    By default, the groups of a convolution become thinner: each loses the same
    number of channels. From now on, the groups of these layers go as a whole:
    the channels that a group reads, the group, and the channels that it writes
    are one, and the others keep their size. What computes and what reads these
    channels decides whether a group is dead; the group's own weights have no
    say and no lasso, as those of a depthwise convolution.

    Call it before `fit`, `reconfigure` and `channel_report`. A reconfigured
    model stays so. A model that was saved and loaded, a clone or another copy
    does not: call it again.

    Args:
        model: A functional or `Sequential` model, changed in place.
        layers: Layers, names or patterns of names (`"stage1_*"`), or functions
            of a layer that return whether it is meant. Defaults to `None`: all
            convolutions with several groups of several input channels that
            could lose one. A convolution of the model's input could not.

    Returns:
        `model`.

    Raises:
        ValueError: If `model` is no model or has no known graph, if `layers`
            match nothing, or if one of them has no such groups or could lose
            none.
    """
    found = {
        key: _unwrapped(layer)
        for key, layer in number_channels(model).layers.items()
    }
    grouped = {key for key, layer in found.items() if _has_groups(layer)}
    keys = grouped if layers is None else selected(found, layers, "layers")
    others = set(keys) - grouped
    if others or not keys:
        raise ValueError(
            f"'{model.name}' has no convolution with several groups of several "
            "input channels among what was asked for. Received: "
            f"layers={layers!r}. Such layers: {_listed(grouped)}. Layers "
            f"without such groups that were asked for: {_listed(others)}."
        )
    new = {key for key in keys if not hasattr(found[key], WHOLE_GROUPS)}
    _mark(found, new)
    held = _held(model, keys)
    if held and (layers is not None or len(held) == len(keys)):
        _unmark(found, new)
        reasons = "; ".join(f"{key} ({held[key]})" for key in sorted(held))
        raise ValueError(
            f"No group of these layers of '{model.name}' can go, because all "
            f"channels that they write must stay: {reasons}. Received: "
            f"layers={layers!r}"
        )
    _unmark(found, held)  # Their groups can become thinner.
    return model


def _mark(found, keys):
    for key in keys:
        setattr(found[key], WHOLE_GROUPS, True)


def _unmark(found, keys):
    for key in keys:
        if hasattr(found[key], WHOLE_GROUPS):  # A layer may have two keys.
            delattr(found[key], WHOLE_GROUPS)


def _held(model, keys):
    """Returns why layers could lose no group, a dict from their keys."""
    numbering = number_channels(model)
    reasons = {}
    for key in keys:
        numbers = numbering.outputs[key][0].numbers.tolist()
        if numbering.frozen.keys() >= {*numbers}:
            reasons[key] = numbering.frozen[numbers[0]]
    return reasons


def _listed(keys):
    return ", ".join(sorted(keys)) or "none"


def _unwrapped(layer):
    while isinstance(layer, keras.layers.Wrapper):
        layer = layer.layer
    return layer


def _has_groups(layer):
    groups = getattr(layer, "groups", 1)
    kernel = getattr(layer, "kernel", None)
    return kernel is not None and groups > 1 and kernel.shape[-2] > 1
