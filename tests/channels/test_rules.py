"""Every class in the table: cut its channel, and nothing else changes."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_prunetrain import (
    LayerRule,
    channel_report,
    reconfigure,
    register_rule,
)
from keras_prunetrain.channels import layer_rule, rules
from tests.networks import kill, outputs, shake

# Arguments, where a class needs some.
ARGUMENTS = {
    "Conv1D": (4, 2),
    "Conv2D": (4, 3),
    "Conv3D": (4, 2),
    "Dense": (4,),
    "Rescaling": ([1.0, 2.0, 3.0, 4.0, 5.0], 0.5),
    "Normalization": (-1, 0.5, 2.0),
    "Activation": ("tanh",),
    **dict.fromkeys([f"AveragePooling{n}D" for n in (1, 2, 3)], (2,)),
    "SpatialDropout1D": (0.5,),
    "Dropout": (0.5,),
    "AlphaDropout": (0.5,),
    "SpatialDropout2D": (0.5,),
    "SpatialDropout3D": (0.5,),
    "GaussianDropout": (0.5,),
    "GaussianNoise": (0.5,),
    "AdaptiveMaxPooling1D": (2,),
    "AdaptiveMaxPooling2D": (2,),
    "AdaptiveMaxPooling3D": (2,),
    "AdaptiveAveragePooling1D": (2,),
    "AdaptiveAveragePooling2D": (2,),
    "AdaptiveAveragePooling3D": (2,),
    "CenterCrop": (3, 3),
    "RandomCrop": (3, 3),
    "RandomRotation": (0.1,),
    "RandomTranslation": (0.1, 0.1),
    "RandomZoom": (0.1,),
    "RandomBrightness": (0.1,),
    "RandomColorDegeneration": (0.5,),
    "RandomContrast": (0.5,),
    "RandomHue": (0.5,),
    "RandomPosterization": (4,),
    "RandomSaturation": (0.5,),
    "RandomSharpness": (0.5,),
    "Resizing": (3, 3),
    "Permute": ((2, 1, 3),),
    "Reshape": ((12, 3, 5),),
    **dict.fromkeys([f"Conv{n}DTranspose" for n in (1, 2, 3)], (4, 2)),
    **dict.fromkeys([f"DepthwiseConv{n}D" for n in (1, 2)], (2,)),
    **dict.fromkeys([f"SeparableConv{n}D" for n in (1, 2)], (4, 2)),
    "EinsumDense": ("abcd,de->abce", (6, 6, 4)),
    "GroupNormalization": (5,),  # Each channel by itself.
    "LayerScale": (0.5, 5),
    "StochasticDepth": (0.5,),
    "CustomScaleLayer": (0.5,),
    "TimeDistributed": (layers.Rescaling(2.0),),
    "SpectralNormalization": (layers.Dense(4, dtype="float64"),),
    "Bidirectional": (layers.GRU(4, dtype="float64"),),
    "RNN": (layers.LSTMCell(4, dtype="float64"),),
    **dict.fromkeys(("GRU", "LSTM", "SimpleRNN"), (4,)),
    **dict.fromkeys([f"ConvLSTM{n}D" for n in (1, 2, 3)], (4, 2)),
}
RECURRENT = {"Bidirectional", "RNN", "GRU", "LSTM", "SimpleRNN"}
# What cannot be followed, as a function of the channels that it reads.
REFUSED = {
    "Dot": lambda x: layers.Dot(-1, name="layer")([x, x]),
    "AdditiveAttention": lambda x: layers.AdditiveAttention(name="layer")(
        [x, x]
    ),
    "Attention": lambda x: layers.Attention(name="layer")([x, x]),
}
# They read several inputs.
ATTENTION = {"MultiHeadAttention", "GroupedQueryAttention"}
# They read no images; each has a test of its own.
OF_WORDS = {
    *("Embedding", "Masking", "RepeatVector"),
    *("CategoryEncoding", "Discretization", "HashedCrossing", "Hashing"),
    *("IntegerLookup", "StringLookup", "TextVectorization"),
    *("MaxNumBoundingBoxes", "MelSpectrogram", "STFTSpectrogram"),
}
# What has no rule, and why.
WITHOUT = {
    **dict.fromkeys(("InputLayer", "Layer", "Wrapper"), "computes nothing"),
    **dict.fromkeys(
        ("Lambda", "FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper"),
        "runs code of the user's, for which `register_rule` is there",
    ),
    **dict.fromkeys(
        ("GRUCell", "LSTMCell", "SimpleRNNCell", "StackedRNNCells"),
        "stands in an `RNN`",
    ),
    "Pipeline": "runs several layers of preprocessing",
    "ReversibleEmbedding": "reads its own weights a second time",
}
BY_CLASS = sorted(
    (
        c
        for c in rules._RULES
        if issubclass(c, layers.Layer)
        and c.__name__ not in REFUSED.keys() | OF_WORDS | ATTENTION
    ),
    key=lambda c: c.__name__,
)
KERNELS = {"kernel", "pointwise_kernel"}
# What the table holds is to stay; everything else is to go.
HELD = {
    *("LayerNormalization", "Normalization", "Softmax", "AugMix", "CutMix"),
    *("AutoContrast", "Equalization", "MixUp", "RandAugment"),
    *("RandomBrightness", "RandomColorDegeneration", "RandomColorJitter"),
    *("RandomContrast", "RandomGrayscale", "RandomHue", "RandomInvert"),
    *("RandomPosterization", "RandomSaturation", "RandomSharpness"),
    *("Solarization", "RMSNormalization", "UnitNormalization"),
    "ContrastLimitedAdaptiveHistogramEqualization",
}


def rank(name):
    if name.startswith("ConvLSTM"):  # The first axis is the time.
        return 1 + int(name[-2])
    if name in RECURRENT or "1D" in name:
        return 1
    return 3 if "3D" in name else 2


def convolution(n, channels, name):
    if n not in (1, 2, 3):
        return layers.Dense(channels, name=name)
    kind = {1: layers.Conv1D, 2: layers.Conv2D, 3: layers.Conv3D}[n]
    return kind(channels, 1, name=name)


@pytest.mark.parametrize("layer_class", BY_CLASS, ids=lambda c: c.__name__)
def test_cutting_a_channel_around_it_changes_nothing(layer_class, request):
    name = layer_class.__name__
    if name == "Equalization":
        pytest.skip("Keras cannot call it on a symbolic tensor")
    n = rank(name)
    exact = "3D" not in name  # TensorFlow pools volumes in float32 only.
    if exact:
        request.getfixturevalue("float64")
    layer = layer_class(*ARGUMENTS.get(name, ()), name="layer")
    size = (6, 6, 4, 4)[:n] if n < 3 else (4, 4, 4, 4)[:n]
    image = keras.Input((*size, 2))
    # Layers that mix colours want three of them.
    x = convolution(n, 3 if name in HELD else 5, "before")(image)
    flow = rules._RULES[layer_class].flow
    merges = flow in (layer_rule.JOINS, layer_rule.CONCATENATES)
    x = layer([x, convolution(n, 5, "beside")(image)] if merges else x)
    after = convolution(len(x.shape) - 2, 3, "after")
    model = keras.Model(image, after(x))
    model.compile("sgd", "mse")
    shake(model)
    writers = ["before", "beside"] if merges else ["before"]
    kill(model, {writer: [1] for writer in writers})
    reader = model.get_layer("after")
    if rules.rule_for(layer).flow in (layer_rule.PRODUCES, layer_rule.READS):
        reader = layer
    axes = rules.rule_for(reader).in_axis
    kernels = [w for w in reader.weights if w.name in KERNELS & set(axes)]
    assert len(kernels) == (2 if name == "Bidirectional" else 1)
    for kernel in kernels:
        value = np.moveaxis(kernel.numpy(), axes[kernel.name], 0).copy()
        value[1::5] = 0.0
        kernel.assign(np.moveaxis(value, 0, axes[kernel.name]))
    x = np.random.default_rng(3).uniform(-1.0, 1.0, (4, *size, 2))

    smaller = reconfigure(model)

    if name in HELD:
        assert smaller is model
        held = {row.layer: row.held_by for row in channel_report(model)}
        assert f"layer ({name}): " in held["before"][0]
        return
    for writer in writers:
        assert smaller.get_layer(writer).kernel.shape[-1] == 4
    np.testing.assert_allclose(
        outputs(smaller, x), outputs(model, x), atol=1e-12 if exact else 1e-6
    )


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_holds_its_channels_and_says_why(name):
    image = keras.Input((6, 2))
    x = layers.Dense(5, name="before")(image)
    x = REFUSED[name](x)
    model = keras.Model(image, layers.Dense(3, name="after")(x))
    held = {row.layer: row.held_by for row in channel_report(model)}
    (why,) = held["before"]
    assert why.startswith(f"layer ({name}): ")
    assert any(reason in why for reason in ("attention", "products"))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (
            layers.RNN(layers.StackedRNNCells([layers.GRUCell(4)])),
            "(RNN): the package does not know how its cell reads channels",
        ),
        (
            layers.Bidirectional(
                layers.RNN(layers.StackedRNNCells([layers.GRUCell(4)]))
            ),
            "(Bidirectional): the layer in it cannot be followed there",
        ),
        (layers.Masking(), "(Masking): it skips steps by the values of all"),
    ],
    ids=["stacked", "both ways", "masking"],
)
def test_a_layer_that_needs_all_channels_holds_them(layer, reason):
    steps = keras.Input((6, 2))
    x = layer(layers.Dense(5, name="before")(steps))
    model = keras.Model(steps, layers.Dense(3)(x))
    held = {row.layer: row.held_by for row in channel_report(model)}
    assert reason in held["before"][0]


def test_every_layer_of_keras_has_a_rule_or_a_reason():
    classes = {
        c.__name__: c
        for c in vars(layers).values()
        if isinstance(c, type) and issubclass(c, layers.Layer)
    }
    without = {n for n, c in classes.items() if c not in rules._RULES}
    assert without == WITHOUT.keys() & classes


def test_what_prepares_data_says_so():
    numbers = keras.Input((6,))
    x = layers.Dense(5, name="before")(numbers)
    x = layers.Discretization(bin_boundaries=[0.0], name="bins")(x)
    x = layers.Dense(3)(layers.Rescaling(1.0)(x))
    held = {
        row.layer: row.held_by
        for row in channel_report(keras.Model(numbers, x))
    }
    (why,) = held["before"]
    assert why.startswith("bins (Discretization): it makes other data of its")


def test_channels_of_an_embedding_go_with_what_reads_them(float64):
    words = keras.Input((6,), dtype="int32")
    x = layers.Embedding(7, 5, mask_zero=True, name="words")(words)
    x = layers.Bidirectional(layers.LSTM(4), name="both")(x)
    x = layers.RepeatVector(3)(layers.Dense(5, name="code")(x))
    model = keras.Model(words, layers.Dense(2, name="logits")(x))
    model.compile("sgd", "mse")
    shake(model)
    for kernel in model.get_layer("both").weights[::3]:
        assert kernel.name == "kernel"
        kernel.assign(kernel.numpy() * [[1], [0], [1], [0], [1]])
    kill(model, {"code": [2]}, {"logits": [2]})
    x = np.random.default_rng(3).integers(0, 7, (4, 6))
    before = model.count_params()

    smaller = reconfigure(model)

    assert smaller.get_layer("words").output_dim == 3
    assert smaller.get_layer("code").units == 4
    # Rows of the embedding, gates of both directions, both sides of `code`.
    assert before - smaller.count_params() == 7 * 2 + 2 * 2 * 16 + (8 + 1 + 2)
    np.testing.assert_allclose(
        outputs(smaller, x), outputs(model, x), atol=1e-12
    )


def test_several_outputs_of_a_recurrent_layer_stay(float64):
    steps = keras.Input((6, 2))
    x = layers.Dense(5, name="before")(steps)
    whole, *state = layers.LSTM(
        4, return_sequences=True, return_state=True, name="lstm"
    )(x)
    x = layers.Concatenate()([layers.Flatten()(whole), *state])
    model = keras.Model(steps, layers.Dense(3)(x))
    model.compile("sgd", "mse")
    shake(model)
    kill(model, {"before": [1]})
    kernel = model.get_layer("lstm").cell.kernel
    kernel.assign(kernel.numpy() * [[1], [0], [1], [1], [1]])
    x = np.random.default_rng(3).normal(size=(4, 6, 2))

    smaller = reconfigure(model)

    assert smaller.get_layer("before").units == 4
    np.testing.assert_allclose(
        outputs(smaller, x), outputs(model, x), atol=1e-12
    )


class Scale(layers.Layer):
    """One learned factor for each channel."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")

    def call(self, x):
        return x * self.scale


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))


def model_with(layer):
    image = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, name="a")(image)
    x = layers.Conv2D(3, 3, name="b")(layer(x))
    model = keras.Model(image, layers.GlobalAveragePooling2D()(x))
    model.compile("sgd", "mse")
    shake(model)
    kill(model, {"a": [2]}, {"b": [2]})
    return model


@pytest.mark.usefixtures("table")
def test_the_advice_for_an_unknown_layer_works():
    model = model_with(Scale(name="scale"))
    assert reconfigure(model) is model
    held = channel_report(model)[0].held_by
    assert held == (
        "scale (Scale): no rule for this class, see register_rule (4)",
    )

    register_rule(Scale, LayerRule("carries", out_axis={"scale": -1}))

    smaller = reconfigure(model)
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 2))
    assert smaller.get_layer("scale").scale.shape == (3,)
    np.testing.assert_allclose(
        outputs(smaller, x), outputs(model, x), atol=1e-6
    )


class NamelessScale(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],))

    def call(self, x):
        return x * self.scale


@pytest.mark.usefixtures("table")
def test_weights_without_a_name_are_known_in_every_layer_of_a_class():
    rule = LayerRule("carries", out_axis={"variable": -1})
    register_rule(NamelessScale, rule)
    several = keras.Sequential(
        [NamelessScale(name="first"), NamelessScale(name="second")]
    )
    model = model_with(several)
    smaller = reconfigure(model)
    assert [w.shape for w in smaller.layers[2].weights] == [(3,), (3,)]
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 2))
    np.testing.assert_allclose(
        outputs(smaller, x), outputs(model, x), atol=1e-6
    )


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (LayerRule("carries"), "does not say where 'scale' lies"),
        (
            LayerRule("carries", out_axis={"scale": 3}),
            "names axis 3 of 'scale'",
        ),
        (LayerRule("concatenates"), "not say where 'scale'"),
    ],
)
def test_a_rule_that_does_not_fit_freezes(rule, reason):
    register_rule(Scale, rule)
    model = model_with(Scale(name="scale"))
    assert reconfigure(model) is model
    assert reason in channel_report(model)[0].held_by[0]


@pytest.mark.usefixtures("table")
def test_a_subclass_of_a_known_layer_is_not_guessed_at():
    class Flipping(layers.ReLU):
        def call(self, x):
            return keras.ops.flip(super().call(x), -1)

    model = model_with(Flipping(name="f"))
    assert reconfigure(model) is model


def test_a_rule_is_for_a_layer_class():
    for wrong in (layers.ReLU(), dict, "ReLU"):
        with pytest.raises(ValueError, match="a subclass of keras.layers.La"):
            register_rule(wrong, LayerRule("carries"))
    with pytest.raises(ValueError, match="for Scale must be a .*LayerRule"):
        register_rule(Scale, "carries")


class Energy(layers.Layer):
    """Reads all channels alike."""

    def call(self, x):
        return keras.ops.sum(x * x, axis=-1, keepdims=True)


def test_what_reads_channels_without_a_kernel_holds_them(table):
    register_rule(Energy, LayerRule("produces"))
    image = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, name="a")(image)
    x = layers.BatchNormalization()(x)
    x = layers.Dense(3, name="b")(Energy(name="energy")(x))
    model = keras.Model(image, x)
    model.compile("sgd", "mse")
    shake(model)
    kill(model, {"a": [1]})  # Its normalization still makes something of it.
    assert reconfigure(model) is model
    held = channel_report(model)[0].held_by
    assert held == ("energy (Energy): it reads without a kernel (4)",)


@keras.saving.register_keras_serializable("tests")
class Counting(layers.GRU):
    """A recurrent layer of the user's."""


def both_ways(layer):
    steps = keras.Input((6, 2))
    x = layers.Dense(5, name="before")(steps)
    x = layers.Bidirectional(layer, name="both")(x)
    model = keras.Model(steps, layers.Dense(3)(x))
    model.compile("sgd", "mse")
    shake(model)
    kill(model, {"before": [1]})
    for weight in model.get_layer("both").weights:
        if weight.name == "kernel":
            weight.assign(weight.numpy() * [[1], [0], [1], [1], [1]])
    return model


@pytest.mark.usefixtures("table")
def test_a_layer_without_a_rule_in_both_directions_holds_its_channels():
    model = both_ways(Counting(4))
    assert reconfigure(model) is model
    held = channel_report(model)[0].held_by
    assert held == (
        "both (Bidirectional): the layer in it cannot be followed there (5)",
    )


@pytest.mark.usefixtures("table", "float64")
def test_both_directions_go_by_the_rule_of_the_layer_in_them():
    seen = []
    register_rule(
        Counting,
        LayerRule(
            "reads",
            in_axis={"kernel": 0},
            freezes=lambda layer: seen.append(type(layer)),
        ),
    )
    model = both_ways(Counting(4))
    x = np.random.default_rng(3).normal(size=(4, 6, 2))
    smaller = reconfigure(model)
    assert smaller.get_layer("before").units == 4
    assert set(seen) == {Counting}
    np.testing.assert_allclose(
        outputs(smaller, x), outputs(model, x), atol=1e-12
    )
