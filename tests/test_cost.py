import dataclasses
import logging

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_prunetrain import (
    LayerRule,
    models,
    register_rule,
    with_sdgp,
    without_sdgp,
)
from keras_prunetrain.channels import rules
from keras_prunetrain.cost import (
    Cost,
    communication_bytes,
    cost_if_known,
    model_cost,
)
from keras_prunetrain.variables import gradient_bytes, variable_bytes


@pytest.mark.parametrize(
    ("build", "mega_macs"),
    [(models.resnet32, 69.1), (models.resnet50_cifar, 114)],
)
def test_the_papers_networks_cost_what_the_paper_says(build, mega_macs):
    cost = model_cost(build())
    np.testing.assert_allclose(cost.forward_flops / 2e6, mega_macs, rtol=5e-3)
    assert cost.training_flops == 3 * cost.forward_flops
    assert cost.parameters == build().count_params()


def test_each_gradient_costs_what_the_forward_pass_does():
    cost = model_cost(every_kind_of_kernel())
    for one in (cost, cost.per_layer["grouped"], cost.per_layer["dense"]):
        assert one.weight_gradient_flops == one.forward_flops > 0
        assert one.data_gradient_flops == one.forward_flops
    # Training flops are their sum, whatever they are, in records as well.
    sparse = dataclasses.replace(cost, data_gradient_flops=7)
    assert sparse.training_flops == 2 * cost.forward_flops + 7
    assert dataclasses.asdict(sparse)["training_flops"] == sparse.training_flops


def test_pruned_data_gradients_count_what_hardware_for_them_computes():
    model = every_kind_of_kernel()
    dense = model_cost(model)
    assert dense.emulated_flops == 0
    shares = {
        "grouped": 2 / 3,  # In each of two groups one of two, and one of one.
        "transpose": 4 / 7,
        "dense": 1 / 2,
        "depthwise": 1.0,  # No n:m hardware multiplies such kernels.
    }
    with_sdgp(model, 1, 2, layers=list(shares))
    sparse = model_cost(model)
    for name, one in dense.per_layer.items():
        other = sparse.per_layer[name]
        assert other.forward_flops == one.forward_flops
        assert other.weight_gradient_flops == one.weight_gradient_flops
        left = other.data_gradient_flops
        assert left + other.emulated_flops == one.data_gradient_flops
        share = shares.get(name, 1.0)
        assert left == round(share * one.data_gradient_flops), name
    saved = dense.training_flops - sparse.training_flops
    assert saved == sparse.emulated_flops > 0
    assert model_cost(without_sdgp(model)) == dense


def test_layers_that_do_not_train_count_as_if_they_did():
    model = every_kind_of_kernel()
    trained = model_cost(model)
    model.trainable = False
    assert model_cost(model) == trained


def every_kind_of_kernel():
    x = inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(6, 3, strides=2, groups=2, name="grouped")(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.SeparableConv2D(5, 2, depth_multiplier=2, name="separable")(x)
    x = layers.Conv2DTranspose(7, 3, strides=2, name="transpose")(x)
    x = layers.Dense(2, name="dense")(x)
    return keras.Model(inputs, layers.Flatten()(x))


def test_hand_count_of_every_kind_of_kernel():
    cost = model_cost(every_kind_of_kernel())
    macs = {
        # 3x3 kernel, 2 of 4 input channels per output, 3x3 output pixels
        "grouped": 3 * 3 * 2 * 6 * 9,
        "depthwise": 3 * 3 * 6 * 9,
        # 2x2 output pixels, 12 channels in between
        "separable": (2 * 2 * 12 + 12 * 5) * 4,
        # each of the 2x2 input pixels writes 3x3 output pixels
        "transpose": 3 * 3 * 5 * 7 * 4,
        # at each of 5x5 pixels
        "dense": 7 * 2 * 25,
    }
    for name, count in macs.items():
        assert cost.per_layer[name].forward_flops == 2 * count, name
    assert cost.forward_flops == 2 * sum(macs.values())
    assert cost.training_flops == 6 * sum(macs.values())
    assert cost.per_layer["grouped"].parameters == 3 * 3 * 2 * 6 + 6
    assert cost.per_layer["dense"].per_layer == {}


def test_hand_count_of_kept_activations():
    cost = model_cost(every_kind_of_kernel())
    elements = {
        "grouped": 8 * 8 * 4,
        "bn": 3 * 3 * 6,
        # kept as the output of the ReLU and as the input of what follows
        "relu": 3 * 3 * 6,
        "depthwise": 3 * 3 * 6,
        "separable": 3 * 3 * 6,
        "transpose": 2 * 2 * 5,
        "dense": 5 * 5 * 7,
        "flatten": 0,
    }
    kept = [layer.activation_bytes for layer in cost.per_layer.values()]
    assert kept == [4 * count for count in elements.values()]
    shared = 4 * elements["relu"]
    assert cost.activation_bytes == sum(kept) - shared


def test_batch_normalization_moves_its_input_eight_times():
    cost = model_cost(every_kind_of_kernel())
    assert cost.normalization_bytes == 8 * 4 * (3 * 3 * 6)
    assert cost.per_layer["bn"].normalization_bytes == cost.normalization_bytes
    assert cost.per_layer["bn"].forward_flops == 0


def test_mixed_precision_halves_the_bytes():
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(6, 1, dtype="mixed_bfloat16")(inputs)
    x = layers.BatchNormalization(dtype="mixed_bfloat16")(x)
    cost = model_cost(keras.Model(inputs, x))
    # The convolution keeps the float32 input as it casts it.
    assert cost.activation_bytes == 2 * 8 * 8 * (4 + 6)
    assert cost.normalization_bytes == 8 * 2 * 8 * 8 * 6


@pytest.mark.parametrize("order", [1, -1])
def test_a_tensor_that_is_kept_in_two_dtypes_counts_in_the_larger(order):
    inputs = keras.Input((8, 8, 4))
    dtypes = ["float32", "mixed_bfloat16"][::order]
    kinds = [layers.Conv2D(6, 1, dtype=dtype) for dtype in dtypes]
    cost = model_cost(keras.Model(inputs, [kind(inputs) for kind in kinds]))
    assert cost.activation_bytes == 4 * 8 * 8 * 4


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (layers.Conv1D(5, 3), (9, 2), 3 * 2 * 5 * 7),
        (layers.Conv3D(5, 3), (3, 3, 4, 2), 27 * 2 * 5 * 2),
        (layers.DepthwiseConv1D(3), (9, 2), 3 * 2 * 7),
        (layers.SeparableConv1D(5, 3), (9, 2), (3 * 2 + 2 * 5) * 7),
        (layers.Conv1DTranspose(5, 3), (9, 2), 3 * 2 * 5 * 9),
        (layers.Conv3DTranspose(5, 3), (3, 3, 4, 2), 27 * 2 * 5 * 36),
        (layers.Dense(5), (2,), 2 * 5),
        (layers.Dense(5), (9, 2), 2 * 5 * 9),
        (layers.EinsumDense("abc,cd->abd", (9, 5)), (9, 2), 2 * 5 * 9),
        (layers.EinsumDense("...c,cd->...d", 5), (9, 2), 2 * 5 * 9),
        (layers.EinsumDense("abc,bcd->ad", 5), (9, 2), 2 * 5 * 9),
        (layers.LSTM(5), (9, 2), 9 * 4 * (2 * 5 + 5 * 5)),
        (layers.GRU(5), (9, 2), 9 * 3 * (2 * 5 + 5 * 5)),
        (
            layers.ConvLSTM1D(5, 3, return_sequences=True),
            (4, 8, 2),
            4 * 6 * 4 * 3 * (2 * 5 + 5 * 5),
        ),
        (
            layers.ConvLSTM2D(
                5, 3, padding="same", data_format="channels_first"
            ),
            (4, 2, 6, 7),
            4 * (6 * 7) * 4 * 9 * (2 * 5 + 5 * 5),
        ),
        (layers.SimpleRNN(5), (9, 2), 9 * (2 * 5 + 5 * 5)),
        (
            layers.Bidirectional(layers.SimpleRNN(5)),
            (9, 2),
            2 * 9 * (2 * 5 + 5 * 5),
        ),
        (layers.RNN(layers.GRUCell(5)), (9, 2), 9 * 3 * (2 * 5 + 5 * 5)),
        (
            layers.Bidirectional(layers.RNN(layers.LSTMCell(5))),
            (9, 2),
            2 * 9 * 4 * (2 * 5 + 5 * 5),
        ),
        (
            layers.RNN([layers.LSTMCell(5), layers.SimpleRNNCell(3)]),
            (9, 2),
            9 * (4 * (2 * 5 + 5 * 5) + (5 * 3 + 3 * 3)),
        ),
        (layers.Embedding(10, 5), (9,), 0),
        (layers.PReLU(), (9, 2), 0),
        (
            layers.TimeDistributed(layers.Conv1D(5, 3)),
            (4, 9, 2),
            4 * 3 * 2 * 5 * 7,
        ),
        (layers.TimeDistributed(layers.Dropout(0.5)), (4, 9, 2), 0),
        (
            layers.SpectralNormalization(layers.Conv1D(5, 3)),
            (9, 2),
            3 * 2 * 5 * 7,
        ),
    ],
)
def test_hand_count_of_the_other_classes(layer, shape, macs, caplog):
    model = keras.Sequential([keras.Input(shape), layer])
    assert model_cost(model).forward_flops == 2 * macs
    assert not caplog.records


@pytest.mark.parametrize(
    ("layer", "queries"),
    [
        # Heads times their size, once for each of queries and outputs.
        (layers.MultiHeadAttention(2, 5), 2 * 10),
        (layers.GroupQueryAttention(5, 2, 2), 2 * 10),
        (layers.MultiHeadAttention(2, 5, use_gate=True), 3 * 10),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_hand_count_of_attention(layer, queries, named):
    query, value = keras.Input((9, 3)), keras.Input((4, 3))
    # Keras sorts named arguments by their names.
    given = {"key": value, "query": query, "value": value}
    x = layer(**given) if named else layer(query, value)
    model = keras.Model([query, value], x)
    macs = 3 * queries * 9 + 3 * (2 * 10) * 4
    assert model_cost(model).forward_flops == 2 * macs


def test_channels_first_counts_like_channels_last():
    def build(data_format, shape):
        inputs = keras.Input(shape)
        kinds = (
            layers.Conv2D(5, 3, data_format=data_format),
            layers.SeparableConv2D(7, 3, data_format=data_format),
            layers.Conv2DTranspose(2, 3, data_format=data_format),
        )
        return keras.Model(inputs, [kind(inputs) for kind in kinds])

    last = model_cost(build("channels_last", (9, 8, 4)))
    first = model_cost(build("channels_first", (4, 9, 8)))
    assert first.forward_flops == last.forward_flops > 0


def test_a_layer_called_twice_costs_twice_and_is_stored_once():
    shared = layers.Dense(3, name="shared")
    inputs = keras.Input((3,))
    cost = model_cost(keras.Model(inputs, shared(shared(inputs))))
    assert cost.forward_flops == 2 * (2 * 9)
    assert cost.parameters == 9 + 3
    flops = 2 * (2 * 9)
    expected = Cost(12, flops, flops, flops, 4 * (3 + 3), 0)
    assert cost.per_layer == {"shared": expected}


def test_nested_models_are_taken_apart():
    block = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="dense")], name="block"
    )
    x = inputs = keras.Input((4,))
    x = block(block(x))
    twice = keras.Model(inputs, x, name="twice")
    outer = keras.Input((4,))
    cost = model_cost(keras.Model(outer, layers.Add()([twice(outer), outer])))
    assert cost.forward_flops == 2 * (2 * 16)
    assert cost.parameters == 16 + 4
    # Each call of the block has an input of its own.
    assert cost.activation_bytes == 4 * (4 + 4)
    assert cost.per_layer["twice/block/dense"].parameters == 20


def test_only_calls_of_this_model_count():
    shared = layers.Dense(3)
    inputs = keras.Input((3,))
    model = keras.Model(inputs, shared(inputs))
    keras.Model(model.inputs, shared(model.outputs[0]))
    assert model_cost(model).forward_flops == 2 * 9


class Bilinear(layers.Layer):
    """A kernel of nobody's kind: one matrix, at every position."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]))

    def call(self, x):
        return x * keras.ops.matmul(x, self.kernel)

    def compute_output_shape(self, shape):  # `TimeDistributed` asks for it.
        return shape


@pytest.fixture
def own_rules(monkeypatch):
    """Rules that a test registers are gone after it."""
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    rules._warn_unknown.cache_clear()


def test_an_unknown_kernel_is_named_once(own_rules, caplog):
    model = keras.Sequential([keras.Input((3,)), Bilinear(), Bilinear()])
    with caplog.at_level(logging.WARNING, "keras_prunetrain"):
        assert model_cost(model).forward_flops == 0
        model_cost(model)
    (record,) = caplog.records
    assert record.getMessage() == (
        "`model_cost` does not know how many flops a `Bilinear` takes and "
        "counts 0. A `LayerRule` with `macs` tells, see `register_rule`."
    )


def test_a_model_in_a_wrapper_is_said_to_count_nothing(own_rules, caplog):
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    model = keras.Sequential(
        [keras.Input((5, 3)), layers.TimeDistributed(inner)]
    )
    with caplog.at_level(logging.WARNING, "keras_prunetrain"):
        assert model_cost(model).forward_flops == 0
        model_cost(model)
    (record,) = caplog.records
    assert (
        "not look into a model that stands in a wrapper" in record.getMessage()
    )


def count_bilinear(layer, read, written):
    assert read == written == [(7, 3)]  # Without the batch.
    return layer.kernel.shape[0] ** 2 * read[0][0]


def test_a_rule_says_what_a_class_and_its_subclasses_cost(own_rules, caplog):
    class Sub(Bilinear):
        pass

    register_rule(Bilinear, LayerRule("carries", macs=count_bilinear))
    # What it says of the channels is its own, of the costs as its base class.
    register_rule(Sub, LayerRule("carries", refuses=lambda layer: "no"))
    wrapped = layers.TimeDistributed(Bilinear())
    for layer, shape, calls in (
        (Bilinear(), (7, 3), 1),
        (Sub(), (7, 3), 1),
        (wrapped, (5, 7, 3), 5),
    ):
        model = keras.Sequential([keras.Input(shape), layer])
        assert model_cost(model).forward_flops == calls * 2 * 9 * 7
    assert not caplog.records


@pytest.mark.parametrize("macs", [None, -1, 0.5, float("nan"), "9"])
def test_a_rule_that_counts_no_number_is_refused(own_rules, macs):
    rule = LayerRule("carries", macs=lambda layer, read, written: macs)
    register_rule(Bilinear, rule)
    model = keras.Sequential([keras.Input((3,)), Bilinear()])
    with pytest.raises(ValueError) as error:
        model_cost(model)
    assert str(error.value) == (
        f"`macs` in the rule for Bilinear, of '{model.layers[0].name}', must "
        f"return an integer of at least 0. Received: {macs!r}"
    )


@pytest.mark.parametrize("saved", [None, "input", ["inputs"]])
def test_a_rule_that_does_not_say_what_is_kept_is_refused(own_rules, saved):
    register_rule(Bilinear, LayerRule("carries", saved=lambda layer: saved))
    model = keras.Sequential([keras.Input((3,)), Bilinear()])
    with pytest.raises(ValueError, match="`saved` .* must return one of"):
        model_cost(model)


@pytest.mark.parametrize("field", ["macs", "saved"])
def test_a_rule_that_fails_to_count_is_named(own_rules, field):
    register_rule(
        Bilinear, LayerRule("carries", **{field: lambda layer: 1 / 0})
    )
    wrapped = layers.TimeDistributed(Bilinear())
    for layer in [Bilinear()] + [wrapped] * (field == "macs"):
        model = keras.Sequential([keras.Input((5, 3)), layer])
        with pytest.raises(
            ValueError,
            match="^`(macs|saved)` in the rule for Bilinear, .* fails",
        ):
            model_cost(model)


@pytest.mark.parametrize(
    ("saved", "floats"),
    [
        ("inputs", 2 * 3),
        ("outputs", 3),
        ("nothing", 0),
        (lambda layer: "nothing", 0),
        (None, 2 * 3),
    ],
)
def test_a_rule_says_what_is_kept_for_the_gradient(own_rules, saved, floats):
    class Plus(layers.Layer):
        def call(self, x, y):
            return x + y

    register_rule(Plus, LayerRule("joins", saved=saved))
    inputs = keras.Input((3,)), keras.Input((3,))
    model = keras.Model(inputs, Plus()(*inputs))
    assert model_cost(model).activation_bytes == 4 * floats


def test_operations_that_are_no_layers_are_free():
    inputs = keras.Input((3,))
    cost = model_cost(keras.Model(inputs, keras.ops.exp(inputs) + inputs))
    assert (cost.forward_flops, cost.parameters) == (0, 0)


@pytest.mark.parametrize(
    ("activation", "kept"), [("relu", 5 + 5), ("silu", 5 + 5), ("linear", 5)]
)
def test_what_an_activation_keeps(activation, kept):
    inputs = keras.Input((5,))
    x = layers.Activation(activation)(layers.BatchNormalization()(inputs))
    assert model_cost(keras.Model(inputs, x)).activation_bytes == 4 * kept


@pytest.mark.parametrize(
    ("layer", "floats"),
    [
        (layers.Identity(), 0),
        (layers.Rescaling(2.0), 0),
        (layers.Reshape((6, 4)), 0),
        (layers.ZeroPadding1D(1), 0),
        (layers.AveragePooling1D(2), 0),
        (layers.MaxPooling1D(2), 8 * 3),
        (layers.Softmax(), 8 * 3),
        (layers.LeakyReLU(), 8 * 3),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_a_class_keeps(layer, floats):
    model = keras.Sequential([keras.Input((8, 3)), layer])
    assert model_cost(model).activation_bytes == 4 * floats


@pytest.mark.parametrize(
    ("count", "layer", "operation"),
    [
        (2, layers.Add(), ops.add),
        (2, layers.Subtract(), ops.subtract),
        (2, layers.Multiply(), ops.multiply),
        (2, layers.Concatenate(), lambda *x: ops.concatenate(x, -1)),
        (1, layers.ReLU(), ops.relu),
        (1, layers.Activation("tanh"), ops.tanh),
        (1, layers.LeakyReLU(), ops.leaky_relu),
        (1, layers.Softmax(), ops.softmax),
        (1, layers.Reshape((6, 4)), lambda x: ops.reshape(x, (-1, 6, 4))),
        (
            1,
            layers.ZeroPadding1D(1),
            lambda x: ops.pad(x, ((0, 0), (1, 1), (0, 0))),
        ),
        (1, layers.AveragePooling1D(2), lambda x: ops.average_pool(x, 2, 2)),
        (1, layers.MaxPooling1D(2), lambda x: ops.max_pool(x, 2, 2)),
        (1, layers.GlobalAveragePooling1D(), lambda x: ops.mean(x, 1)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_an_operation_keeps_what_its_layer_does(count, layer, operation):
    inputs = [keras.Input((8, 3)) for _ in range(count)]
    of_layer = layer(inputs if count > 1 else inputs[0])
    layer_cost, operation_cost = (
        model_cost(keras.Model(inputs, outputs))
        for outputs in (of_layer, operation(*inputs))
    )
    assert layer_cost.activation_bytes == operation_cost.activation_bytes


def test_every_layer_with_a_kernel_counts_its_flops():
    kernels = {
        layer_class
        for layer_class, rule in rules._RULES.items()
        if rule.in_axis.keys() & rule.out_axis.keys()
    }
    assert layers.Conv2D in kernels
    for layer_class in kernels:
        assert rules._RULES[layer_class].macs is not None, layer_class


def test_unknown_sizes_are_refused_and_the_advice_helps():
    def build(shape):
        return keras.Sequential(
            [keras.Input(shape), layers.Conv2D(4, 3, name="conv")]
        )

    free = build((None, None, 3))
    with pytest.raises(ValueError) as error:
        model_cost(free)
    assert str(error.value) == (
        "`model_cost` can only count with known sizes. Give the model's "
        "`Input` a fixed shape, for example `keras.Input((32, 32, 3))`, or "
        "pass `input_shapes`. Received: a tensor of shape (None, None, None, "
        "3) at layer 'conv'"
    )
    assert cost_if_known(free) is None
    known = model_cost(build((32, 32, 3)))
    assert known == model_cost(free, (32, 32, 3))
    assert known == cost_if_known(free, input_shapes=[(32, 32, 3)])


def test_a_backbone_of_any_size_costs_what_its_images_do():
    class Double(layers.Layer):  # Nothing but its call tells its shape.
        def call(self, x):
            return 2 * x

    def backbone(size):
        x = image = keras.Input((size, size, 3))
        x = layers.Conv2D(4, 3, strides=2, name="conv")(x)
        x = keras.ops.relu(x) + Double(name="double")(x)
        x = layers.DepthwiseConv2D(3, name="depthwise")(x)
        x = layers.GlobalAveragePooling2D(name="pool")(x)
        return keras.Model(image, x, name="base")

    def transfer(base):
        image = keras.Input((16, 16, 3))
        half = layers.AveragePooling2D(2, name="half")(image)
        x = layers.Add(name="add")([base(image), base(half)])
        return keras.Model(image, layers.Dense(2, name="head")(x))

    cost = model_cost(transfer(backbone(None)))
    # The backbone runs twice, on images of 16 x 16 and of 8 x 8 pixels.
    sizes = {16: 7, 8: 3}  # The output of a 3x3 kernel in steps of two.
    macs = {
        "base/conv": 3 * 3 * 3 * 4 * sum(n * n for n in sizes.values()),
        "base/depthwise": 3 * 3 * 4 * sum((n - 2) ** 2 for n in sizes.values()),
        "head": 4 * 2,
    }
    for name, count in macs.items():
        assert cost.per_layer[name].forward_flops == 2 * count, name
    assert cost.forward_flops == 2 * sum(macs.values())
    # The bytes are those of a backbone for these very sizes, two of them here.
    expected = sum(
        model_cost(backbone(size)).activation_bytes for size in sizes
    )
    assert cost.activation_bytes == expected + 4 * 4


def test_what_cannot_run_on_the_sizes_is_not_known():
    class Picky(layers.Layer):
        def call(self, x):
            if x.shape[1] is not None:
                raise RuntimeError("not this size")
            return x[:, ::2]

    inner = keras.Input((None, 3))
    x = layers.Conv1D(4, 3)(Picky()(inner))
    assert cost_if_known(keras.Model(inner, x), (8, 3)) is None


def test_each_input_can_be_of_any_size():
    one, other = keras.Input((None, 3)), keras.Input((None, 3))
    x = layers.Conv1D(4, 3, name="a")(one)
    y = layers.Conv1D(4, 3, name="b")(other)
    model = keras.Model([one, other], [x, y])
    assert cost_if_known(model, [(8, 3), None]) is None
    cost = model_cost(model, [(8, 3), (5, 3)])
    macs = {name: c.forward_flops // 2 for name, c in cost.per_layer.items()}
    assert macs == {"a": 3 * 3 * 4 * 6, "b": 3 * 3 * 4 * 3}


@pytest.mark.parametrize(
    "shapes",
    [
        *((8, 4), [(8, 3), (8, 3)], [], (3,), [(1, 8, 3)], (None, 8, 3)),
        *(8, "ab", [8, 3], (8.0, 3), (-8, 3), (True, 3), {"a": (8, 3)}),
    ],
    ids=str,
)
def test_shapes_that_do_not_fit_the_inputs_are_refused(shapes):
    model = keras.Sequential([keras.Input((None, 3)), layers.Conv1D(4, 3)])
    with pytest.raises(ValueError, match="a shape for each input"):
        model_cost(model, shapes)


def test_models_without_a_graph_are_refused():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    for model in (Subclassed(), keras.Sequential([layers.Dense(1)])):
        with pytest.raises(ValueError, match="only functional and built"):
            model_cost(model)


def test_gradients_are_those_of_the_weights_that_train():
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(4), keras.layers.Dense(2)]
    )
    model.layers[1].trainable = False
    assert gradient_bytes(model) == 4 * (8 * 4 + 4)
    assert variable_bytes(model.weights) == 4 * (8 * 4 + 4 + 4 * 2 + 2)


def test_what_has_no_weights_has_no_gradients():
    with pytest.raises(ValueError, match="needs a model with weights"):
        gradient_bytes(keras.Sequential([layers.Dense(4)]))


def test_a_ring_sends_each_part_to_all_others_twice():
    # By hand, 4 devices: 3 parts of a quarter to add up, 3 to share the sums.
    assert communication_bytes(400, 4) == (3 + 3) * 100
    assert communication_bytes(400, 1) == 0


def test_between_machines_goes_one_part_of_each_machines_sum():
    # 2 machines of 4: each device exchanges a quarter with its counterpart.
    assert communication_bytes(400, 8, devices_per_machine=4) == 2 * 100 / 2
    assert communication_bytes(400, 8, devices_per_machine=8) == 0
    # Inside a machine it is a ring of its own: together as much as one ring.
    inside = communication_bytes(400, 4)
    between = communication_bytes(400, 8, devices_per_machine=4)
    assert inside + between == communication_bytes(400, 8)


@pytest.mark.parametrize("size", [None, -1, float("nan"), "400", True])
def test_impossible_numbers_of_bytes_are_refused(size):
    with pytest.raises(ValueError, match="`gradient_bytes` must be a number"):
        communication_bytes(size, 4)


@pytest.mark.parametrize(
    "arguments",
    [(0,), (4, 3), (4, 0), (None,), (2.0,), (True,), (4, "2"), (10**400,)],
)
def test_impossible_numbers_of_devices_are_refused(arguments):
    with pytest.raises(ValueError, match="an integer that divides it"):
        communication_bytes(400, *arguments)
