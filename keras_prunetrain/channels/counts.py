"""How many channels a layer or a tensor must keep."""

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.labels import Numbering
from keras_prunetrain.devices import multiples


class Limit(NamedTuple):
    """Which counts of channels are allowed among some numbers.

    Attributes:
        numbers: Int array. A number counts once for each of its positions.
        allows: Function of a count that returns whether the count may be left.
        reason: Why dead channels stay where it may not, a string.
    """

    numbers: np.ndarray
    allows: Callable[[int], bool]
    reason: str


def limits(
    numbering: Numbering,
    removed: Collection[str],
    channel_multiple: int | str,
    min_channels: int,
) -> list[Limit]:
    """Returns the `Limit`s of a cut.

    Args:
        numbering: The model's `Numbering`.
        removed: Keys of the layers that are removed as a whole.
        channel_multiple: As of `reconfigure`.
        min_channels: As of `reconfigure`.
    """
    multiple_of = multiples(channel_multiple)
    found = []
    for x in computed(numbering, removed):
        found += [
            Limit(x, _at_least(min_channels), "min_channels"),
            Limit(x, lambda n: n % multiple_of(n) == 0, "channel_multiple"),
        ]
    # Heads, and the channels in one, keep to no multiple. Every tensor, and
    # each piece of a split, keeps a channel.
    found += [
        Limit(x, _at_least(1), "min_channels")
        for x in (*numbering.inner_numbers(), *passed_on(numbering, removed))
    ]
    found += [
        Limit(x, _at_least(2), "a bias with an axis of heads")
        for x in numbering.added_by_head()
    ]
    return found + [
        Limit(numbers, _other_than(width), "as many channels as columns")
        for numbers, width in _added_by_columns(numbering)
    ]


def _at_least(least):
    return lambda count: count >= least


def _other_than(size):
    return lambda count: count != size


def _added_by_columns(numbering):
    """Yields numbers, and how many of them Keras would mistake for columns.

    On TensorFlow, Keras adds the bias of a `channels_first` convolution along
    the last axis of the image if this has as many entries as the bias.
    """
    for label in numbering.labels:
        layer = numbering.layers[label.layer]
        (channels, *_) = numbering.outputs[label.layer] or [None]
        if (
            channels is not None
            and keras_internals.weight_name(label.weight) == "bias"
            and getattr(layer, "data_format", None) == "channels_first"
            and channels.shape[-1] not in (None, 1)
            and channels.axis < len(channels.shape) - 1
        ):
            yield label.numbers, channels.shape[-1]


def computed(
    numbering: Numbering, removed: Collection[str] = ()
) -> list[np.ndarray]:
    """Returns the numbers that each remaining kernel or embedding writes."""
    return [
        label.numbers
        for label in numbering.writers()
        if label.layer not in removed and not label.is_inner
    ]


def passed_on(
    numbering: Numbering, removed: Collection[str] = ()
) -> list[np.ndarray]:
    """Returns the numbers of each output of the remaining layers."""
    return [
        channels.numbers
        for key, outputs in numbering.outputs.items()
        for channels in outputs
        if key not in removed and len(channels.numbers)
    ]
