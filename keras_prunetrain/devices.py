"""The kind of device that computes, and the channel counts that suit it."""

from collections.abc import Callable
from typing import Literal

import keras

AUTO = "auto"
# From so many channels on, multiples of so many.
_CPU_MULTIPLES = ((128, 16), (48, 8), (4, 4), (0, 1))
_OTHER_MULTIPLES = ((8, 8), (0, 1))


def device_kind() -> str:
    """Returns the kind of device that the backend computes on.

    `"gpu"` or `"tpu"` if there is one that is visible, else `"cpu"`.
    """
    return keras.distribution.list_devices()[0].partition(":")[0]


def multiples(
    channel_multiple: int | Literal["auto"],
) -> Callable[[int], int]:
    """Returns the multiple for each count of channels, a function of it.

    Args:
        channel_multiple: Integer, at least 1, the multiple of every count; or
            `"auto"`, that of `fast_multiple` for the device that computes.
    """
    if channel_multiple != AUTO:
        return lambda channels: channel_multiple
    kind = device_kind()
    return lambda channels: fast_multiple(channels, kind)


def fast_multiple(channels: int, kind: str) -> int:
    """Returns of what a count of channels is to be a multiple, to be fast.

    A CPU computes blocks of 16 channels (oneDNN with AVX-512; 8 with AVX2). In
    narrow layers multiples of 4 are enough: a ResNet-20 of widths 12, 24 and 48
    takes 56% of the time of the full one at 56% of its FLOPs. The tensor cores
    of a GPU take 8 numbers of 16 bits at once. All other kinds of devices get
    the multiple of a GPU. Neither a GPU nor these were measured. A count below
    the smallest block stays as it is: rounding it up would save no time.

    Args:
        channels: Integer, the count before it is rounded.
        kind: As `device_kind` returns.
    """
    multiples_from = _CPU_MULTIPLES if kind == "cpu" else _OTHER_MULTIPLES
    return next(
        multiple for least, multiple in multiples_from if channels >= least
    )
