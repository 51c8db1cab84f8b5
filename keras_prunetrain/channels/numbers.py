"""Hands out channel numbers, ties and freezes them, and merges tied ones."""

from typing import NamedTuple

import numpy as np


class Channels(NamedTuple):
    """The channel numbers of a tensor.

    Attributes:
        numbers: Int array, shape `(channels,)`.
        axis: Int, where the channels lie; the batch is axis 0.
        shape: The tensor's shape, batch first, `None` where unknown.
        any_axis: Whether the tensor's channel axis is unknown. Its numbers are
            then frozen, and a layer may read any axis as its channel axis.
    """

    numbers: np.ndarray
    axis: int
    shape: tuple[int | None, ...]
    any_axis: bool = False


class Numbers:
    """Hands out channel numbers, and records which are equal or must stay.

    Attributes:
        count: How many numbers there are before equal ones are merged.
    """

    def __init__(self):
        self.count = 0
        self._ties = []  # Pairs of arrays whose numbers are equal.
        self._frozen = []  # The arguments of each call of `freeze`.

    def new(self, size: int) -> np.ndarray:
        """Returns `size` numbers that no channel has yet, sorted ints."""
        self.count += size
        return np.arange(self.count - size, self.count)

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        """Declares the numbers `a` and `b` equal, position by position."""
        self._ties.append((a, b))

    def tie_groups(self, numbers: np.ndarray, groups: int) -> None:
        """Ties the numbers at the same position of all `groups`."""
        first, *others = numbers.reshape(groups, -1)
        for other in others:
            self.tie(first, other)

    def freeze(
        self, numbers: np.ndarray, reason: str, first: bool = False
    ) -> None:
        """Declares that `numbers` must stay.

        Args:
            numbers: Int array.
            reason: Why the numbers must stay, in words for the report.
            first: Whether this reason outranks reasons without `first`. Of
                reasons of one rank, the earliest counts.
        """
        self._frozen.append((numbers, reason, first))

    def unknown(
        self,
        shape: tuple[int | None, ...],
        reason: str,
        axis: int = -1,
        first: bool = False,
    ) -> Channels:
        """Returns new, frozen `Channels` for a tensor of unknown layout.

        Args:
            shape: Shape of the tensor, batch first.
            reason: As in `freeze`.
            axis: The assumed channel axis; a layer may read another one.
            first: As in `freeze`.
        """
        size = shape[axis] if len(shape) > 1 else 0
        numbers = self.new(size or 0)
        self.freeze(numbers, reason, first)
        return Channels(numbers, axis % max(len(shape), 1), tuple(shape), True)

    def merged(self) -> np.ndarray:
        """Returns the merged number of each number, shape `(count,)`."""
        return merge(self.count, self._ties)

    def frozen(self, merged: np.ndarray) -> dict[int, str]:
        """Returns a dict from each merged number that must stay to the reason.

        Args:
            merged: The array that `merged` returns.
        """
        reasons = {}
        for vector, reason, _ in sorted(self._frozen, key=lambda x: not x[2]):
            for number in merged[vector].tolist():
                reasons.setdefault(number, reason)
        return reasons


def merge(count: int, ties: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Returns, for each of `count` numbers, its number after all `ties`.

    Tied numbers get the same result. The results are 0, 1, 2, ..., in the order
    of the lowest number of each tied set.
    """
    lowest = np.arange(count)
    if ties:
        left, right = (np.concatenate(side) for side in zip(*ties, strict=True))
        while True:
            a, b = lowest[left], lowest[right]
            if np.array_equal(a, b):
                break
            np.minimum.at(lowest, np.maximum(a, b), np.minimum(a, b))
            while not np.array_equal(lowest, lowest[lowest]):
                lowest = lowest[lowest]
    return np.unique(lowest, return_inverse=True)[1]
