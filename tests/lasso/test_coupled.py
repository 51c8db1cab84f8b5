"""One group for each channel number, against NumPy and finite differences."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.keras_internals import StepSize
from keras_prunetrain.lasso.coupled import CoupledGroups

FACTOR = 0.3


def model():
    """A residual stage of 4 channels, an inner layer of 3, and logits."""
    inputs = keras.Input((4, 4, 2))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    y = layers.Conv2D(3, 3, padding="same", name="inner")(x)
    y = layers.Conv2D(4, 3, padding="same", name="last")(y)
    x = layers.Add()([x, y])
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(2, name="logits")(x))


# The slices of each channel: a layer, and an index into its kernel.
def slices(network, stage=None, inner=None):
    kernel = {x: network.get_layer(x).kernel.numpy() for x in NAMES}
    if inner is not None:
        return [kernel["inner"][..., inner], kernel["last"][..., inner, :]]
    pixels = kernel["logits"].reshape((16, 4, 2))[:, stage]
    return [
        kernel["stem"][..., stage],
        kernel["inner"][..., stage, :],
        kernel["last"][..., stage],
        *pixels,  # Each position of the image is a slice of its own.
    ]


NAMES = ("stem", "inner", "last", "logits")
CHANNELS = [{"stage": i} for i in range(4)] + [{"inner": i} for i in range(3)]


def norm_of(parts):
    return np.sqrt(sum(np.square(x.astype("float64")).sum() for x in parts))


def groups_of(network, skip=()):
    return CoupledGroups(number_channels(network), skip)


def test_the_penalty_is_the_weighed_sum_of_the_norms_of_channels():
    network = model()
    expected = 0.0
    for channel in CHANNELS:
        parts = slices(network, **channel)
        expected += np.sqrt(len(parts)) * norm_of(parts)
    found = groups_of(network).sum_of_norms()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_slices_of_equal_norms_have_the_penalty_of_the_paper():
    network = model()
    for name in NAMES:
        kernel = network.get_layer(name).kernel
        kernel.assign(np.full(kernel.shape, np.prod(kernel.shape) ** -0.5))
    single = 0.0
    for channel in CHANNELS:
        single += sum(norm_of([x]) for x in slices(network, **channel))
    coupled = groups_of(network).sum_of_norms()
    # Within a channel the norms of this network's slices differ by a factor.
    assert single < coupled < 1.4 * single
    inputs = keras.Input((3,))
    x = layers.Dense(3, use_bias=False, name="a")(inputs)
    chain = keras.Model(inputs, layers.Dense(3, use_bias=False, name="b")(x))
    for name in "ab":
        chain.get_layer(name).kernel.assign(np.ones((3, 3)))
    paper = 3 * np.sqrt(3) + 3 * np.sqrt(3)
    np.testing.assert_allclose(
        groups_of(chain).sum_of_norms(), paper, rtol=1e-6
    )


def test_the_gradient_is_that_of_finite_differences():
    network = model()
    groups = groups_of(network)
    found = groups.gradients(groups.kernels, FACTOR)
    rng = np.random.default_rng(0)
    for kernel, gradient in zip(groups.kernels, found, strict=True):
        values = kernel.numpy()
        direction = rng.normal(size=values.shape).astype("float32")
        penalties = []
        for step in (0.01, -0.01):
            kernel.assign(values + step * direction)
            penalties.append(FACTOR * groups.sum_of_norms())
        kernel.assign(values)
        slope = (penalties[0] - penalties[1]) / 0.02
        inner = float((ops.convert_to_numpy(gradient) * direction).sum())
        np.testing.assert_allclose(inner, slope, rtol=0.02, atol=1e-2)


def test_near_zero_the_gradient_shrinks_with_the_slices():
    """As in `GroupLasso`, whose norm of each slice has 1e-8 under the root."""
    network = model()
    for name in NAMES:
        kernel = network.get_layer(name).kernel
        kernel.assign(1e-4 * kernel)
    groups = groups_of(network)
    stem = network.get_layer("stem").kernel
    (found,) = groups.gradients([stem], FACTOR)
    for i in range(4):
        parts = slices(network, stage=i)
        norm = np.sqrt(norm_of(parts) ** 2 + len(parts) * 1e-8)
        expected = FACTOR * np.sqrt(len(parts)) * parts[0] / norm
        np.testing.assert_allclose(found[..., i], expected, rtol=1e-4)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_step_shortens_each_channel_as_a_whole(adaptive):
    network = model()
    dying = slices(network, stage=2)
    groups = groups_of(network)
    for (
        kernel
    ) in groups.kernels:  # The channel 2 of the stage is close to zero.
        scale = np.ones(kernel.shape)
        name = kernel.path.split("/")[0]
        if name in ("stem", "last"):
            scale[..., 2] = 1e-3
        elif name == "inner":
            scale[..., 2, :] = 1e-3
        else:
            scale.reshape((16, 4, 2))[:, 2] = 1e-3
        kernel.assign(kernel * scale)
    before = {x.path: x.numpy().astype("float64") for x in groups.kernels}
    ratios = {}
    rng = np.random.default_rng(1)
    squares = {
        x.path: np.square(rng.normal(size=x.shape)).astype("float32")
        for x in groups.kernels
    }
    stand_in = model()
    for kernel, twin in zip(
        groups.kernels, groups_of(stand_in).kernels, strict=True
    ):
        twin.assign(np.sqrt(squares[kernel.path]))
    for channel in CHANNELS:
        parts = slices(network, **channel)
        factor = FACTOR * np.sqrt(len(parts))
        length = 0.1 * factor
        if adaptive:
            elements = sum(x.size for x in parts)
            mean = norm_of(slices(stand_in, **channel)) ** 2 / elements
            root = max(np.sqrt(mean), factor / np.sqrt(elements))
            length /= root + 0.2
        norm = norm_of(parts)
        ratios[tuple(channel.items())[0]] = max(0.0, 1 - length / norm)
    sizes = [
        StepSize(0.1, squares[x.path], 0.2)
        if adaptive
        else StepSize(0.1, None, 0.0)
        for x in groups.kernels
    ]
    found = groups.shrunk(groups.kernels, sizes, FACTOR)
    stage = np.array([ratios["stage", i] for i in range(4)])
    inner = np.array([ratios["inner", i] for i in range(3)])
    expected = {
        "stem": stage,
        "inner": stage[:, None] * inner,
        "last": inner[:, None] * stage,
        "logits": np.tile(stage, 16)[:, None],
    }
    assert stage[2] == 0.0 < stage[0] and len(dying) == 19
    for kernel, value in zip(groups.kernels, found, strict=True):
        ratio = expected[kernel.path.split("/")[0]]
        np.testing.assert_allclose(
            ops.convert_to_numpy(value),
            before[kernel.path] * ratio,
            rtol=1e-4,
            atol=1e-7,
        )


def test_the_kernels_of_layers_to_skip_are_in_no_group():
    network = model()
    whole, without = groups_of(network), groups_of(network, ["inner"])
    assert len(without.kernels) == len(whole.kernels) - 1
    assert without.sum_of_norms() < whole.sum_of_norms()


def test_channels_that_must_stay_are_in_no_group():
    inputs = keras.Input((2,))
    alone = keras.Model(inputs, layers.Dense(3)(inputs))
    assert groups_of(alone).kernels == []
    assert groups_of(alone).sum_of_norms() == 0.0
    # The last kernel reads the inputs, which stay, beside channels that may go.
    x = layers.Dense(3, use_bias=False, name="first")(inputs)
    x = layers.Concatenate()([inputs, x])
    beside = keras.Model(inputs, layers.Dense(4, name="last")(x))
    first, last = (
        beside.get_layer(name).kernel.numpy() for name in ("first", "last")
    )
    expected = sum(
        np.sqrt(2) * norm_of([first[:, i], last[2 + i]]) for i in range(3)
    )
    groups = groups_of(beside)
    np.testing.assert_allclose(groups.sum_of_norms(), expected, rtol=1e-5)
    sizes = [StepSize(0.1, None, 0.0)] * 2
    values = groups.shrunk(groups.kernels, sizes, FACTOR)
    by_path = {
        x.path: ops.convert_to_numpy(y)
        for x, y in zip(groups.kernels, values, strict=True)
    }
    found = by_path["last/kernel"]
    np.testing.assert_array_equal(found[:2], last[:2])
    assert (np.abs(found[2:]) < np.abs(last[2:])).all()


def test_an_optimizer_of_some_kernels_shrinks_these_by_all_norms():
    network = model()
    groups = groups_of(network)
    size = StepSize(0.1, None, 0.0)
    whole = groups.shrunk(groups.kernels, [size] * 4, FACTOR)
    part = groups.shrunk(groups.kernels[1:2], [size], FACTOR)
    np.testing.assert_allclose(
        ops.convert_to_numpy(part[0]), ops.convert_to_numpy(whole[1]), rtol=1e-6
    )
    adaptive = StepSize(0.1, np.ones(groups.kernels[1].shape, "float32"), 0.0)
    part = groups.shrunk(groups.kernels[1:2], [adaptive], FACTOR)
    np.testing.assert_allclose(
        ops.convert_to_numpy(part[0]), ops.convert_to_numpy(whole[1]), rtol=1e-5
    )
