"""Prunes a gradient to n of every m consecutive channels.

The functions compute with `keras.ops`, and return zeros in the place of what is
pruned: an emulation, which saves no work by itself.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_prunetrain.keras_internals import precise
from keras_prunetrain.sdgp.pattern import Blocks


def pruned(gradient: Any, blocks: Blocks, drawn: Any = None) -> Any:
    """Returns `gradient` with zeros, so that n of every m channels are left.

    Args:
        gradient: Tensor of floats, shape `(batch, ..., channels)`.
        blocks: The `Blocks` of its channels.
        drawn: For the modes that draw, a tensor of numbers that are uniform in
            [0, 1), of the shape that `shape_drawn` returns.
    """
    if blocks.share == 1.0:
        return gradient
    parts = _split(gradient, blocks)
    mode = blocks.pattern.mode
    if mode == "mvue":
        parts = _with_least_variance(parts, blocks, drawn)
    elif blocks.pattern.is_random:
        parts = _at_random(parts, blocks, drawn)
    else:
        sizes = [ops.abs(part) for part in parts]
        parts = _chosen(parts, largest(sizes, blocks.pattern.n))
    kept = _joined(parts, gradient, blocks)
    return _rescaled(gradient, kept) if mode == "rescaled" else kept


def shape_drawn(gradient: Any, blocks: Blocks) -> tuple[Any, ...] | None:
    """Returns the shape of the numbers to draw, `None` if there are none.

    Args:
        gradient: As of `pruned`.
        blocks: As of `pruned`.
    """
    if not blocks.pattern.is_random:
        return None
    drawn = _draws(blocks.pattern), ops.size(gradient) // blocks.channels
    if blocks.padding:
        return *drawn, len(blocks.kept)
    return drawn[0], drawn[1] * len(blocks.kept)


def _draws(pattern):
    """Returns how many numbers are drawn for a block."""
    # A float32 has digits enough to choose one of so many subsets.
    is_enough = math.comb(pattern.m, pattern.n) <= 4096
    return 1 if pattern.mode == "mvue" or is_enough else pattern.m


def largest(scores: Sequence[Any], n: int) -> list[Any]:
    """Returns which of m scores are among the n largest, at each place.

    Exactly n are, if no score is NaN: of equal scores, the first ones.

    Args:
        scores: List of m tensors of one shape.
        n: Integer, below m.

    Returns:
        List of m tensors of booleans.
    """
    m = len(scores)
    wins = [[] for _ in scores]
    for i, j in itertools.combinations(range(m), 2):
        is_first = ops.greater_equal(scores[i], scores[j])
        wins[i].append(is_first)
        wins[j].append(ops.logical_not(is_first))
    # The n largest are those that lose to fewer than n.
    return [_at_least(won, m - n) for won in wins]


def _at_least(conditions, count):
    """Returns where at least `count` of several conditions hold."""
    held = [ops.cast(condition, "int8") for condition in conditions]
    total = held[0]
    for other in held[1:]:
        total = total + other
    return ops.greater_equal(total, count)


def _split(gradient, blocks):
    """Returns m tensors: the channels at each place of their blocks.

    The shape of each is `(batch * pixels * blocks,)`; with padding, which is
    not the same in all blocks, `(batch * pixels, blocks)`.
    """
    x, m = gradient, blocks.pattern.m
    if blocks.padding:
        x = ops.reshape(x, (-1, blocks.groups, blocks.group_size))
        x = ops.pad(x, ((0, 0), (0, 0), (0, blocks.padding)))
        x = ops.reshape(x, (-1, len(blocks.kept), m))
    else:
        x = ops.reshape(x, (-1, m))
    return [x[..., i] for i in range(m)]


def _joined(parts, gradient, blocks):
    """Returns the tensor that has the parts that `_split` would make of it.

    Args:
        parts: List of m tensors.
        gradient: A tensor of the shape of the result.
        blocks: Its `Blocks`.
    """
    x = ops.stack(parts, axis=-1)
    if blocks.padding:
        size = blocks.group_size
        x = ops.reshape(x, (-1, blocks.groups, size + blocks.padding))
        x = x[..., :size]
    return ops.reshape(x, ops.shape(gradient))


def _chosen(parts, chosen):
    return [
        ops.where(one, part, ops.zeros_like(part))
        for part, one in zip(parts, chosen, strict=True)
    ]


def _rescaled(gradient, kept):
    """Restores the L1 mass of each channel of each sample.

    The authors add 1e-4 to the denominator. The gradients of a mean loss are
    smaller than that, and would vanish.
    """
    pixels = tuple(range(1, len(gradient.shape) - 1))

    def mass(x):
        return ops.sum(ops.abs(precise(x)), pixels, keepdims=True)

    # Where nothing of a channel is kept, nothing can be scaled.
    scale = ops.divide_no_nan(mass(gradient), mass(kept))
    return ops.cast(precise(kept) * scale, gradient.dtype)


def _at_random(parts, blocks, drawn):
    """Keeps n channels of each block, each choice with the same probability.

    Of the channels that are left, one after the other is kept with the
    probability of those that are still needed. A number that was drawn is used
    again: what it says beyond a decision is as random.
    """
    sizes, missing = blocks.pattern.m, blocks.pattern.n
    if blocks.padding:
        sizes, missing = blocks.valid.sum(-1), blocks.kept
    scale = sizes / missing
    if blocks.pattern.mode == "random_biased":
        scale = scale / scale
    u, kept, draws = drawn[0], [], _draws(blocks.pattern)
    missing = ops.cast(missing, u.dtype)
    for i, part in enumerate(parts):
        left = ops.cast(np.maximum(sizes - i, 1), u.dtype)
        p = missing / left
        is_kept = ops.logical_or(u < p, ops.greater_equal(missing, left))
        scaled = part * ops.cast(scale, part.dtype)
        kept.append(ops.where(is_kept, scaled, ops.zeros_like(part)))
        missing = missing - ops.cast(is_kept, u.dtype)
        if draws > 1:
            u = drawn[min(i + 1, draws - 1)]
        else:
            of_kept = u / ops.maximum(p, 1e-6)
            of_others = (u - p) / ops.maximum(1 - p, 1e-6)
            u = ops.where(is_kept, of_kept, of_others)
    return kept


def _with_least_variance(parts, blocks, drawn):
    """Keeps n channels of each block at random, the larger the likelier.

    A channel that is kept with probability p has the value x / p, so its mean
    is x, and its variance x^2 (1 / p - 1). Of all p with the sum n, the
    variance of the block is least for p = min(1, |x| / level). For 1 of 2, that
    is |a| / (|a| + |b|) (Chmiel et al. 2023).

    The channels with p = 1 are set apart. The others lie side by side on a
    line, each as long as its |x|, and points at the distance `level` from each
    other choose among them (systematic sampling): one random number per block.
    A block with a NaN becomes NaN.
    """
    n = blocks.pattern.n
    values = [precise(part) for part in parts]
    sizes = [ops.abs(value) for value in values]
    level = _level(sizes, n)
    are_sure = [ops.logical_not(size < level) for size in sizes]
    missing = n - sum(ops.cast(is_sure, level.dtype) for is_sure in are_sure)
    first = ops.cast(drawn[0], level.dtype)
    kept, end, hit = [], ops.zeros_like(level), ops.zeros_like(level)
    for value, size, is_sure in zip(values, sizes, are_sure, strict=True):
        end = end + ops.where(is_sure, ops.zeros_like(size), size)
        # The points before the end of this channel: no more than are missing,
        # also where rounding makes the line a little longer.
        points = ops.ceil(ops.divide_no_nan(end, level) - first)
        points = ops.minimum(points, missing)
        is_kept = ops.logical_or(is_sure, points > hit)
        scaled = ops.sign(value) * ops.maximum(size, level)
        kept.append(ops.where(is_kept, scaled, ops.zeros_like(scaled)))
        hit = points
    return [ops.cast(x, parts[0].dtype) for x in kept]


def _level(sizes, n):
    """Returns the level for which the sum of min(1, size / level) is n.

    It is 0 if fewer than n sizes are above 0.
    """
    level = sum(sizes[1:], sizes[0]) / n
    # At most n - 1 sizes are above the level; then it is lower for the others.
    for _ in range(n - 1):
        above = [size >= level for size in sizes]
        left = sum(
            ops.where(is_above, ops.zeros_like(size), size)
            for size, is_above in zip(sizes, above, strict=True)
        )
        count = n - sum(ops.cast(x, level.dtype) for x in above)
        # All n are above it where the others are too small to count.
        lower = left / ops.maximum(count, 1)
        level = ops.where(count > 0, lower, level)
    return level
