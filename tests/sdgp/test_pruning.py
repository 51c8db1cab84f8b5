"""n of every m channels of a gradient, against NumPy."""

import keras
import numpy as np
import pytest

from keras_prunetrain.sdgp.pattern import MODES, Blocks, Pattern
from keras_prunetrain.sdgp.pruning import largest, pruned, shape_drawn
from tests.sdgp import reference

UNBIASED = ("random", "mvue")


def drawn(gradient, blocks, seed=0):
    """Numbers of NumPy's for a mode that draws."""
    shape = shape_drawn(gradient, blocks)
    if shape is None:
        return None
    rng = np.random.default_rng(seed)
    return rng.random(tuple(map(int, shape)), "float32")


def prune(gradient, n, m, mode, groups=1, seed=0):
    blocks = Blocks(Pattern(n, m, mode), gradient.shape[-1], groups)
    tensor = keras.ops.convert_to_tensor(gradient)
    return np.asarray(pruned(tensor, blocks, drawn(tensor, blocks, seed)))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


PATTERNS = [(2, 4), (1, 4), (2, 8), (1, 8), (1, 2), (3, 5), (4, 4)]


@pytest.mark.parametrize("channels", [16, 10, 3])
@pytest.mark.parametrize("n, m", PATTERNS)
def test_the_largest_of_each_block_are_kept(n, m, channels):
    gradient = normal(3, 5, 4, channels)
    np.testing.assert_array_equal(
        prune(gradient, n, m, "magnitude"), reference.magnitude(gradient, n, m)
    )
    np.testing.assert_allclose(
        prune(gradient, n, m, "rescaled"),
        reference.rescaled(gradient, n, m),
        rtol=1e-5,
    )


def test_of_equal_magnitudes_the_first_ones_are_kept():
    block = [2.0, -2.0, 2.0, 2.0, 0.0, 0.0, -1.0, 0.0, -3.0, 1.0, 3.0, 3.0]
    found = prune(np.array([block]), 2, 4, "magnitude")
    expected = [2.0, -2.0, 0, 0, 0, 0, -1.0, 0, -3.0, 0, 3.0, 0]
    np.testing.assert_array_equal(found, [expected])


def test_every_pair_of_equal_numbers_keeps_exactly_n():
    values = np.array(np.meshgrid(*[[0, 1, 2]] * 4)).reshape(4, -1)
    for n in (1, 2, 3):
        kept = np.stack(largest([keras.ops.array(x) for x in values], n))
        assert (kept.sum(0) == n).all()
        smallest_kept = np.where(kept, values, 9).min(0)
        assert (np.where(kept, 0, values).max(0) <= smallest_kept).all()


@pytest.mark.parametrize("mode", MODES)
def test_blocks_end_where_a_group_of_a_convolution_ends(mode):
    gradient = normal(4, 3, 3, 12)
    found = prune(gradient, 1, 4, mode, groups=2)  # Blocks of 4 and 2 and 4, 2.
    for block in reference.blocks(12, 4, groups=2):
        assert ((found[..., block] != 0).sum(-1) == 1).all()
    if mode == "magnitude":
        expected = reference.magnitude(gradient, 1, 4, groups=2)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [8, 7])
def test_at_most_n_of_a_block_are_kept_with_their_signs(mode, channels):
    gradient = normal(2, 9, channels)
    found = prune(gradient, 2, 4, mode)
    for block in reference.blocks(channels, 4):
        assert ((found[..., block] != 0).sum(-1) == 2).all()
    assert (np.sign(found) * np.sign(gradient) >= 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_zeros_stay_zeros(mode):
    gradient = normal(2, 6, 8)
    gradient[0] = 0.0
    gradient[1, :, :3] = 0.0  # One of four is left, and is kept for certain.
    found = prune(gradient, 2, 4, mode)
    assert np.isfinite(found).all() and not found[gradient == 0].any()
    if mode not in ("random", "random_biased"):
        assert (found[1, :, 3] != 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_all_are_kept_where_n_is_m(mode):
    gradient = normal(2, 3, 8)
    np.testing.assert_array_equal(prune(gradient, 4, 4, mode), gradient)


def means(gradient, n, m, mode, draws=4000):
    """The mean over many draws, and its standard error."""
    many = np.broadcast_to(gradient, (draws, *gradient.shape))
    found = prune(np.ascontiguousarray(many), n, m, mode).astype("float64")
    return found.mean(0), found.std(0) / np.sqrt(draws)


@pytest.mark.parametrize("mode", UNBIASED)
@pytest.mark.parametrize(
    "n, m, channels",
    [(2, 4, 8), (1, 4, 8), (2, 4, 7), (2, 4, 5), (8, 16, 16)],
)
def test_the_mean_of_an_unbiased_mode_is_the_gradient(mode, n, m, channels):
    gradient = normal(channels)
    mean, error = means(gradient, n, m, mode)
    assert (np.abs(mean - gradient) < 4.5 * error + 1e-6).all()


@pytest.mark.parametrize("channels", [4, 7])
def test_every_choice_has_the_same_probability(channels):
    found = prune(np.ones((12000, channels), "float32"), 2, 4, "random_biased")
    choices, counts = np.unique(found[:, :4], axis=0, return_counts=True)
    assert (choices.sum(-1) == 2).all()
    np.testing.assert_allclose(counts, [2000] * 6, rtol=0.1)
    if channels == 7:  # Two of the last three.
        _, counts = np.unique(found[:, 4:], axis=0, return_counts=True)
        np.testing.assert_allclose(counts, [4000] * 3, rtol=0.1)


def test_of_very_many_choices_none_is_left_out():
    found = prune(np.ones((1000, 16), "float32"), 8, 16, "random_biased")
    # 1000 draws of 12,870 choices.
    assert 930 < len(np.unique(found, axis=0)) < 990


# The largest float32 below 1; and one of which 1 is left, by rounding, once two
# of five channels are chosen by it.
@pytest.mark.parametrize("number", [0.0, 0.99999994, 0.39999998])
@pytest.mark.parametrize("mode", ["random", "mvue"])
@pytest.mark.parametrize("n, m", [(2, 5), (5, 7), (8, 16)])
def test_no_more_than_n_are_kept_whatever_is_drawn(mode, number, n, m):
    gradient = keras.ops.array(np.exp(2 * normal(2000, m)))
    blocks = Blocks(Pattern(n, m, mode), m)
    shape = shape_drawn(gradient, blocks)
    found = pruned(gradient, blocks, keras.ops.full(shape, number, "float32"))
    kept = (np.asarray(found) != 0).sum(-1)
    assert kept.max() <= n
    if mode == "random":
        assert kept.min() == n


def test_rounding_lets_no_more_than_n_be_kept():
    # With 7 of 12, the sizes on the line come out above 7 levels.
    rng = np.random.default_rng(0)
    gradient = keras.ops.array(rng.integers(0, 4, (20000, 12)), "float32")
    blocks = Blocks(Pattern(7, 12, "mvue"), 12)
    for number in (0.0, 1e-7, 0.99999994):
        numbers = keras.ops.full(shape_drawn(gradient, blocks), number)
        found = np.asarray(pruned(gradient, blocks, numbers))
        assert (found != 0).sum(-1).max() == 7


def test_the_biased_mode_has_a_mean_of_n_of_m():
    gradient = normal(8)
    mean, error = means(gradient, 2, 4, "random_biased")
    assert (np.abs(mean - gradient / 2) < 4.5 * error).all()


@pytest.mark.parametrize(
    "block",
    [
        [1.0, -1.0, 1.0, 1.0],
        [5.0, 1.0, -0.5, 0.2],
        [5.0, 4.0, -0.5, 0.2],
        [1.0, 0.0, 0.0, -1.0],
        [0.3, 0.0, 0.1, 0.1],
    ],
)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_mvue_has_the_least_variance(block, n):
    many = np.tile(np.array(block, "float32"), (20000, 1))
    found = prune(many, n, 4, "mvue")
    expected = reference.variance(block, n)
    np.testing.assert_allclose(
        found.var(0).sum(), expected, rtol=0.06, atol=1e-6
    )
    assert ((found != 0).sum(-1) <= n).all()


@pytest.mark.parametrize("mode", ["magnitude", "rescaled", "mvue"])
def test_a_nan_is_not_lost(mode):
    gradient = normal(3, 40, 8)
    gradient[1, :, 2] = np.nan
    found = prune(gradient, 2, 4, mode)
    assert np.isnan(found[1]).any(-1).all()
    assert np.isfinite(found[[0, 2]]).all()


def test_mvue_of_one_of_two_is_that_of_the_paper():
    many = np.tile(np.float32([3.0, -1.0]), (4000, 1))
    found = prune(many, 1, 2, "mvue")
    assert set(map(tuple, found.tolist())) == {(4.0, 0.0), (0.0, -4.0)}
    assert abs((found[:, 0] != 0).mean() - 0.75) < 0.04


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("mode", MODES)
def test_the_dtype_stays_and_only_the_result_is_rounded(mode, dtype):
    gradient = keras.ops.cast(normal(2, 50, 8), dtype)
    blocks = Blocks(Pattern(2, 4, mode), 8)
    numbers = drawn(gradient, blocks)
    found = pruned(gradient, blocks, numbers)
    assert keras.backend.standardize_dtype(found.dtype) == dtype
    assert (np.asarray(found) != 0).sum() == 2 * 50 * 4
    if dtype != "float64":
        exact = pruned(keras.ops.cast(gradient, "float32"), blocks, numbers)
        np.testing.assert_array_equal(found, keras.ops.cast(exact, dtype))


def test_the_share_of_what_is_kept():
    def share(n, m, channels, groups=1):
        return Blocks(Pattern(n, m, "magnitude"), channels, groups).share

    assert share(2, 4, 16) == 0.5
    assert share(1, 8, 16) == 0.125
    assert share(2, 4, 7) == 4 / 7  # Two of four, and two of three.
    assert share(2, 4, 10, groups=2) == 6 / 10
    assert share(2, 4, 2) == 1.0


@pytest.mark.parametrize(
    "n, m", [(0, 4), (5, 4), (1, 1), (2.0, 4), (True, 2), (1, 17)]
)
def test_patterns_without_n_of_m_are_refused(n, m):
    with pytest.raises(ValueError, match="`n` of every `m` channels"):
        Pattern(n, m, "magnitude")


def test_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="`mode` must be one of 'rescaled'"):
        Pattern(2, 4, "largest")
