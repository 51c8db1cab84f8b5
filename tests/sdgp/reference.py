"""Pruned gradients by NumPy, block by block, as the papers write them."""

import numpy as np


def blocks(channels, m, groups=1):
    """Yields the positions of the channels of each block."""
    size = channels // groups
    for start in range(0, channels, size):
        for first in range(start, start + size, m):
            yield np.arange(first, min(first + m, start + size))


def magnitude(gradient, n, m, groups=1):
    """Keeps the n largest of each block; of equal ones, the first ones."""
    gradient = np.asarray(gradient)
    kept = np.zeros_like(gradient)
    for block in blocks(gradient.shape[-1], m, groups):
        part = gradient[..., block]
        order = np.argsort(-np.abs(part), axis=-1, kind="stable")[..., :n]
        values = np.take_along_axis(part, order, -1)
        found = np.zeros_like(part)
        np.put_along_axis(found, order, values, -1)
        kept[..., block] = found
    return kept


def rescaled(gradient, n, m, groups=1):
    """`magnitude`, with the mass of each channel of each sample restored."""
    kept = magnitude(gradient, n, m, groups)
    pixels = tuple(range(1, kept.ndim - 1))
    mass = np.abs(gradient).sum(pixels, keepdims=True)
    left = np.abs(kept).sum(pixels, keepdims=True)
    return kept * np.divide(mass, left, np.zeros_like(mass), where=left > 0)


def variance(block, n):
    """The least variance of an unbiased choice of n of a block's values.

    With the probabilities p, it is sum(x^2 (1 / p - 1)). The largest values
    that would have p above 1 are kept for certain, one after the other.
    """
    sizes = np.sort(np.abs(np.asarray(block, "float64")))[::-1]
    while n and len(sizes) and n * sizes[0] >= sizes.sum():
        sizes, n = sizes[1:], n - 1
    if not n or not sizes.any():
        return 0.0
    p = n * sizes / sizes.sum()
    return sum(x**2 * (1 / q - 1) for x, q in zip(sizes, p, strict=True) if q)
