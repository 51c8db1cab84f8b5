"""Which channels are one and the same, written out by hand.

Numbers run in the order in which the graph computes them; an image of two
channels takes 0 and 1.
"""

import keras
import numpy as np
import pytest
from keras import layers

from keras_prunetrain import channel_report, reconfigure
from keras_prunetrain.channels import rules
from keras_prunetrain.channels.numbering import number_channels
from tests import networks
from tests.masked import silence
from tests.networks import conv


def held_in(model):
    """Returns why channels stay, by layer."""
    return {row.layer: row.held_by for row in channel_report(model)}


def numbers(model):
    """Dict from a layer's key to the numbers of the channels it writes."""
    return {
        key: channels[0].numbers.tolist()
        for key, channels in number_channels(model).outputs.items()
    }


def labels(model):
    """Dict from a weight's path and axis to the numbers along that axis."""
    return {
        (label.weight.path, label.axis): label.numbers.tolist()
        for label in number_channels(model).labels
    }


def test_every_axis_of_every_weight_is_labelled():
    image = keras.Input((6, 6, 2))
    x = networks.conv_bn(image, 3, "a")
    x = layers.Dense(2, name="b")(x)
    assert labels(keras.Model(image, x)) == {
        ("a/kernel", 2): [0, 1],
        ("a/kernel", 3): [2, 3, 4],
        ("a_bn/gamma", 0): [2, 3, 4],
        ("a_bn/beta", 0): [2, 3, 4],
        ("a_bn/moving_mean", 0): [2, 3, 4],
        ("a_bn/moving_variance", 0): [2, 3, 4],
        ("b/kernel", 0): [2, 3, 4],
        ("b/kernel", 1): [5, 6],
        ("b/bias", 0): [5, 6],
    }


def test_only_kernels_have_a_say():
    image = keras.Input((6, 6, 2))
    x = layers.PReLU(name="c")(networks.conv_bn(image, 3, "a"))
    kernels = {
        (label.weight.path, label.side)
        for label in number_channels(keras.Model(image, x)).labels
        if label.is_kernel
    }
    assert kernels == {("a/kernel", "in"), ("a/kernel", "out")}


def test_add_makes_its_inputs_channels_one():
    found = numbers(networks.residual().model)
    assert found["stem"] == [2, 3, 4, 5, 6, 7]
    assert found["conv1"] == [8, 9, 10, 11]
    assert found["conv2"] == found["add"] == found["stem"]
    assert found["logits"] == [12, 13, 14]


def test_a_whole_stage_shares_its_channels():
    image = keras.Input((6, 6, 2))
    x = conv(image, 3, "stem")
    for name in ("a", "b", "c"):
        x = layers.Add()([conv(x, 3, name), x])
    found = numbers(keras.Model(image, x))
    assert found["a"] == found["b"] == found["c"] == found["stem"] == [2, 3, 4]


def test_add_of_the_image_itself_freezes():
    image = keras.Input((6, 6, 2))
    model = keras.Model(image, layers.Add()([conv(image, 2, "a"), image]))
    numbering = number_channels(model)
    assert numbers(model)["a"] == [0, 1]
    assert numbering.frozen == {0: "model input", 1: "model input"}


def test_projection_shortcut_ends_a_stage():
    found = numbers(networks.projection().model)
    assert found["stem"] == [2, 3, 4, 5]
    assert found["conv1"] == [6, 7, 8]
    assert found["conv2"] == found["shortcut"] == [9, 10, 11, 12, 13, 14]


def test_concatenate_lines_numbers_up():
    model = networks.concatenating().model
    found, axes = numbers(model), labels(model)
    assert found["stem"] == [2, 3, 4, 5]
    assert found["conv1"] == [6, 7, 8]
    assert found["bn1"] == [2, 3, 4, 5, 6, 7, 8]
    assert found["conv2"] == [9, 10, 11]
    assert axes["logits/kernel", 0] == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]


def test_concatenating_pixels_makes_channels_one():
    image = keras.Input((6, 6, 2))
    x = layers.Concatenate(1, name="c")([conv(image, 3, n) for n in "ab"])
    found = numbers(keras.Model(image, x))
    assert found["a"] == found["b"] == found["c"] == [2, 3, 4]


def test_flatten_repeats_the_channels_for_every_pixel():
    image = keras.Input((2, 2, 2))
    x = layers.Flatten()(conv(image, 3, "a"))
    model = keras.Model(image, layers.Dense(1, name="b")(x))
    assert labels(model)["b/kernel", 0] == [2, 3, 4] * 4


def test_flatten_of_channels_first_repeats_each_channel():
    image = keras.Input((2, 2, 2))
    x = layers.Conv2D(3, 1, data_format="channels_first", name="a")(image)
    # Flatten's own argument turns the channels to the end first.
    plain, turned = layers.Flatten(), layers.Flatten("channels_first")
    for layer, expected in (
        (plain, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]),
        (turned, [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]),
    ):
        y = layers.Dense(1, name="b")(layer(x))
        model = keras.Model(image, y)
        a = np.asarray(numbers(model)["a"])
        assert labels(model)["b/kernel", 0] == a[expected].tolist()


def test_reshape_and_permute_move_the_channel_axis():
    image = keras.Input((2, 2, 2))
    x = conv(image, 3, "a")
    x = layers.Permute((3, 1, 2), name="first")(x)
    x = layers.Reshape((3, 4), name="rows")(x)
    x = layers.Permute((2, 1), name="last")(x)
    model = keras.Model(image, layers.Dense(1, name="b")(x))
    outputs = number_channels(model).outputs
    assert [outputs[k][0].axis for k in ("a", "first", "rows", "last")] == [
        *(3, 1, 1, 2)
    ]
    assert numbers(model)["last"] == [2, 3, 4]
    assert labels(model)["b/kernel", 0] == [2, 3, 4]


def test_reshape_that_mixes_channels_and_pixels_ties_the_channels():
    image = keras.Input((2, 2, 2))
    x = layers.Reshape((4, 3), name="ok")(conv(image, 3, "a"))
    x = layers.Reshape((6, 2), name="mixed")(x)
    found = numbers(keras.Model(image, layers.Dense(1)(x)))
    assert found["a"] == found["ok"] == [2, 2, 2]
    assert found["mixed"] == [2, 2]


def test_channels_at_the_same_place_in_each_group_are_one():
    found = numbers(networks.grouped().model)
    assert found["stem"] == [2, 3, 2, 3, 2, 3]
    assert found["groups"] == [4, 5, 6, 4, 5, 6, 4, 5, 6]


def test_multiply_with_a_factor_per_channel():
    model = networks.squeezing().model
    found = numbers(model)
    assert found["stem"] == found["excite"] == [2, 3, 4, 5, 6, 7]
    assert found["squeeze"] == [8, 9, 10]


def test_multiply_with_one_factor_for_all_channels_ties_nothing():
    image = keras.Input((6, 6, 2))
    x, mask = conv(image, 3, "a"), conv(image, 1, "mask")
    model = keras.Model(image, layers.Multiply(name="m")([mask, x]))
    found = numbers(model)
    assert found["m"] == found["a"]
    assert set(found["mask"]).isdisjoint(found["a"])
    reasons = number_channels(model).frozen
    assert reasons[found["mask"][0]] == "m spreads it over all others"


def test_a_layer_called_twice_reads_what_it_writes():
    model = networks.shared().model
    assert numbers(model)["twice"] == numbers(model)["stem"] == [2, 3, 4, 5, 6]
    assert labels(model)["twice/kernel", 2] == [2, 3, 4, 5, 6]


def test_a_reshape_called_twice_has_one_channel_count():
    image = keras.Input((6, 6, 2))
    reshape = layers.Reshape((36, 3))
    x = layers.Concatenate()([reshape(conv(image, 3, n)) for n in "ab"])
    found = numbers(keras.Model(image, x))
    assert found["a"] == found["b"]


def test_an_activation_called_twice_ties_nothing():
    image = keras.Input((6, 6, 2))
    relu = layers.ReLU()
    x = relu(conv(relu(conv(image, 3, "a")), 3, "b"))
    found = numbers(keras.Model(image, x))
    assert (found["a"], found["b"]) == ([2, 3, 4], [5, 6, 7])


def test_nested_models_are_followed_inside():
    model = networks.nested().model
    found = numbers(model)
    assert found["stem"] == found["inner/b"] == [2, 3, 4, 5, 6]
    assert found["inner/a"] == [7, 8, 9, 10, 11, 12]
    assert found["neck/c"] == [13, 14, 15, 16]
    assert labels(model)["logits/kernel", 0] == [13, 14, 15, 16]


def test_a_model_called_twice_is_one_set_of_channels():
    shape = keras.Input((6, 6, 3))
    inner = keras.Model(shape, conv(shape, 3, "a"), name="inner")
    image = keras.Input((6, 6, 2))
    model = keras.Model(image, inner(inner(conv(image, 3, "stem"))))
    assert numbers(model) == {"stem": [2, 3, 4], "inner/a": [2, 3, 4]}


@pytest.mark.parametrize("nested", [False, True])
def test_channels_first_lies_on_axis_one(nested):
    image = keras.Input((2, 6, 7))
    first = {"data_format": "channels_first"}
    x = layers.Conv2D(3, 3, name="a", **first)(image)
    x = layers.BatchNormalization(axis=1, name="bn")(x)
    x = layers.MaxPooling2D(2, **first)(x)
    x = layers.GlobalAveragePooling2D(name="pool", **first)(x)
    model = keras.Model(image, layers.Dense(1, name="b")(x))
    if nested:
        model = keras.Sequential([keras.Input((2, 6, 7)), *model.layers[1:]])
    outputs = number_channels(model).outputs
    assert [outputs[k][0].axis for k in ("a", "bn", "pool")] == [1, 1, 1]
    # The image's layout shows in what reads it: 0 to 6 were its columns.
    assert labels(model)["a/kernel", 2] == [7, 8]
    assert labels(model)["bn/gamma", 0] == [9, 10, 11]
    assert labels(model)["b/kernel", 0] == [9, 10, 11]


def test_a_normalization_of_another_axis_than_the_channels_freezes():
    image = keras.Input((6, 6, 2))
    x = layers.BatchNormalization(axis=1, name="rows")(conv(image, 3, "a"))
    frozen = number_channels(keras.Model(image, x)).frozen
    reason = "rows (BatchNormalization): its channel axis is not that of its"
    assert frozen[2].startswith(reason)


class Unknown(layers.Layer):
    def call(self, x):
        return keras.ops.flip(x, -1)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Unknown(name="u"), "u (Unknown): no rule for this class, see regist"),
        (layers.Softmax(name="u"), "u (Softmax): it mixes channels"),
        (
            layers.LayerNormalization(name="u"),
            "u (LayerNormalization): it normalizes across channels",
        ),
        (
            layers.GroupNormalization(2, name="u"),
            "u (GroupNormalization): it normalizes groups of channels",
        ),
        (
            layers.Activation("softmax", name="u"),
            "u (Activation): its activation softmax may mix channels",
        ),
        (
            layers.TimeDistributed(layers.PReLU(), name="u"),
            "u (TimeDistributed): the layer in it cannot be followed",
        ),
        (
            layers.TimeDistributed(layers.Reshape((6, 4)), name="u"),
            "u (TimeDistributed): the layer in it cannot be followed",
        ),
        (
            layers.TimeDistributed(layers.LayerNormalization(), name="u"),
            "u (TimeDistributed): it normalizes across channels",
        ),
        (layers.Dropout(0.5, (None, 1, 1, 4), name="u"), "u (Dropout): it has"),
        (
            layers.EinsumDense("abcd,ce->abed", (6, 5, 4), name="u"),
            "u (EinsumDense): its equation",
        ),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, layers.Layer) else "",
)
def test_what_is_not_channel_by_channel_holds_all_that_it_touches(
    layer, reason
):
    image = keras.Input((6, 6, 2))
    x = layer(conv(image, 4, "a"))
    x = conv(x, 5, "b")
    frozen = number_channels(keras.Model(image, networks.head(x))).frozen
    for number in (2, 3, 4, 5):  # The channels of `a`.
        assert frozen[number].startswith(reason)
    model = keras.Model(image, networks.head(x))
    for number in numbers(model)["b"]:
        assert number not in frozen


def test_inputs_and_outputs_of_the_model_are_called_so_before_all_else():
    image = keras.Input((6, 6, 2))
    x = layers.Softmax(name="mixing")(conv(image, 4, "a"))
    x = layers.Dense(3, "softmax", name="b")(layers.Softmax(name="s")(x))
    numbering = number_channels(keras.Model([image, image], [x, image]))
    assert set(numbering.frozen.values()) == {
        *("model input", "model output"),
        "mixing (Softmax): it mixes channels",
    }
    for number in numbering.outputs["b"][0].numbers.tolist():
        assert numbering.frozen[number] == "model output"


def test_inputs_and_outputs_of_the_model_stay():
    model = networks.plain().model
    numbering = number_channels(model)
    assert numbering.frozen == {
        **dict.fromkeys([0, 1], "model input"),
        **dict.fromkeys(numbers(model)["logits"], "model output"),
    }


@pytest.mark.parametrize("first", ["followed", "turned"])
def test_a_layer_that_is_followed_in_one_of_its_calls_only_stays(first):
    dense = layers.Dense(6, name="twice")
    image = keras.Input((6, 6, 2))
    followed = conv(image, 6, "a")
    turned = layers.Permute((3, 1, 2))(conv(image, 6, "b"))
    inputs = [followed, turned]
    if first == "turned":
        inputs = inputs[::-1]
    x, y = (dense(x) for x in inputs)
    x = layers.Concatenate()(
        [layers.Dense(3, name=n)(z) for n, z in (("c", x), ("d", y))]
    )
    numbering = number_channels(keras.Model(image, x))
    for layer in ("a", "b", "twice"):
        for channels in numbering.outputs[layer]:
            for number in channels.numbers.tolist():
                assert number in numbering.frozen, layer
    (why,) = {numbering.frozen[n] for n in numbering.inputs["c"][0].numbers}
    assert why.startswith("twice (Dense): its channel axis is not that of")


def test_a_layer_that_is_also_in_an_unknown_one_stays():
    dense = layers.Dense(5, name="both")
    line = keras.Sequential([keras.Input((6, 4)), dense])
    image = keras.Input((6, 6, 2))
    x = dense(conv(image, 4, "a"))
    y = layers.TimeDistributed(line, name="each")(conv(image, 4, "b"))
    model = keras.Model(image, layers.Dense(3)(layers.Concatenate()([x, y])))
    numbering = number_channels(model)
    for number in numbers(model)["both"]:
        assert numbering.frozen[number].startswith("each (TimeDistributed)")


def test_a_second_input_of_a_layer_with_a_rule_for_one_freezes_both():
    image = keras.Input((6, 2))
    x = layers.Conv1D(4, 3, padding="same", name="a")(image)
    state = layers.Dense(4, name="m")(layers.Flatten()(image))
    x = layers.GRU(4, name="gru")(x, initial_state=state)
    numbering = number_channels(keras.Model(image, layers.Dense(3)(x)))
    reason = "gru (GRU): its rule is for one input"
    for layer in ("a", "m"):
        for number in numbering.outputs[layer][0].numbers.tolist():
            assert numbering.frozen[number].startswith(reason)


def test_a_mask_of_steps_stays_and_holds_no_channels():
    image = keras.Input((6, 2))
    x = layers.Conv1D(4, 3, padding="same", name="a")(image)
    mask = layers.Conv1D(1, 1, name="m")(image)
    mask = layers.Reshape((6,))(mask) > 0.0
    x = layers.BatchNormalization(name="bn")(x, mask=mask)
    model = keras.Model(image, layers.Dense(3, name="b")(x))
    numbering = number_channels(model)
    (channel,) = numbering.outputs["m"][0].numbers.tolist()
    assert numbering.frozen[channel] == (
        "bn (BatchNormalization): its mask has an entry for each step"
    )
    assert not numbering.frozen.keys() & set(numbering.outputs["a"][0].numbers)


def test_a_mask_with_an_entry_for_each_channel_is_a_second_input():
    image = keras.Input((6, 2))
    x = layers.Conv1D(4, 3, padding="same", name="a")(image)
    x = layers.TimeDistributed(layers.Dense(3), name="each")(x, mask=x > 0.0)
    numbering = number_channels(keras.Model(image, layers.Dense(3)(x)))
    for number in numbering.outputs["a"][0].numbers.tolist():
        assert numbering.frozen[number].startswith(
            "each (TimeDistributed): its rule is for one input"
        )


def test_numbers_are_dense():
    numbering = number_channels(networks.nested().model)
    used = np.concatenate([x.numbers for x in numbering.labels])
    assert set(used) == set(range(numbering.size))


def test_heads_stay_where_their_scores_are_returned():
    steps = keras.Input((6, 4))
    attention = layers.MultiHeadAttention(3, 2, name="heads")
    both = attention(steps, steps, return_attention_scores=True)
    numbering = number_channels(keras.Model(steps, both))
    heads, values = numbering.inner["heads"].values()
    for head in heads.tolist():
        assert numbering.frozen[head] == (
            "heads (MultiHeadAttention): another output may have an entry for "
            "each of them"
        )
    assert numbering.frozen.keys().isdisjoint(values.tolist())


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((5, 6), {"output_shape": (3, 4)}),  # Of as many axes as the scores.
        ((3, 4, 6), {"attention_axes": (1, 2)}),
    ],
)
def test_scores_that_are_outputs_keep_their_shape(shape, options):
    steps = keras.Input(shape)
    attention = layers.MultiHeadAttention(
        5, 2, value_dim=7, name="heads", **options
    )
    outputs = attention(steps, steps, return_attention_scores=True)
    numbering = number_channels(keras.Model(steps, outputs))
    heads, values = numbering.inner["heads"].values()
    assert numbering.frozen.keys() >= {*heads.tolist()}
    assert numbering.frozen.keys().isdisjoint(values.tolist())


def test_heads_are_the_same_in_every_call_and_are_not_rounded_up():
    steps = keras.Input((6, 4))
    attention = layers.MultiHeadAttention(3, 2, name="heads")
    x = attention(attention(steps, steps), steps)
    model = keras.Model(steps, x)
    heads = number_channels(model).inner["heads"]["num_heads"]
    assert len(heads) == 3
    for name, axis in (("query", 1), ("key", 1), ("value", 1)):
        kernel = getattr(attention, f"{name}_dense").kernel
        kernel.assign(kernel.numpy() * [[[1.0], [0.0], [1.0]]])
        assert kernel.shape[axis] == 3
    kernel = attention.output_dense.kernel
    kernel.assign(kernel.numpy() * [[[1.0]], [[0.0]], [[1.0]]])
    smaller = reconfigure(model, channel_multiple=8, min_channels=3)
    assert smaller.get_layer("heads").num_heads == 2


def test_channels_of_values_have_numbers_and_those_of_scores_have_none():
    steps = keras.Input((6, 4))
    attention = layers.MultiHeadAttention(3, 2, value_dim=4, name="heads")
    numbering = number_channels(keras.Model(steps, attention(steps, steps)))
    inner = numbering.inner["heads"]
    assert {name: len(x) for name, x in inner.items()} == {
        "num_heads": 3,
        "value_dim": 4,
    }
    assert {
        (label.weight.path.split("/")[-2], label.axis)
        for label in numbering.labels
        if label.is_kernel
    } == {
        *(("query", 0), ("key", 0), ("value", 0)),
        *(("query", 1), ("key", 1), ("value", 1), ("value", 2)),
        *(("attention_output", axis) for axis in range(3)),
    }


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_each_projection_reads_the_channels_of_its_argument(named, gated):
    inputs = keras.Input((5, 2)), keras.Input((7, 2)), keras.Input((7, 2))
    read = {
        name: layers.Dense(4, name=name)(x)
        for name, x in zip(("query", "value", "key"), inputs, strict=True)
    }
    attention = layers.MultiHeadAttention(2, 3, use_gate=gated, name="heads")
    # Keras sorts named arguments by their names.
    x = attention(**read) if named else attention(*read.values())
    model = keras.Model(inputs, layers.Dense(2)(x))
    found = labels(model)
    for argument in read:
        made = found[f"{argument}/kernel", 1]
        assert found[f"heads/{argument}/kernel", 0] == made
        assert number_channels(model).frozen.keys().isdisjoint(made)
    if gated:
        assert found["heads/gate/kernel", 0] == found["query/kernel", 1]


def test_an_attention_without_keys_reads_them_from_the_values():
    few, many = keras.Input((5, 2)), keras.Input((7, 2))
    attention = layers.MultiHeadAttention(2, 3, name="heads")
    x = attention(layers.Dense(4)(few), layers.Dense(5, name="many")(many))
    found = labels(keras.Model([few, many], layers.Dense(2)(x)))
    for part in ("key", "value"):
        assert found[f"heads/{part}/kernel", 0] == found["many/kernel", 1]


@pytest.mark.parametrize("size", [None, 4, (3, 4)])
@pytest.mark.parametrize("held", ["inputs", "outputs", "nothing"])
def test_an_attention_reads_and_writes_what_is_left(size, held, float64):
    steps = keras.Input((6, 4))
    x = steps if held == "inputs" else layers.Dense(4, name="before")(steps)
    attention = layers.MultiHeadAttention(3, 2, output_shape=size, name="heads")
    x = attention(x, x)
    x = x if held == "outputs" else layers.Dense(2, name="after")(x)
    model = keras.Model(steps, x)
    networks.shake(model)
    numbering = number_channels(model)
    alive = np.ones(numbering.size, bool)
    for name in {"before", "heads"} & numbering.outputs.keys():
        made = numbering.outputs[name][0].numbers
        alive[np.setdiff1d(made[[1, 3]], list(numbering.frozen))] = False
    assert not alive.all()
    silence(numbering, alive)
    expected = networks.outputs(model, (x := networks.images(2, (6, 4))))
    smaller = reconfigure(model)
    heads = smaller.get_layer("heads")
    left = {"inputs": (4, 2), "outputs": (2, 4), "nothing": (2, 2)}[held]
    kernels = heads.query_dense.kernel, heads.output_dense.kernel
    assert (kernels[0].shape[0], kernels[1].shape[-1]) == left
    np.testing.assert_allclose(
        networks.outputs(smaller, x), expected, atol=1e-12
    )
    again = keras.models.clone_model(smaller)
    assert again.output_shape == smaller.output_shape


def test_what_shares_its_heads_writes_as_many_channels_as_it_reads():
    few, many = keras.Input((5, 2)), keras.Input((7, 2))
    x = layers.Dense(4, name="few")(few)
    attention = layers.GroupQueryAttention(3, 4, 2, name="heads")
    x = attention(x, layers.Dense(4, name="many")(many))
    model = keras.Model([few, many], layers.Dense(2, name="after")(x))
    found = labels(model)
    for path, axis in (
        *(("heads/query/kernel", 0), ("heads/value/kernel", 0)),
        *(("heads/attention_output/kernel", 2), ("after/kernel", 0)),
        ("many/kernel", 1),
    ):
        assert found[path, axis] == found["few/kernel", 1]


def test_both_calls_of_an_attention_read_the_same_channels():
    one, two = keras.Input((5, 2)), keras.Input((5, 2))
    x, y = layers.Dense(4, name="one")(one), layers.Dense(4, name="two")(two)
    attention = layers.MultiHeadAttention(2, 3, name="heads")
    x = layers.Add()([attention(x, y), attention(value=y, query=x)])
    found = labels(keras.Model([one, two], layers.Dense(2)(x)))
    assert found["heads/query/kernel", 0] == found["one/kernel", 1]
    assert found["heads/value/kernel", 0] == found["two/kernel", 1]
    assert found["one/kernel", 1] != found["two/kernel", 1]


def test_an_attention_around_which_nothing_goes_stays_as_it_is():
    steps = keras.Input((6, 4))
    x = layers.MultiHeadAttention(3, 2, name="heads")(steps, steps)
    x = layers.Add()([x, steps])
    x = layers.Dense(2, name="last")(layers.Dense(5, name="up")(x))
    model = keras.Model(steps, x)
    numbering = number_channels(model)
    alive = np.ones(numbering.size, bool)
    alive[numbering.outputs["up"][0].numbers[1]] = False
    silence(numbering, alive)
    smaller = reconfigure(model)
    assert smaller.get_layer("up").units == 4
    config = model.get_layer("heads").get_config()
    assert smaller.get_layer("heads").get_config() == config


def test_a_mask_in_one_call_is_not_the_keys_in_another():
    one, mask = keras.Input((5, 2)), keras.Input((5, 5), dtype="bool")
    x, keys = layers.Dense(5)(one), layers.Dense(5, name="keys")(one)
    attention = layers.MultiHeadAttention(2, 3)
    x = layers.Add()(
        [attention(x, x, attention_mask=mask), attention(x, x, keys)]
    )
    numbering = number_channels(keras.Model([one, mask], layers.Dense(2)(x)))
    made = numbering.outputs["keys"][0].numbers.tolist()
    assert numbering.frozen.keys().isdisjoint(made)


def test_a_mask_for_an_attention_holds_no_channels():
    words, mask = keras.Input((6,)), keras.Input((6, 6), dtype="bool")
    x = layers.Embedding(9, 4, mask_zero=True, name="words")(words)
    x = layers.Dense(4, name="before")(x)
    attention = layers.MultiHeadAttention(2, 3, name="heads")
    x = attention(x, x, attention_mask=mask)
    model = keras.Model([words, mask], layers.Dense(2)(x))
    numbering = number_channels(model)
    made = numbering.outputs["before"][0].numbers.tolist()
    assert numbering.frozen.keys().isdisjoint(made)


def test_channels_that_lie_on_another_axis_than_an_attention_reads_stay():
    image = keras.Input((2, 5, 5))
    first = {"data_format": "channels_first", "name": "before"}
    x = layers.Conv2D(4, 1, **first)(image)
    x = layers.MultiHeadAttention(2, 3, name="heads")(x, x)
    held = held_in(keras.Model(image, x))
    assert held["before"] == (
        "heads (MultiHeadAttention): its channel axis is not that of its "
        "input: 3, not 1 (4)",
    )


def test_a_mask_that_is_the_values_as_well_stays():
    steps = keras.Input((6, 4))
    x = layers.Dense(6, name="both")(steps)
    attention = layers.MultiHeadAttention(2, 3, name="heads")
    x = attention(layers.Dense(4)(steps), x, attention_mask=x)
    held = {
        row.layer: row.held_by
        for row in channel_report(keras.Model(steps, layers.Dense(2)(x)))
    }
    assert held["both"] == (
        "heads (MultiHeadAttention): no kernel in its rule reads or writes it "
        "(6)",
    )


def test_channels_of_a_mask_of_words_are_followed_no_further():
    words = keras.Input((None,), dtype="int32")
    x = layers.Embedding(9, 4)(words)
    x = layers.Dense(4, name="before")(x)
    mask = (words != 0)[:, None, :]
    attention = layers.MultiHeadAttention(2, 3, name="heads")
    x = attention(x, x, attention_mask=mask)
    numbering = number_channels(keras.Model(words, layers.Dense(2)(x)))
    made = numbering.outputs["before"][0].numbers.tolist()
    assert numbering.frozen.keys().isdisjoint(made)


@pytest.mark.filterwarnings("ignore:Layer 'inner'")
def test_a_nested_model_may_get_a_mask(float64):
    words = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 5, mask_zero=True)(words)
    steps = keras.Input((6, 4))
    y = layers.Dense(4, name="up")(steps)
    inner = keras.Model(steps, layers.LSTM(3)(y), name="inner")
    model = keras.Model(words, layers.Dense(2)(inner(layers.Dense(4)(x))))
    networks.shake(model)
    numbering = number_channels(model)
    alive = np.ones(numbering.size, bool)
    alive[numbering.outputs["inner/up"][0].numbers[1]] = False
    silence(numbering, alive)
    x = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 0]])
    expected = networks.outputs(model, x)
    smaller = reconfigure(model)
    assert smaller.get_layer("inner").get_layer("up").units == 3
    np.testing.assert_allclose(
        networks.outputs(smaller, x), expected, atol=1e-12
    )


def test_an_attention_of_the_users_with_other_arguments_is_held():
    class Renamed(layers.MultiHeadAttention):
        def call(self, few, many):
            return super().call(few, many)

        def build(self, few_shape, many_shape):
            super().build(few_shape, many_shape)

    rules.register_rule(Renamed, rules.LAYER_RULES[layers.MultiHeadAttention])
    steps = keras.Input((6, 4))
    x = layers.Dense(4, name="before")(steps)
    x = Renamed(2, 3, name="heads")(x, x)
    held = held_in(keras.Model(steps, x))
    assert held["before"] == (
        "heads (Renamed): its rule names an argument of its call that "
        "'query/kernel' reads, and the call has none of query (4)",
    )


def test_a_head_and_a_channel_stay_if_all_are_dead():
    steps = keras.Input((6, 4))
    attention = layers.MultiHeadAttention(3, 2, value_dim=4, name="heads")
    model = keras.Model(steps, attention(steps, steps))
    numbering = number_channels(model)
    alive = np.ones(numbering.size, bool)
    alive[np.concatenate(numbering.inner_numbers())] = False
    silence(numbering, alive)
    config = reconfigure(model).get_layer("heads").get_config()
    assert (config["num_heads"], config["value_dim"]) == (1, 2)


def test_two_channels_of_the_values_stay_beside_as_many_heads_as_steps(float64):
    # Keras adds a bias of shape (heads, 1) along the steps if these are as
    # many: its own layer is then wrong.
    steps = keras.Input((6, 4))
    attention = layers.MultiHeadAttention(6, 2, value_dim=4, name="heads")
    model = keras.Model(steps, attention(steps, steps))
    networks.shake(model)
    numbering = number_channels(model)
    alive = np.ones(numbering.size, bool)
    alive[numbering.inner["heads"]["value_dim"][1:]] = False
    silence(numbering, alive)
    x = networks.images(2, (6, 4))
    expected = networks.outputs(model, x)
    smaller = reconfigure(model)
    assert smaller.get_layer("heads").value_dim == 2
    np.testing.assert_allclose(
        networks.outputs(smaller, x), expected, atol=1e-12
    )


@pytest.mark.parametrize("sizes", [(1, 3), (3, 1), (1, None)])
def test_heads_of_one_channel_stay_beside_as_many_steps_as_are_left(
    sizes, float64
):
    key_dim, value_dim = sizes
    steps = keras.Input((4, 3))
    attention = layers.MultiHeadAttention(
        5, key_dim, value_dim, output_shape=3, name="heads"
    )
    model = keras.Model(steps, layers.Dense(2)(attention(steps, steps)))
    networks.shake(model)
    numbering = number_channels(model)
    alive = np.ones(numbering.size, bool)
    alive[numbering.inner["heads"]["num_heads"][2]] = False
    silence(numbering, alive)
    x = networks.images(2, (4, 3))
    expected = networks.outputs(model, x)
    smaller = reconfigure(model)
    np.testing.assert_allclose(
        networks.outputs(smaller, x), expected, atol=1e-12
    )
    assert smaller is model


def test_heads_of_one_channel_go_where_nothing_is_added(float64):
    steps = keras.Input((4, 3))
    attention = layers.MultiHeadAttention(
        5, 1, use_bias=False, output_shape=3, name="heads"
    )
    model = keras.Model(steps, layers.Dense(2)(attention(steps, steps)))
    networks.shake(model)
    numbering = number_channels(model)
    alive = np.ones(numbering.size, bool)
    alive[numbering.inner["heads"]["num_heads"][2]] = False
    silence(numbering, alive)
    x = networks.images(2, (4, 3))
    expected = networks.outputs(model, x)
    smaller = reconfigure(model)
    assert smaller.get_layer("heads").num_heads == 4
    np.testing.assert_allclose(
        networks.outputs(smaller, x), expected, atol=1e-12
    )


def test_a_bias_for_each_head_keeps_two_channels(float64):
    steps = keras.Input((6, 4))
    x = layers.EinsumDense("abc,cde->abde", (None, 6, 4), bias_axes="de")(steps)
    model = keras.Model(steps, layers.Dense(2)(x))
    networks.shake(model)
    kernels = [layer.kernel for layer in model.layers[1:]]
    kernels[0].assign(kernels[0] * [1.0, 0.0, 0.0, 0.0])
    kernels[1].assign(kernels[1] * [[1.0], [0.0], [0.0], [0.0]])
    x = networks.images(2, (6, 4))
    expected = networks.outputs(model, x)
    smaller = reconfigure(model)
    assert smaller.layers[1].kernel.shape == (4, 6, 2)
    np.testing.assert_allclose(
        networks.outputs(smaller, x), expected, atol=1e-12
    )


@pytest.mark.parametrize("gated", [False, True])
def test_a_channel_of_the_values_goes_from_all_heads(gated):
    steps = keras.Input((6, 4))
    attention = layers.MultiHeadAttention(
        3, 2, value_dim=4, use_gate=gated, name="heads"
    )
    model = keras.Model(steps, attention(steps, steps))
    numbering = number_channels(model)
    alive = np.ones(numbering.size, bool)
    alive[numbering.inner["heads"]["value_dim"][[0, 2]]] = False
    silence(numbering, alive)
    written, heads, values = channel_report(model)
    assert (written.layer, written.channels) == ("heads", 4)
    assert (heads.layer, heads.channels) == ("heads/num_heads", 3)
    assert (values.layer, values.channels) == ("heads/value_dim", 4)
    assert (heads.dead, values.dead, values.removable) == (0, 2, 2)
    smaller = reconfigure(model)
    config = smaller.get_layer("heads").get_config()
    names = "num_heads", "key_dim", "value_dim"
    assert [config[name] for name in names] == [3, 2, 2]
    x = np.random.default_rng(1).normal(size=(2, 6, 4))
    np.testing.assert_allclose(smaller(x), model(x), atol=1e-6)


def test_a_vision_transformer_loses_half_of_its_parameters():
    image = keras.Input((8, 8, 3))
    x = layers.Reshape((16, 16))(layers.Conv2D(16, 2, strides=2)(image))
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(4, 4)(y, y)])
        y = layers.Dense(64, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(16)(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    model = keras.Model(image, layers.Dense(5)(x))
    numbering = number_channels(model)
    # Every second head, and every second channel between the dense layers.
    dead = np.setdiff1d(np.arange(numbering.size), list(numbering.frozen))[::2]
    alive = np.ones(numbering.size, bool)
    alive[dead] = False
    silence(numbering, alive)
    smaller = reconfigure(model)
    assert smaller.count_params() < 0.6 * model.count_params()


def test_heads_stay_if_a_call_of_their_layer_cannot_be_followed():
    steps = keras.Input((6, 4))
    attention = layers.MultiHeadAttention(3, 2, name="heads")
    x = attention(steps, steps)
    x = attention(x, steps, attention_mask=np.ones((1, 6, 6), bool))
    numbering = number_channels(keras.Model(steps, x))
    inner = np.concatenate(numbering.inner_numbers())
    assert {numbering.frozen[n] for n in inner.tolist()} == {
        "heads (MultiHeadAttention): an array of fixed size is among its "
        "arguments"
    }


def test_heads_stay_if_another_model_calls_their_layer_in_an_unknown_way():
    attention = layers.MultiHeadAttention(3, 2, name="heads")
    steps = keras.Input((6, 4))
    first = keras.Model(steps, attention(steps, steps), name="first")
    steps = keras.Input((6, 4))
    x = attention(steps, steps, attention_mask=np.ones((1, 6, 6), bool))
    second = keras.Model(steps, x, name="second")
    steps = keras.Input((6, 4))
    numbering = number_channels(keras.Model(steps, second(first(steps))))
    inner = np.concatenate(numbering.inner_numbers())
    assert numbering.frozen.keys() >= set(inner.tolist())


@pytest.mark.parametrize(
    ("places", "shape", "stays"),
    [
        ((6,), (6, 6), False),
        ((6,), (1, 6, 6), False),
        ((6,), (3, 6, 6), True),
        ((6,), (None, 6, 6), True),
        ((3,), (1, 3, 3), False),  # As many steps as heads.
        ((3, 6), (1, 6, 6), False),
        # So many rows as heads, in images whose mask has no axis of heads.
        ((3, 6), (6,), False),
    ],
)
def test_heads_stay_where_a_mask_has_an_entry_for_each(places, shape, stays):
    steps, mask = keras.Input((*places, 4)), keras.Input(shape, dtype="bool")
    axes = (len(places),)
    attention = layers.MultiHeadAttention(
        3, 2, attention_axes=axes, name="heads"
    )
    x = attention(query=steps, value=steps, attention_mask=mask)
    numbering = number_channels(keras.Model([steps, mask], x))
    heads = numbering.inner["heads"]["num_heads"]
    assert {numbering.frozen.get(n) for n in heads.tolist()} == {
        "heads (MultiHeadAttention): its mask may have an entry for each of "
        "them"
        if stays
        else None
    }


@pytest.mark.parametrize(("entries", "stays"), [(6, True), (1, False)])
def test_heads_that_others_read_stay_where_a_mask_names_the_readers(
    entries, stays
):
    steps, mask = keras.Input((4, 5)), keras.Input((entries, 4, 4))
    attention = layers.GroupQueryAttention(2, 6, 3, name="heads")
    x = attention(steps, steps, attention_mask=mask)
    numbering = number_channels(keras.Model([steps, mask], x))
    (heads,) = numbering.inner["heads"].values()
    assert len(heads) == 3
    frozen = set(numbering.frozen) & {*heads.tolist()}
    assert len(frozen) == (3 if stays else 0)


def test_heads_stay_if_their_projections_have_weights_of_low_rank():
    steps = keras.Input((6, 4))
    attention = layers.MultiHeadAttention(3, 2, name="heads")
    model = keras.Model(steps, layers.Dense(3)(attention(steps, steps)))
    attention.query_dense.enable_lora(2)
    numbering = number_channels(model)
    assert not any(x.layer == "heads" for x in numbering.labels)
    reason = numbering.frozen[numbering.outputs["heads"][0].numbers[0]]
    assert reason == (
        "heads (MultiHeadAttention): its projections have other weights "
        "(lora_kernel_a, lora_kernel_b)"
    )


@pytest.mark.parametrize("channels", [2, 3, 6])
def test_reshaped_units_lie_where_the_next_layer_reads_channels(channels):
    x = keras.Input((4,))
    units = layers.Dense(16 * channels, name="units")(x)
    images = layers.Reshape((4, 4, channels))(units)
    images = layers.Conv2DTranspose(3, 2, name="conv")(images)
    model = keras.Model(x, layers.Conv2D(1, 2)(images))
    numbering = number_channels(model)
    by_layer = {x.layer: x.numbers for x in numbering.kernels("out")}
    pixels = by_layer["units"].reshape(16, channels)
    assert (pixels == pixels[0]).all()
    assert len(np.unique(pixels)) == channels
    free = {*pixels[0].tolist(), *by_layer["conv"].tolist()}
    assert not free & set(numbering.frozen)


@pytest.mark.parametrize(
    ("shape", "move"),
    [
        ((6, 7), layers.Reshape((6, 7, 1))),
        ((42,), layers.Reshape((6, 7, 1))),
        ((2, 6, 7), layers.Permute((2, 3, 1))),
        ((6, 7), lambda x: keras.ops.expand_dims(x, -1)),
    ],
    ids=["image", "vector", "channels_first", "expand_dims"],
)
def test_inputs_may_be_moved_to_any_axis(shape, move):
    x = keras.Input(shape)
    model = keras.Model(x, networks.head(conv(move(x * 2.0), 4, "a")))
    numbering = number_channels(model)
    free = set(range(numbering.size)) - set(numbering.frozen)
    assert free == {*numbering.outputs["a"][0].numbers.tolist()}
    (read,) = [x.numbers for x in numbering.kernels("in") if x.layer == "a"]
    assert {numbering.frozen[n] for n in read.tolist()} <= {
        "model input",
        "unknown layout",
    }


def assert_free_and_read(model, writer, reader, times):
    """All channels of `writer` may go, and `reader` reads them."""
    numbering = number_channels(model)
    written = numbering.outputs[writer][0].numbers
    assert not {*written.tolist()} & set(numbering.frozen)
    (read,) = [x.numbers for x in numbering.kernels("in") if x.layer == reader]
    np.testing.assert_array_equal(read, np.tile(written, times))


def test_the_size_of_a_nested_model_is_that_of_its_call():
    image = keras.Input((None, None, 2))
    nested = keras.Model(image, conv(image, 4, "a"), name="nested")
    image = keras.Input((3, 3, 2))
    x = layers.Flatten()(nested(image))
    model = keras.Model(image, layers.Dense(2, name="b")(x))
    assert_free_and_read(model, "nested/a", "b", times=9)


def test_steps_of_a_sequence_are_flattened_each_by_itself():
    frames = keras.Input((5, 3, 3, 2))
    each = layers.TimeDistributed
    x = each(layers.Conv2D(4, 2, name="kernel"), name="a")(frames)
    x = each(layers.Permute((2, 1, 3)))(x)
    x = each(layers.Flatten(data_format="channels_last"))(x)
    model = keras.Model(frames, layers.GRU(3, name="gru")(x))
    assert_free_and_read(model, "a", "gru", times=4)
