"""What a layer has besides its config and its weights goes with it."""

import functools

import keras
import numpy as np
import pytest
from keras import layers

from keras_prunetrain import reconfigure, register_rule
from keras_prunetrain.channels.rules import rule_for
from tests.surgery.cuts import (
    SETTINGS,
    around,
    compiled,
    cut,
    loaded,
    outputs,
)

pytestmark = pytest.mark.usefixtures("float64")

NUMBERS = np.random.default_rng(0).normal(50.0, 20.0, (8, 5))
WORDS = np.array([[x] for x in "abcaebca"])
CUBE = np.random.default_rng(1).normal(size=(8, 2, 3))
COUNTS = np.array([[x] for x in (3, 5, 3, 7, 5, 9, 3, 5)])
TEXT = np.array([["a b c"], ["b d"], ["a a"], ["c c c b"]])


def embedded(x):
    return layers.Flatten()(layers.Embedding(9, 3)(x))


# Per class whose state is no weight, or not only: arguments, what it is adapted
# to, and what reads it. `None`: the arguments are all that there is.
ADAPTED = {
    layers.Normalization: [
        ({}, NUMBERS, None),
        ({"axis": None}, NUMBERS, None),
        ({"invert": True}, NUMBERS, None),
        ({"mean": 50.0, "variance": 400.0}, None, None),
    ],
    layers.Discretization: [
        ({"num_bins": 4, "output_mode": "multi_hot"}, NUMBERS, None),
        ({"num_bins": 4}, NUMBERS, embedded),
        ({"bin_boundaries": [40.0, 60.0]}, None, embedded),
    ],
    layers.StringLookup: [
        ({}, WORDS, embedded),
        ({"output_mode": "multi_hot"}, WORDS, None),
        ({"output_mode": "tf_idf"}, WORDS, None),
        ({"vocabulary": ["a", "b"], "output_mode": "count"}, None, None),
    ],
    layers.IntegerLookup: [
        ({}, COUNTS, embedded),
        ({"output_mode": "multi_hot"}, COUNTS, None),
    ],
    layers.TextVectorization: [
        ({"output_sequence_length": 4}, TEXT, embedded),
        ({"output_mode": "multi_hot"}, TEXT, None),
        ({"output_mode": "tf_idf"}, TEXT, None),
    ],
}
EXAMPLES = {
    layers.Normalization: NUMBERS,
    layers.Discretization: NUMBERS,
    layers.StringLookup: WORDS,
    layers.IntegerLookup: COUNTS,
    layers.TextVectorization: TEXT,
}
CASES = [
    pytest.param(c, *case, id=f"{c.__name__}-{case[0]}")
    for c, cases in ADAPTED.items()
    for case in cases
]


def test_every_class_of_keras_with_a_state_of_its_own_is_tried_here():
    found = {
        value
        for module in (keras.layers, keras.utils)
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, layers.Layer)
        # The others write their kernel in another form.
        and not hasattr(value, "enable_lora")
        and any(
            getattr(value, name, None) is not getattr(layers.Layer, name, None)
            for name in (
                *("adapt", "finalize_state", "load_assets", "save_assets"),
                *("load_own_variables", "save_own_variables"),
            )
        )
    }
    # Needs PyTorch; the layers of `FeatureSpace` stand in the graph.
    found -= {layers.TorchModuleWrapper, keras.utils.FeatureSpace}
    assert found == set(ADAPTED)


def adapted(layer_class, arguments, data):
    layer = layer_class(**arguments)
    if data is not None:
        layer.adapt(data)
    return layer


@pytest.mark.parametrize(("layer_class", "arguments", "data", "reader"), CASES)
def test_an_adapted_layer_stays_adapted(
    layer_class, arguments, data, reader, tmp_path
):
    x = EXAMPLES[layer_class]
    layer = adapted(layer_class, arguments, data)
    model = around(layer, x, reader)

    smaller = cut(model, x)

    found = outputs(smaller, x)
    np.testing.assert_allclose(outputs(loaded(smaller, tmp_path), x), found)
    if hasattr(layer, "get_vocabulary"):
        new = smaller.layers[1]
        assert new.get_vocabulary() == layer.get_vocabulary()


@keras.saving.register_keras_serializable("keras_prunetrain_tests")
class Standardized(layers.Layer):
    """Has a `Normalization` inside."""

    def __init__(self, normalization, **kwargs):
        super().__init__(**kwargs)
        self.normalization = normalization

    def build(self, shape):
        if not self.normalization.built:
            self.normalization.build(shape)

    def call(self, x):
        return self.normalization(x)

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        inner = keras.saving.serialize_keras_object(self.normalization)
        return {**super().get_config(), "normalization": inner}

    @classmethod
    def from_config(cls, config):
        inner = config.pop("normalization")
        return cls(keras.saving.deserialize_keras_object(inner), **config)


def functional(layer):
    inputs = keras.Input((5,))
    return keras.Model(inputs, layer(inputs), name="inner")


def sequential(layer):
    return keras.Sequential([keras.Input((5,)), layer], name="inner")


@pytest.mark.parametrize(
    "place",
    [
        functional,
        sequential,
        Standardized,
        layers.TimeDistributed,
        lambda layer: layers.TimeDistributed(Standardized(layer)),
        lambda layer: layers.TimeDistributed(functional(layer)),
        lambda layer: layers.TimeDistributed(sequential(layer)),
        lambda layer: functional(sequential(Standardized(layer))),
        lambda layer: lambda x: layers.Concatenate()([layer(x), layer(2 * x)]),
    ],
    ids=[
        *("functional", "sequential", "composite", "wrapper"),
        *("wrapped composite", "wrapped functional", "wrapped sequential"),
        *("nested", "called twice"),
    ],
)
def test_it_stays_adapted_wherever_it_stands(place, tmp_path):
    normalization = layers.Normalization()
    normalization.adapt(NUMBERS)
    inside = place(normalization)
    x = NUMBERS
    if isinstance(inside, layers.TimeDistributed):
        x = NUMBERS.reshape(4, 2, 5)
    model = around(inside, x)

    smaller = cut(model, x)

    found = outputs(smaller, x)
    np.testing.assert_allclose(outputs(loaded(smaller, tmp_path), x), found)


@keras.saving.register_keras_serializable("keras_prunetrain_tests")
class Doubled(layers.Dense):
    """Computes with a constant that it derives from its kernel."""

    def build(self, shape):
        super().build(shape)
        self.finalize()

    def finalize(self):
        self.doubled = 2.0 * self.kernel.numpy()

    def call(self, x):
        return keras.ops.matmul(x, self.doubled)

    def load_own_variables(self, store):
        super().load_own_variables(store)
        self.finalize()


def test_a_layer_that_derives_its_state_derives_that_of_the_cut():
    register_rule(Doubled, rule_for(layers.Dense(1)))
    x = NUMBERS[:, :4]
    inputs = keras.Input((4,))
    h = Doubled(6, use_bias=False, name="a")(inputs)
    h = layers.Dense(4, use_bias=False, name="b")(h)
    model = compiled(keras.Model(inputs, layers.Dense(3)(h)))
    model.get_layer("a").finalize()

    smaller = cut(model, x, steps=0)

    new = smaller.get_layer("a")
    np.testing.assert_array_equal(new.doubled, 2.0 * new.kernel.numpy())


class Noted(layers.Layer):
    """Takes no more than its own argument, and none of it is in its config."""

    def __init__(self, times=1.0, **kwargs):
        super().__init__(**kwargs)
        self.times = times
        self.function = keras.activations.linear
        self.table = [1.0, {"a": 2.0}]
        self.array = np.ones(3)

    def call(self, x):
        factor = self.times * self.table[1]["a"] * self.array[0]
        return self.function(x) * factor

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        return {"name": self.name}


def set_times(layer):
    layer.times = 3.0


def set_times_to_an_int(layer):
    layer.times = 2


def set_function(layer):
    layer.function = keras.ops.square


def set_table(layer):
    layer.table[1]["a"] = 4.0


def set_array(layer):
    layer.array[0] = 5.0


def set_call(layer):
    layer.call = lambda x: keras.ops.square(x) + layer.times


def set_method(layer):
    layer.function = layer.helper


def set_partial(layer):
    layer.function = functools.partial(add, layer)


def set_closure(layer):
    def times_four(x, factor=4.0):
        return x * factor

    layer.function = times_four


def add(layer, x):
    return x + layer.times


class Helped(Noted):
    def helper(self, x):
        return x + self.times


@pytest.mark.parametrize(
    "change",
    [
        *(set_times, set_times_to_an_int, set_function, set_table),
        *(set_array, set_call, set_method, set_partial, set_closure),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_what_was_changed_after_construction_stays_changed(change, inside):
    layer = Helped(2.0)
    model = around(layers.TimeDistributed(layer) if inside else layer, CUBE)
    change(layer)

    smaller = cut(model, CUBE)

    new = smaller.layers[1]
    new = new.layer if inside else new
    assert type(new) is Helped
    assert new is not layer
    # Later changes concern one of both.
    before = outputs(model, CUBE)
    new.times, new.table[1]["a"], new.array[0] = 7.0, 7.0, 7.0
    np.testing.assert_array_equal(outputs(model, CUBE), before)
    assert np.abs(outputs(smaller, CUBE) - before).max() > 1e-3


def test_the_same_lines_with_other_values_are_another_function():
    class Scaled(layers.Layer):
        def __init__(self, factor=1.0, **kwargs):
            super().__init__(**kwargs)
            self.scale = lambda x: x * factor

        def call(self, x):
            return self.scale(x)

        def get_config(self):
            return {"name": self.name}

    cut(around(Scaled(3.0), CUBE), CUBE)


def remat(layer):
    with keras.RematScope("full"):
        return type(layer).from_config(layer.get_config())


def no_autocast(layer):
    layer.autocast = False
    return layer


def masking(layer):
    layer.supports_masking = True
    return layer


def numpy_inputs(layer):
    layer._convert_input_args = False
    return layer


@pytest.mark.parametrize("change", [remat, no_autocast, masking, numpy_inputs])
@pytest.mark.parametrize("inside", [False, True])
def test_settings_that_no_config_has_stay_as_they_are(change, inside):
    layer = change(layers.Dense(4, activation="relu"))
    outside = layers.TimeDistributed(layer) if inside else layer

    smaller = cut(around(outside, CUBE), CUBE)

    new = smaller.layers[1].layer if inside else smaller.layers[1]
    for name in SETTINGS:
        assert vars(new)[name] == vars(layer)[name]


def test_a_rematerialized_layer_computes_its_gradients_anew_when_cut():
    inputs = keras.Input((5,))
    with keras.RematScope("full"):
        h = layers.Dense(6, use_bias=False, name="a")(inputs)
    h = layers.Dense(4, use_bias=False, name="b")(h)
    model = compiled(keras.Model(inputs, layers.Dense(3)(h)))

    smaller = cut(model, NUMBERS / 50.0)

    assert smaller.get_layer("a")._remat_mode.mode == "full"


def test_what_is_set_on_a_variable_is_carried():
    model = around(layers.Dense(4, name="first"), CUBE)
    for name in ("first", "a", "b"):
        kernel = model.get_layer(name).kernel
        kernel.constraint = keras.constraints.MaxNorm(0.5)
        kernel.regularizer = keras.regularizers.L2(0.1)
        kernel.learning_rate_factor = 0.5
        kernel.overwrite_with_gradient = name == "first"
    model.get_layer("b").kernel.trainable = False
    model.get_layer("first").kernel.overwrite_with_gradient = False

    smaller = cut(model, CUBE)

    for name in ("first", "a", "b"):
        old, new = (m.get_layer(name).kernel for m in (model, smaller))
        assert new.constraint is old.constraint
        assert new.regularizer is old.regularizer
        assert new.learning_rate_factor == 0.5
        assert new.trainable == old.trainable == (name != "b")
    assert smaller.get_layer("b").trainable


@pytest.mark.parametrize("outer", [True, False])
def test_flags_inside_and_outside_of_a_layer_are_their_own(outer):
    cell = layers.GRUCell(4)
    layer = layers.RNN(layers.StackedRNNCells([cell, layers.GRUCell(3)]))
    model = around(layer, CUBE)
    layer.trainable = outer
    cell.trainable = not outer
    cell.bias.trainable = True
    model.compile("sgd", "mse", run_eagerly=True)

    smaller = cut(model, CUBE)

    new = smaller.layers[1]
    assert new.trainable is outer
    assert [x.trainable for x in new.cell.cells] == [not outer, outer]
    flags = [[v.trainable for v in x.variables] for x in (layer, new)]
    assert flags[0] == flags[1]


def test_a_stateful_layer_keeps_its_states():
    inputs = keras.Input(batch_shape=(8, 2, 3))
    h = layers.GRU(5, stateful=True)(inputs)
    h = layers.Dense(6, use_bias=False, name="a")(h)
    h = layers.Dense(4, use_bias=False, name="b")(h)
    model = compiled(keras.Model(inputs, layers.Dense(3)(h)))
    for _ in range(3):
        outputs(model, CUBE)

    smaller = reconfigure(model)

    for _ in range(2):
        found, expected = outputs(smaller, CUBE), outputs(model, CUBE)
        np.testing.assert_allclose(found, expected)


def test_a_regularizer_that_is_exchanged_afterwards_is_carried():
    class Mine(keras.regularizers.Regularizer):  # Without `get_config`.
        def __call__(self, x):
            return 0.1 * keras.ops.sum(keras.ops.square(x))

    layer = layers.Dense(4)
    model = around(layer, CUBE)
    layer.activity_regularizer = Mine()
    model.get_layer("a").activity_regularizer = lambda x: keras.ops.sum(x * x)

    smaller = cut(model, CUBE)

    for name in (layer.name, "a"):
        old, new = (m.get_layer(name) for m in (model, smaller))
        assert new.activity_regularizer is old.activity_regularizer


NOISES = {
    "Dropout": (layers.Dropout, "rate", 0.5),
    "GaussianDropout": (layers.GaussianDropout, "rate", 0.5),
    "SpatialDropout1D": (layers.SpatialDropout1D, "rate", 0.5),
    "AlphaDropout": (layers.AlphaDropout, "rate", 0.5),
    "GaussianNoise": (layers.GaussianNoise, "stddev", 0.5),
}


@pytest.mark.parametrize(
    ("layer_class", "name", "value"), NOISES.values(), ids=NOISES
)
@pytest.mark.parametrize("place", [lambda x: x, layers.TimeDistributed])
def test_a_rate_that_is_changed_and_changed_back_draws_the_same(
    layer_class, name, value, place
):
    layer = layer_class(value)
    outside = place(layer)
    # Of the rank that `SpatialDropout1D` takes.
    x = CUBE if outside is layer else CUBE[:, None]
    model = around(outside, x)
    model.train_on_batch(x, np.zeros((8, 3)))
    setattr(layer, name, 0.0)

    smaller = cut(model, x)

    new = smaller.layers[1]
    new = getattr(new, "layer", new)
    assert getattr(new, name) == 0.0
    setattr(layer, name, value)
    setattr(new, name, value)
    for _ in range(2):
        for m in (model, smaller):
            m.train_on_batch(x, np.zeros((8, 3)))
    np.testing.assert_allclose(outputs(smaller, x), outputs(model, x), 1e-7)


def test_a_layer_keeps_weights_that_it_was_given_later():
    layer = layers.Dense(4)
    layer.scale = layer.add_weight(name="scale", initializer="ones")
    layer.all = [{"shift": layer.add_weight(name="shift")}]
    layer.add_weight(name="nowhere", trainable=False)
    layer.last = layers.Dense(2)
    call = layer.call
    layer.last.build((None, 4))
    layer.call = lambda x, training=None: layer.last(
        call(x) * layer.scale + layer.all[0]["shift"]
    )
    model = around(layer, CUBE, lambda x: layers.Flatten()(x[..., :2]))
    layer.scale.assign(3.0)

    smaller = cut(model, CUBE)

    new = smaller.layers[1]
    assert sorted(v.name for v in new.weights) == sorted(
        v.name for v in layer.weights
    )
    assert not {id(v) for v in new.weights} & {id(v) for v in layer.weights}


def test_a_weight_that_the_config_denies_is_cut_all_the_same():
    a = layers.Dense(6, bias_initializer="ones", name="a")
    inputs = keras.Input((3,))
    h = layers.Dense(4, use_bias=False, name="b")(a(inputs))
    model = compiled(keras.Model(inputs, layers.Dense(3)(h)))
    a.use_bias = False  # Keras asks whether there is a bias.

    smaller = cut(model, CUBE[:, 0], steps=0)

    assert smaller.get_layer("a").bias.shape == (5,)


def test_replicas_carry_the_same(strategy):
    with strategy.scope():
        normalization = layers.Normalization()
        normalization.adapt(NUMBERS)
        noise = layers.Dropout(0.5)
        copied = Unconfigured(2.0)
        model = around(lambda x: copied(noise(normalization(x))), NUMBERS)
        copied.scale.assign(3.0)
        noise.rate = 0.0

    smaller = cut(model, NUMBERS, steps=0)

    assert float(smaller.layers[3].scale.numpy()) == 3.0
    smaller.fit(NUMBERS, np.zeros((8, 3)), batch_size=8, verbose=0)
    assert float(copied.scale.numpy()) == 3.0
    assert float(smaller.layers[3].scale.numpy()) != 3.0


class Unconfigured(layers.Layer):
    def __init__(self, times, /):
        super().__init__()
        self.times = times

    def build(self, shape):
        self.scale = self.add_weight(name="scale", initializer="ones")

    def call(self, x):
        return x * self.scale * self.times


KERNELS = {
    "Dense": lambda: layers.Dense(4),
    "EinsumDense": lambda: layers.EinsumDense("bij,jk->bik", (2, 4)),
    "Conv1D": lambda: layers.Conv1D(4, 2, padding="same"),
    "TimeDistributed": lambda: layers.TimeDistributed(layers.Dense(4)),
}


@pytest.mark.parametrize("make", KERNELS.values(), ids=KERNELS)
def test_a_lora_is_trained_on(make):
    outside = make()
    model = around(outside, CUBE)
    layer = getattr(outside, "layer", outside)
    layer.enable_lora(2, lora_alpha=3)
    layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))
    model.compile("adam", "mse", run_eagerly=True)

    smaller = cut(model, CUBE)

    new = smaller.layers[1]
    new = getattr(new, "layer", new)
    assert new.lora_enabled
    assert not new._kernel.trainable


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
@pytest.mark.parametrize("name", ["Dense", "EinsumDense", "TimeDistributed"])
def test_a_quantized_layer_stays_quantized(name, mode):
    outside = KERNELS[name]()
    model = around(outside, CUBE)
    layer = getattr(outside, "layer", outside)
    layer.quantize(mode)
    model.compile("adam", "mse", run_eagerly=True)

    smaller = cut(model, CUBE, steps=0)

    new = smaller.layers[1]
    new = getattr(new, "layer", new)
    assert new.quantization_mode == mode
    # In another order where Keras makes them of the policy.
    facts = [
        sorted((v.name, v.dtype, v.overwrite_with_gradient) for v in variables)
        for variables in (layer.variables, new.variables)
    ]
    assert facts[0] == facts[1]
