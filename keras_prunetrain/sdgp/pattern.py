"""Which channels of a gradient are kept together: n of every m consecutive."""

import dataclasses
from typing import Literal, get_args

import numpy as np

from keras_prunetrain.checks import is_count

Mode = Literal["rescaled", "magnitude", "random", "random_biased", "mvue"]
MODES: tuple[str, ...] = get_args(Mode)

# All pairs of a block are compared, one operation for each, which XLA compiles.
_LARGEST = 16


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Of every m consecutive channels at a pixel, n are kept.

    Attributes:
        n: The channels that are kept of a block, an integer from 1 to `m`.
        m: The channels of a block, an integer from 2 to 16.
        mode: How they are chosen, and scaled; see `with_sdgp`.

    Raises:
        ValueError: If one of them is out of its range.
    """

    n: int
    m: int
    mode: Mode

    def __post_init__(self):
        are_counts = is_count(self.m, 2) and is_count(self.n, 1)
        if not are_counts or self.n > self.m or self.m > _LARGEST:
            raise ValueError(
                "`n` of every `m` channels of a gradient are kept: two "
                f"integers, `m` from 2 to {_LARGEST}, and `n` from 1 to `m`. "
                f"Received: n={self.n!r}, m={self.m!r}"
            )
        if self.mode not in MODES:
            raise ValueError(
                f"`mode` must be one of {', '.join(map(repr, MODES))}. "
                f"Received: mode={self.mode!r}"
            )

    def __str__(self):
        return f"{self.n}:{self.m} {self.mode}"

    @property
    def is_random(self) -> bool:
        """Whether the choice is drawn anew in each step."""
        return self.mode in ("random", "random_biased", "mvue")


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The blocks of the channels of one layer.

    A block ends where the channels end, or where a group of a grouped
    convolution ends: the last block of a group may have fewer than m channels,
    of which at most n are kept as well.

    Attributes:
        pattern: The `Pattern`.
        channels: Integer, those of the layer's output.
        groups: Integer, the groups of a grouped convolution.
    """

    pattern: Pattern
    channels: int
    groups: int = 1

    @property
    def group_size(self) -> int:
        """The channels of a group."""
        return self.channels // self.groups

    @property
    def padding(self) -> int:
        """The channels that the last block of a group lacks."""
        return -self.group_size % self.pattern.m

    @property
    def valid(self) -> np.ndarray:
        """Bool array of shape `(blocks, m)`, `False` in place of padding."""
        one = np.arange(self.group_size + self.padding) < self.group_size
        return np.tile(one, self.groups).reshape(-1, self.pattern.m)

    @property
    def kept(self) -> np.ndarray:
        """Integer array: how many channels of each block are kept."""
        return np.minimum(self.pattern.n, self.valid.sum(-1))

    @property
    def share(self) -> float:
        """The kept channels among all, a fraction: n / m without padding."""
        return float(self.kept.sum() / self.channels)
