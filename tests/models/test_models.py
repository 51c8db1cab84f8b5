import keras
import numpy as np
import pytest

from keras_prunetrain import models

BUILDERS = [getattr(models, name) for name in models.__all__]


def convolutions(model):
    return [x for x in model.layers if isinstance(x, keras.layers.Conv2D)]


def group_norms(model):
    """The norms that PruneTrain penalizes, as one vector."""
    convs = convolutions(model)
    dense = model.get_layer("logits")
    norms = []
    for layer in [*convs, dense]:
        kernel = keras.ops.convert_to_numpy(layer.kernel)
        squares = np.square(kernel.reshape(-1, *kernel.shape[-2:])).sum(0)
        if layer is not convs[0]:
            norms.append(np.sqrt(squares.sum(1) + 1e-8))
        if layer is not dense:
            norms.append(np.sqrt(squares.sum(0) + 1e-8))
    return np.concatenate(norms)


@pytest.mark.parametrize("build", BUILDERS)
def test_every_network_maps_images_to_logits(build):
    model = build((32, 32, 1), classes=7)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 1))
    assert model.name == build.__name__
    assert model(images.astype("float32")).shape == (2, 7)
    assert model.layers[-1].activation is keras.activations.linear


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (models.resnet8, 6 + 1 + 2),
        (models.resnet20, 18 + 1 + 2),
        (models.resnet32, 30 + 1 + 2),
        (models.resnet56, 54 + 1 + 2),
        # The first bottleneck of stage 1 widens, so it has a shortcut too.
        (models.resnet50_cifar, 76),
        (models.vgg11, 8),
        (models.vgg13, 10),
    ],
)
def test_number_of_convolutions(build, count):
    assert len(convolutions(build())) == count


@pytest.mark.parametrize(
    ("build", "penalty", "groups"),
    [
        (models.resnet32, 3.25e3, 2416),
        (models.resnet50_cifar, 1.42e4, 11440),
        (models.vgg11, 6.66e3, 5504),
    ],
)
def test_penalty_at_initialization(build, penalty, groups):
    keras.utils.set_random_seed(0)
    norms = group_norms(build())
    assert norms.size == groups
    np.testing.assert_allclose(norms.sum(), penalty, rtol=5e-3)


@pytest.mark.parametrize("build", [models.resnet8, models.vgg11])
def test_weight_decay_is_half_its_sum_of_squares(build):
    model = build(weight_decay=5e-4)
    rng = np.random.default_rng(0)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(size=weight.shape))
    squares = sum(
        np.square(keras.ops.convert_to_numpy(weight).astype("float64")).sum()
        for weight in model.trainable_weights
    )
    penalty = float(keras.ops.sum(model.losses))
    np.testing.assert_allclose(penalty, 5e-4 / 2 * squares, rtol=1e-4)


def test_no_weight_decay_means_no_losses():
    assert models.resnet8().losses == []


@pytest.mark.parametrize(
    ("build", "widths"),
    [
        (models.resnet20, (16, 32, 64)),
        (models.resnet50_cifar, (64, 128, 256)),
    ],
)
def test_stages_widen_while_the_image_shrinks(build, widths):
    model = build()
    for stage, width in enumerate(widths, start=1):
        size = 64 >> stage
        block = model.get_layer(f"stage{stage}_block0_relu")
        assert block.output.shape == (None, size, size, width)


@pytest.mark.parametrize("width", [1, 24, 64])
def test_all_stages_of_a_vgg_are_multiples_of_its_width(width):
    model = models.vgg11(width=width)
    widths = [conv.filters for conv in convolutions(model)]
    assert widths == [width * n for n in (1, 2, 4, 4, 8, 8, 8, 8)]
    assert model.get_layer("logits").kernel.shape == (8 * width, 10)


@pytest.mark.parametrize(
    ("shape", "pixels"),
    [
        ((32, 32, 3), [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]),
        ((16, 16, 3), [(8, 8), (4, 4), (2, 2), (1, 1)]),
        ((16, 2, 3), [(8, 1), (4, 1), (2, 1), (1, 1)]),
        ((1, 1, 3), []),
    ],
)
def test_a_vgg_pools_until_one_pixel_is_left(shape, pixels):
    model = models.vgg11(shape, width=1)
    pools = [x for x in model.layers if x.name.endswith("_pool")]
    assert [x.output.shape[1:3] for x in pools] == pixels
    assert model(np.ones((1, *shape))).shape == (1, 10)


@pytest.mark.parametrize(
    ("build", "width"),
    [(models.resnet8, 16), (models.vgg11, 64), (models.vgg13, 64)],
)
def test_the_width_of_the_paper_is_the_default(build, width):
    shapes = [
        [weight.shape for weight in model.weights]
        for model in (build(), build(width=width))
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("build", [models.resnet8, models.vgg11, models.vgg13])
def test_half_the_width_halves_every_layer_but_image_and_logits(build):
    full, half = build(width=4), build(width=2)
    for one, other in zip(full.layers, half.layers, strict=True):
        shape = list(one.output.shape)
        if one.name not in ("image", "logits"):
            shape[-1] //= 2
        assert list(other.output.shape) == shape


def test_equal_shapes_start_with_different_weights():
    model = models.resnet20()
    first = model.get_layer("stage1_block1_conv1").kernel
    second = model.get_layer("stage1_block2_conv1").kernel
    assert np.abs(first - second).max() > 0.1


def test_batch_normalization_as_in_the_paper():
    layer = models.resnet8().get_layer("stem_bn")
    assert (layer.momentum, layer.epsilon) == (0.9, 1e-5)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("input_shape", x) for x in (None, 32, (32, 32), (8, 8, 0), "abc")),
        *(("input_shape", x) for x in ((8, 8, 3.0), (8, 8, True), (8,) * 4)),
        *(("classes", x) for x in (None, 0, -1, 2.0, True, "10")),
        *(("width", x) for x in (None, 0, 2.0, True, "16")),
        *(("weight_decay", x) for x in (None, -1, "", "no", True, [])),
        *(("weight_decay", x) for x in (float("nan"), float("inf"), 10**400)),
    ],
)
def test_arguments_out_of_range_are_refused(argument, value):
    for build in (models.resnet8, models.vgg11):
        with pytest.raises(
            ValueError, match=f"`{argument}` must be .*Received"
        ):
            build(**{argument: value})


def test_numbers_of_numpy_are_numbers():
    model = models.resnet8(
        (np.int64(8), 8, 3), np.int32(4), np.float32(0.5), np.int16(2)
    )
    assert model.output_shape == (None, 4)
    assert model.get_layer("logits").kernel_regularizer.l2 == 0.25


@pytest.mark.parametrize("build", [models.resnet8, models.vgg11])
def test_a_small_integer_of_numpy_does_not_overflow(build):
    channels = build(width=np.int8(32)).get_layer("pool").output.shape[-1]
    assert channels == 32 * (4 if build is models.resnet8 else 8)
