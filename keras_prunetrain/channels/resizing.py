"""Adapts constructor arguments of layers to the channels that a cut leaves.

`shape`, `cuts` and `per_channel` make the `resize` of a `LayerRule`: a function
of the layer, its config, the list of the `Channels` of each of its outputs, and
the list of the positions that stay in each output, sorted ints. That function
returns a dict of the arguments that change.
"""

from typing import Any

import keras
import numpy as np

from keras_prunetrain.channels.layer_rule import MIXES, LayerRule, Resize
from keras_prunetrain.channels.numbers import Channels
from keras_prunetrain.checks import is_count


def new_arguments(
    rule: LayerRule,
    layer: Any,
    config: dict[str, Any],
    outputs: list[Channels],
    keeps: list[np.ndarray],
) -> dict[str, Any]:
    """Returns the constructor arguments of a layer that change in a cut.

    Args:
        rule: The rule of the layer.
        layer: The layer, or another operation.
        config: The layer's config.
        outputs: List of the `Channels` of each output of the layer.
        keeps: List of the positions that stay in each output, sorted ints.

    Raises:
        ValueError: If the rule does not fit the config.
    """
    left = [len(keep) for keep in keeps]
    if (
        left == [len(x.numbers) for x in outputs]
        # By default, what an attention writes has the size of what it reads.
        and rule.flow != MIXES
    ):
        return {}
    changes = {}
    for name in rule.size_arguments:
        size = config.get(name)
        if not is_count(size):
            raise ValueError(
                f"The rule for {type(layer).__name__} has '{name}' among its "
                f"`size_arguments`, and the config of '{layer.name}' has no "
                f"number of that name. Received: {name}={size!r}"
            )
        changes[name] = size * left[0] // len(outputs[0].numbers)
    if rule.resize is not None:
        changes |= rule.ask("resize", layer, config, outputs, keeps)
    return changes


def shape(name: str) -> Resize:
    """Resizes an argument that holds the output's shape.

    The shape may include the batch. A size of -1 stays: Keras infers it.
    """

    def resize(layer, config, outputs, keeps):
        (channels,), (keep,) = outputs, keeps
        sizes = config[name]
        sizes = [sizes] if isinstance(sizes, int) else list(sizes)
        axis = channels.axis - len(channels.shape)
        if sizes[axis] != -1:
            sizes[axis] = len(keep)
        return {name: sizes}

    return resize


def cuts(name: str) -> Resize:
    """Resizes an argument that says where `ops.split` cuts."""

    def resize(layer, config, outputs, keeps):
        if layer.axis % len(outputs[0].shape) != outputs[0].axis:
            return {}
        return {name: np.cumsum([len(keep) for keep in keeps])[:-1].tolist()}

    return resize


def per_channel(*names: str) -> Resize:
    """Resizes arguments that may hold one number per channel."""

    def resize(layer, config, outputs, keeps):
        (channels,), (keep,) = outputs, keeps
        changes = {}
        for name in names:
            value = getattr(layer, name)
            if np.shape(value) == channels.numbers.shape:
                value = np.asarray(value)[keep]
                if isinstance(config[name], list):
                    value = value.tolist()
                changes[name] = keras.saving.serialize_keras_object(value)
        return changes

    return resize
