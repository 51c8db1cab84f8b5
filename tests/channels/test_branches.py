"""Branches that compute a constant leave, and the constant stays."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_prunetrain import reconfigure
from keras_prunetrain.channels.liveness import plan_cut
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.channels.options import CutOptions
from tests import networks
from tests.masked import silence
from tests.networks import conv, conv_bn, images, kill, outputs, shake

pytestmark = pytest.mark.usefixtures("float64")


def block(x, name, channels=6, **kwargs):
    """A residual branch on `channels` channels, with 4 inside."""
    x = conv_bn(x, 4, f"{name}1")
    x = conv(x, channels, f"{name}2", **kwargs)
    return layers.BatchNormalization(name=f"{name}_bn")(x)


def kill_blocks(model, blocks, prefix="", value=0.0):
    for name in blocks:
        kill(
            model,
            {f"{prefix}{name}1": [0, 1, 2, 3]},
            {f"{prefix}{name}2": [0, 1, 2, 3]},
            value,
        )


def cut(model, *blocks, prefix="", value=networks.TINY):
    """Returns `model` without its dead `blocks`; checks what it computes."""
    model.compile("sgd", "mse")
    shake(model)
    kill_blocks(model, blocks, prefix, value)
    smaller = reconfigure(model)
    kill_blocks(model, blocks, prefix)
    np.testing.assert_allclose(
        outputs(smaller, images()), outputs(model, images()), atol=1e-12
    )
    return smaller


def names(model):
    return [layer.name for layer in model.layers]


def test_a_branch_behind_an_identity_shortcut_leaves_its_constant():
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 6, "stem")
    x = layers.ReLU()(layers.Add(name="add")([block(x, "a"), x]))
    model = keras.Model(image, networks.head(x))

    smaller = cut(model, "a")

    # The offset has taken the addition's place and name.
    assert not {"a1", "a1_bn", "a2", "a_bn"} & set(names(smaller))
    assert type(smaller.get_layer("add")) is layers.Rescaling
    bn = model.get_layer("a_bn")
    mean, variance = bn.moving_mean.numpy(), bn.moving_variance.numpy()
    bias = model.get_layer("a2").bias.numpy()
    expected = bn.gamma.numpy() * (bias - mean) / np.sqrt(variance + bn.epsilon)
    np.testing.assert_allclose(
        smaller.get_layer("add").offset,
        expected + bn.beta.numpy(),
        rtol=1e-13,
    )


def test_channels_of_a_branch_that_leaves_are_not_alive():
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 6, "stem")
    x = layers.ReLU()(layers.Add(name="add")([block(x, "a"), x]))
    model = keras.Model(image, networks.head(x))
    kill_blocks(model, "a")
    plan = plan_cut(model, CutOptions())
    inner = plan.numbering.outputs["a1"][0].numbers
    assert not plan.alive[inner].any()
    assert plan.alive.sum() == 2 + 6 + 3  # Image, stem and logits.


def test_without_a_constant_nothing_is_left():
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 6, "stem")
    branch = conv(x, 4, "a1", use_bias=False)
    branch = conv(branch, 6, "a2", use_bias=False)
    x = layers.Add(name="add")([branch, x])
    smaller = cut(keras.Model(image, networks.head(x)), "a")
    assert names(smaller)[1:] == [
        *("stem", "stem_bn", "stem_relu", "pool", "logits")
    ]


def test_an_activation_on_the_constant_is_part_of_it():
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 6, "stem")
    branch = layers.ReLU(threshold=0.9)(block(x, "a", activation="tanh"))
    x = layers.Add(name="add")([branch, x])
    smaller = cut(keras.Model(image, networks.head(x)), "a")
    offset = smaller.get_layer("add").offset
    assert 0 < np.count_nonzero(offset) < 6
    assert offset[offset != 0.0].min() >= 0.9


def test_of_three_summands_the_two_alive_are_still_added():
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 6, "stem")
    x = layers.Add(name="add")([block(x, "a"), x, block(x, "b")])
    model = keras.Model(image, networks.head(x))
    smaller = cut(model, "a")
    assert "b1" in names(smaller)
    assert "a1" not in names(smaller)
    assert type(smaller.get_layer("add")) is layers.Add
    assert type(smaller.get_layer("add_constant")) is layers.Rescaling
    assert len(smaller.get_layer("add")._inbound_nodes[0].input_tensors) == 2


def test_of_three_summands_two_constants_leave_their_sum():
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 6, "stem")
    x = layers.Add(name="add")([block(x, "a"), x, block(x, "b")])
    smaller = cut(keras.Model(image, networks.head(x)), "a", "b")
    assert names(smaller)[-3:] == ["add", "pool", "logits"]


def test_a_branch_in_a_nested_model_leaves():
    shape = keras.Input((6, 6, 5))
    x = layers.Add(name="add")([block(shape, "a", 5), shape])
    inner = keras.Model(shape, layers.ReLU(name="relu")(x), name="inner")
    image = keras.Input((6, 6, 2))
    model = keras.Model(image, networks.head(inner(conv(image, 5, "stem"))))
    smaller = cut(model, "a", prefix="inner/")
    assert names(smaller.get_layer("inner"))[1:] == ["add", "relu"]


def test_channels_and_a_branch_can_go_at_once():
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 6, "stem")
    x = layers.ReLU()(layers.Add(name="add")([block(x, "a"), x]))
    model = keras.Model(image, networks.head(x))
    model.compile("sgd", "mse")
    shake(model)
    dead = [0, 3]
    kill(model, {"stem": dead, "a2": dead}, {"a1": dead, "logits": dead})
    kill_blocks(model, "a")
    smaller = reconfigure(model)
    assert smaller.get_layer("add").offset.shape == (4,)
    np.testing.assert_allclose(
        outputs(smaller, images()), outputs(model, images()), atol=1e-12
    )
    # And the offset is cut like any other weight, the next time.
    kill(smaller, {"stem": [1]}, {"logits": [1]})
    smallest = reconfigure(smaller)
    assert smallest.get_layer("add").offset.shape == (3,)
    np.testing.assert_allclose(
        outputs(smallest, images()), outputs(smaller, images()), atol=1e-12
    )


def test_a_branch_that_reads_the_image_leaves():
    image = keras.Input((6, 6, 2))
    branch = block(layers.MaxPooling2D(1)(image), "a")
    x = layers.Add(name="add")([conv(image, 6, "stem"), branch])
    smaller = cut(keras.Model(image, networks.head(x)), "a")
    assert smaller.get_layer("stem").kernel.shape == (3, 3, 2, 6)
    assert "a1" not in names(smaller)


def test_the_models_own_output_keeps_its_branch():
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 6, "stem")
    model = keras.Model(image, layers.Add(name="add")([block(x, "a"), x]))
    smaller = cut(model, "a", value=0.0)
    assert smaller.get_layer("a1").filters == 1  # The strongest.
    assert type(smaller.get_layer("add")) is layers.Add


def test_a_model_called_twice_keeps_its_branch():
    left, right = keras.Input((6, 6, 6)), keras.Input((6, 6, 6))
    inner = keras.Model(
        [left, right], layers.Add(name="add")([left, right]), name="inner"
    )
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 6, "stem")
    x = inner([block(x, "a"), x])
    x = inner([conv(x, 6, "b"), x])
    smaller = cut(keras.Model(image, networks.head(x)), "a", value=0.0)
    assert names(smaller.get_layer("inner"))[2:] == ["add"]
    assert smaller.get_layer("a1").filters == 1


@pytest.mark.parametrize("second", ["alive", "dead", "constant"])
def test_an_addition_called_twice_keeps_its_branch(second):
    image = keras.Input((6, 6, 2))
    add = layers.Add(name="add")
    x = conv_bn(image, 6, "stem")
    y = conv_bn(image, 6, "other")
    x = add([block(x, "a"), x])
    constant = second == "constant"
    y = add([block(y, "b"), block(y, "c") if constant else y])
    x = layers.Concatenate()([x, y])
    blocks = {"alive": "a", "dead": "ab", "constant": "abc"}[second]
    model = keras.Model(image, networks.head(x))
    smaller = cut(model, *blocks, value=0.0)
    assert type(smaller.get_layer("add")) is layers.Add
    assert smaller.get_layer("a1").filters == 1


def test_a_branch_that_is_always_random_is_no_constant():
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 6, "stem")
    branch = layers.Dropout(0.5, name="dropout")(block(x, "a"), training=True)
    model = keras.Model(
        image, networks.head(layers.Add(name="add")([branch, x]))
    )
    model.compile("sgd", "mse")
    shake(model)
    kill_blocks(model, "a")
    assert "dropout" in names(reconfigure(model))


def test_a_branch_in_a_model_that_is_called_as_in_training_stays():
    inside = keras.Input((6, 6, 6))
    inner = keras.Model(inside, block(inside, "a"), name="inner")
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 6, "stem")
    x = layers.Add(name="add")([inner(x, training=True), x])
    smaller = cut(
        keras.Model(image, networks.head(x)), "a", prefix="inner/", value=0.0
    )
    assert "inner" in names(smaller)


def test_a_layer_of_a_branch_that_leaves_still_holds_what_it_reads_outside():
    twice = layers.Conv2D(3, 3, padding="same", name="twice")
    inside = keras.Input((6, 6, 4))
    x = conv(conv(twice(inside), 5, "in"), 4, "out")
    inner = keras.Model(inside, layers.Add()([inside, x]), name="inner")
    image = keras.Input((6, 6, 2))
    x = layers.BatchNormalization(name="bn")(conv(image, 4, "stem"))
    y = layers.ReLU()(layers.ReLU()(inner(x)))  # `inner` is the first to run.
    pool = layers.GlobalAveragePooling2D()
    y = layers.Dense(3, name="y")(pool(y))
    x = layers.Dense(2, name="x")(pool(twice(x)))
    model = keras.Model(image, layers.Concatenate()([x, y]))
    model.compile("sgd", "mse")
    shake(model)
    dead = {"stem": [0], "inner/in": range(5), "inner/out": range(4)}
    kill(model, dead, {"y": [0]})
    smaller = reconfigure(model)
    assert len(smaller.get_layer("inner").layers) < len(inner.layers)
    np.testing.assert_allclose(
        outputs(smaller, images()), outputs(model, images()), atol=1e-12
    )
    assert smaller.get_layer("stem").filters == 4


def test_a_branch_for_images_of_any_size_leaves():
    image = keras.Input((None, None, 2))
    x = conv_bn(image, 6, "stem")
    x = layers.Add(name="add")([block(x, "a"), x])
    smaller = cut(keras.Model(image, networks.head(x)), "a", value=0.0)
    assert "a1" not in names(smaller)
    assert smaller(images(shape=(7, 9, 2))).shape == (6, 3)


def test_a_constant_before_the_channels_lie_last_stays():
    image = keras.Input((2, 7, 7))
    first = {"data_format": "channels_first"}

    def convolve(x, channels, name):
        return layers.Conv2D(channels, 1, name=name, **first)(x)

    x = convolve(image, 6, "stem")
    branch = convolve(convolve(x, 4, "a1"), 6, "a2")
    x = layers.Add(name="add")([branch, x])
    x = layers.GlobalAveragePooling2D(**first)(x)
    model = keras.Model(image, layers.Dense(3, name="logits")(x))
    model.compile("sgd", "mse")
    shake(model)
    kill(model, {"a1": [0, 1, 2, 3]}, {"a2": [0, 1, 2, 3]})
    x = images(shape=(2, 7, 7))
    expected = networks.compiled_outputs(model, x)
    smaller = reconfigure(model)
    assert smaller.get_layer("a1").filters == 1
    np.testing.assert_allclose(
        networks.compiled_outputs(smaller, x), expected, atol=1e-12
    )


def test_the_constant_is_saved_to_the_last_bit(tmp_path):
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 6, "stem")
    x = layers.ReLU()(layers.Add(name="add")([block(x, "a"), x]))
    smaller = cut(keras.Model(image, networks.head(x)), "a")
    smaller.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(
        loaded.get_layer("add").offset, smaller.get_layer("add").offset
    )
    np.testing.assert_array_equal(loaded(images()), smaller(images()))


def attending(heads=1.0, query=1.0, masked=False):
    """An attention as a branch, whose heads, or queries, are multiplied."""
    steps = keras.Input((6, 6))
    mask = keras.Input((6, 6), dtype="bool")
    x = layers.LayerNormalization()(steps)
    few = layers.Dense(4, name="few")(x)
    given = {"attention_mask": mask} if masked else {}
    y = layers.MultiHeadAttention(3, 2, output_shape=6, name="heads")(
        few, x, **given
    )
    x = layers.LayerNormalization()(layers.Add(name="sum")([x, y]))
    model = keras.Model([steps, mask], layers.Dense(2)(x))
    shake(model)
    attention = model.get_layer("heads")
    for layer, factor in (
        *((attention.key_dense, heads), (attention.value_dense, heads)),
        (attention.query_dense, heads * query),
        (attention.output_dense, heads),
        (model.get_layer("few"), query),
    ):
        layer.kernel.assign(layer.kernel * factor)
    return model


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("left", [0.0, 9e-5])
def test_an_attention_without_heads_leaves_its_bias(masked, left):
    model = attending(heads=0.0, masked=masked)
    x = images(2, (6, 6)), np.ones((2, 6, 6), bool)
    expected = model(x)
    kernel = model.get_layer("heads").output_dense.kernel
    # Below the threshold: it counts as zero.
    kernel.assign(kernel + left * np.linspace(0.0, 1.0, 6))
    smaller = reconfigure(model)
    assert not any(
        isinstance(layer, layers.MultiHeadAttention) for layer in smaller.layers
    )
    np.testing.assert_allclose(smaller(x), expected, atol=1e-12)


def test_an_attention_without_values_leaves_its_bias():
    model = attending()
    numbering = number_channels(model)
    alive = np.ones(numbering.size, bool)
    alive[numbering.inner["heads"]["value_dim"]] = False
    silence(numbering, alive)
    x = images(2, (6, 6)), np.ones((2, 6, 6), bool)
    expected = model(x)
    smaller = reconfigure(model)
    assert "heads" not in names(smaller)
    np.testing.assert_allclose(smaller(x), expected, atol=1e-12)


def test_an_attention_without_heads_stays_for_its_regularizer():
    def build(regularizer):
        steps = keras.Input((6, 6))
        y = layers.MultiHeadAttention(
            3, 2, name="heads", activity_regularizer=regularizer
        )(steps, steps)
        x = layers.Add()([steps, y])
        model = keras.Model(steps, layers.Dense(2)(x))
        shake(model)
        for kernel in model.get_layer("heads").weights[::2]:
            kernel.assign(kernel * 0.0)
        return model

    assert "heads" not in names(reconfigure(build(None)))
    assert "heads" in names(reconfigure(build("l2")))


def test_an_attention_with_dead_queries_goes_on_reading_its_values():
    model = attending(query=0.0)
    x = images(2, (6, 6)), np.ones((2, 6, 6), bool)
    expected = model(x)
    smaller = reconfigure(model)
    assert "heads" in names(smaller)
    np.testing.assert_allclose(smaller(x), expected, atol=1e-12)


@pytest.mark.parametrize("skipped", ["a1", "a2", "a_bn"])
def test_a_branch_with_a_skipped_layer_stays(skipped):
    image = keras.Input((6, 6, 2))
    x = conv_bn(image, 6, "stem")
    x = layers.ReLU()(layers.Add(name="add")([block(x, "a"), x]))
    model = keras.Model(image, networks.head(x))
    model.compile("sgd", "mse")
    shake(model)
    kill_blocks(model, "a")

    smaller = reconfigure(model, skip=skipped)

    assert {"a1", "a2", "a_bn", "add"} <= {x.name for x in smaller.layers}
    np.testing.assert_allclose(
        outputs(smaller, images()), outputs(model, images()), atol=1e-12
    )
