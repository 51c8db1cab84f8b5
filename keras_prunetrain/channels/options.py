"""The options of a cut: the arguments of `reconfigure`."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Literal

from keras_prunetrain.channels.scores import Score, check_score, magnitude
from keras_prunetrain.channels.selection import Skip
from keras_prunetrain.checks import is_count, is_number
from keras_prunetrain.devices import AUTO


@dataclasses.dataclass(frozen=True, kw_only=True)
class CutOptions:
    """Which channels are dead, and which dead channels stay.

    Callbacks take these options by these names; `reconfigure` explains the
    options in detail.

    Attributes:
        threshold: Float, at least 0. A channel that scores less is dead.
        channel_multiple: Integer, or `"auto"` for counts that the device
            computes fast. Layers keep a multiple of this many channels.
        min_channels: Integer. Layers keep at least this many channels.
        skip: The layers whose channels all stay.
        fold: Boolean. Whether constant channels are removed, too.
        score: Function of a `Label`: how much each of its channels matters.

    Raises:
        ValueError: If one of them is out of its range.
    """

    threshold: float = 1e-4
    channel_multiple: int | Literal["auto"] = 1
    min_channels: int = 1
    skip: Skip = ()
    fold: bool = False
    score: Score = magnitude

    def __post_init__(self):
        if not is_number(self.threshold) or self.threshold < 0.0:
            raise ValueError(
                "`threshold` must be a finite number, at least 0, in the unit "
                f"of the weights. Received: threshold={self.threshold}"
            )
        if not (
            self.channel_multiple == AUTO
            if isinstance(self.channel_multiple, str)
            else is_count(self.channel_multiple, 1)
        ):
            raise ValueError(
                "`channel_multiple` must be an integer, at least 1, or 'auto'. "
                f"Received: channel_multiple={self.channel_multiple!r}"
            )
        if not is_count(self.min_channels, 1):
            raise ValueError(
                "`min_channels` must be an integer, at least 1. "
                f"Received: min_channels={self.min_channels!r}"
            )
        if not isinstance(self.fold, bool):
            raise ValueError(
                f"`fold` must be True or False. Received: fold={self.fold!r}"
            )
        if isinstance(self.skip, Mapping):  # A dict's values have no use here.
            raise ValueError(
                "`skip` must be a layer, a name, a function of a layer, or a "
                f"list of these. Received: skip={self.skip!r}"
            )
        if isinstance(self.skip, Iterator):  # Iterators can be read only once.
            object.__setattr__(self, "skip", tuple(self.skip))
        check_score(self.score)
