"""Reports how many weights of each kernel are exactly zero."""

import dataclasses

import keras
import numpy as np

from keras_prunetrain import keras_internals
from keras_prunetrain.checks import check_model
from keras_prunetrain.variables import is_kernel


@dataclasses.dataclass(frozen=True)
class KernelMask:
    """The zeros of one kernel.

    Attributes:
        kernel: Path of the weight.
        size: Number of its entries.
        kept: Number of the entries that are not zero.
    """

    kernel: str
    size: int
    kept: int

    @property
    def density(self) -> float:
        """The kept entries over all, a fraction."""
        return self.kept / self.size


class MaskReport(tuple):
    """A `KernelMask` for each kernel. Prints as a table."""

    @property
    def density(self) -> float:
        """The kept entries of all kernels over all of theirs, a fraction."""
        return sum(x.kept for x in self) / max(1, sum(x.size for x in self))

    def __str__(self):
        rows = [("kernel", "weights", "kept", "density")]
        rows += [
            (x.kernel, f"{x.size:,}", f"{x.kept:,}", f"{x.density:.1%}")
            for x in self
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )


def mask_report(model: keras.Model) -> MaskReport:
    """Returns for each kernel how many of its weights are not zero.

    Zeros save no time: the kernel has its shape. They save room in a file that
    is compressed.

    Args:
        model: A built model.

    Returns:
        A `MaskReport`: a `KernelMask` for each weight of two axes and more that
        is no bias, no scale and no statistic.

    Raises:
        ValueError: If `model` is no model.
    """
    check_model(model)
    return MaskReport(
        KernelMask(
            weight.path,
            int(np.prod(weight.shape)),
            int(np.count_nonzero(keras_internals.values_of(weight))),
        )
        for weight in model.weights
        if is_kernel(weight)
    )
