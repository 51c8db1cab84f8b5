"""The group lasso with one group for each channel number of a model.

In the paper's lasso, each channel of each side of a kernel is a group. A
channel that several layers share goes only if all of its groups are zero, and
each of them may arrive at another time. Here all slices of a channel number, of
the kernels that write it and of those that read it, are one group, so that they
arrive together:

    penalty = factor * sum(sqrt(slices of n) * norm(n) for n in channel numbers)

The root makes this the paper's penalty where the slices of a number have equal
norms. Each slice is then pulled as hard as in the paper, which weighs no group
by its size on purpose (section 4.1). In general it is at least that penalty.
"""

import collections
from collections.abc import Collection, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_prunetrain.channels.labels import Numbering
from keras_prunetrain.keras_internals import StepSize, precise
from keras_prunetrain.lasso.attach import labels_with_lasso
from keras_prunetrain.lasso.group_lasso import sum_over
from keras_prunetrain.lasso.proximal import soft_ratio, thresholds


class CoupledGroups:
    """The groups of a model, one for each channel number that may go.

    The methods compute with the values that the kernels have at the time of the
    call, and may be traced. A model that has become smaller needs new groups.

    Args:
        numbering: The `Numbering` of the model.
        skip: Keys of layers whose kernels are in no group.

    Attributes:
        kernels: List of the kernels, `keras.Variable`s.
    """

    def __init__(self, numbering: Numbering, skip: Collection[str] = ()):
        self.kernels = []
        self._sides = []  # For each kernel, pairs of an axis and its positions.
        numbers, elements = [], []
        places = {}
        for label in labels_with_lasso(numbering, skip):
            kernel = label.weight
            if id(kernel) not in places:
                places[id(kernel)] = len(self.kernels)
                self.kernels.append(kernel)
                self._sides.append([])
            first = len(numbers)
            numbers += [
                -1 if n in numbering.frozen else n
                for n in label.numbers.tolist()
            ]
            width = kernel.shape[label.axis]
            elements += [int(np.prod(kernel.shape)) // width] * width
            positions = slice(first, first + width)
            self._sides[places[id(kernel)]].append((label.axis, positions))
        self._index(numbers, elements)

    def _index(self, numbers, elements):
        """Prepares the sums over groups.

        Args:
            numbers: List of the channel number at each position; -1: no group.
            elements: List of the number of weights in the slice there.
        """
        members = collections.defaultdict(list)
        for position, number in enumerate(numbers):
            if number >= 0:
                members[number].append(position)
        most = max(map(len, members.values()), default=1)
        # A sum over gathered positions has one order, unlike a scattered one,
        # so that it is the same on all replicas. Behind the last is a zero.
        self._members = np.full((len(members), most), len(numbers), "int32")
        self._group = np.full(len(numbers), len(members), "int32")
        for i, positions in enumerate(members.values()):
            self._members[i, : len(positions)] = positions
            self._group[positions] = i
        self._slices = np.array(list(map(len, members.values())), "float32")
        self._roots = np.sqrt(self._slices)
        self._sizes = np.array([*elements, 0])
        in_group = self._sizes[self._members].sum(axis=1)
        self._elements = in_group.astype("float32")

    def sum_of_norms(self) -> float:
        """Returns the penalty at a factor of 1; not to be traced."""
        # As in `GroupLasso`, for each slice.
        norms = ops.sqrt(self._squares() + 1e-8 * self._slices)
        return float(ops.convert_to_numpy(ops.sum(self._roots * norms)))

    def gradients(
        self, kernels: Sequence[keras.Variable], factor: Any
    ) -> list[Any]:
        """Returns the gradient of the penalty for each of `kernels`.

        Args:
            kernels: List of some of `self.kernels`.
            factor: Scalar, the lasso's factor.
        """
        norms = ops.sqrt(self._squares() + 1e-8 * self._slices)
        pull = factor * self._roots / norms
        by_position = self._at_positions(pull, elsewhere=0.0)
        found = []
        for kernel in kernels:
            value = precise(kernel)
            sides = sum(self._along(kernel, by_position))
            found.append(value * ops.cast(sides, value.dtype))
        return found

    def shrunk(
        self,
        kernels: Sequence[keras.Variable],
        sizes: Sequence[StepSize],
        factor: Any,
    ) -> list[Any]:
        """Returns the values of `kernels` after a proximal step.

        A weight is in the group of the channel that it reads and in that of the
        channel that it writes. The soft thresholds of all groups are computed
        from the values before the step.

        Args:
            kernels: List of some of `self.kernels`, those of one optimizer.
            sizes: List of the `StepSize` of each of them.
            factor: Scalar, the lasso's factor.
        """
        norms = ops.sqrt(self._squares())
        squares = self._mean_squares(kernels, sizes)
        values = []
        for kernel, size in zip(kernels, sizes, strict=True):
            lengths = thresholds(
                ops.cast(factor, "float32") * self._roots,
                self._elements,
                ops.cast(size.rate, "float32"),
                squares,
                size.epsilon,
            )
            ratios = self._at_positions(soft_ratio(norms, lengths), 1.0)
            value = precise(kernel)
            for ratio in self._along(kernel, ratios):
                value = value * ops.cast(ratio, value.dtype)
            values.append(value)
        return values

    def _mean_squares(self, kernels, sizes):
        """Returns the mean of the `squares` of `sizes` in each group."""
        if any(size.squares is None for size in sizes):
            return None
        known = {
            id(kernel): precise(size.squares)
            for kernel, size in zip(kernels, sizes, strict=True)
        }
        sums = [known.get(id(kernel)) for kernel in self.kernels]
        counts = np.zeros(len(self._group) + 1)
        for kernel, sides in zip(self.kernels, self._sides, strict=True):
            for _, positions in sides if id(kernel) in known else ():
                counts[positions] = self._sizes[positions]
        counts = counts[self._members].sum(axis=1)
        return self._sums(sums) / np.maximum(counts, 1.0).astype("float32")

    def _squares(self):
        """Returns the sum of the squares of each group's weights."""
        return self._sums([ops.square(precise(x)) for x in self.kernels])

    def _sums(self, tensors):
        """Returns the sum over each group of a tensor for each kernel.

        Args:
            tensors: List of a tensor of the kernel's shape for each kernel, or
                `None` for a sum of zero.
        """
        found = []
        for kernel, sides, tensor in zip(
            self.kernels, self._sides, tensors, strict=True
        ):
            axes = [axis for axis, _ in sides]
            if tensor is None:
                found += [ops.zeros(kernel.shape[i], "float32") for i in axes]
                continue
            # First over the axes that all sums are over: the pixels.
            tensor = sum_over(tensor, set(range(len(kernel.shape))) - {*axes})
            for axis in axes:
                sums = ops.reshape(sum_over(tensor, {*axes} - {axis}), -1)
                found.append(ops.cast(sums, "float32"))
        by_position = ops.concatenate([*found, ops.zeros(1, "float32")])
        return ops.sum(ops.take(by_position, self._members, axis=0), axis=1)

    def _at_positions(self, by_group, elsewhere):
        """Returns at each position the value of its group, or `elsewhere`."""
        values = ops.concatenate(
            [by_group, ops.full((1,), elsewhere, by_group.dtype)]
        )
        return ops.take(values, self._group, axis=0)

    def _along(self, kernel, by_position):
        """Returns the values along each side of `kernel`, to broadcast."""
        place = next(i for i, x in enumerate(self.kernels) if x is kernel)
        found = []
        for axis, positions in self._sides[place]:
            shape = [1] * len(kernel.shape)
            shape[axis] = -1
            found.append(ops.reshape(by_position[positions], shape))
        return found
