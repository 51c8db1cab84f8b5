"""Reconfiguring must change the size of a model and nothing else."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_prunetrain import GroupLasso, keras_internals, reconfigure
from tests import networks, optimizers
from tests.masked import leaves
from tests.networks import images, kill, kill_all, outputs, shake, take, targets


def compiled(network, optimizer=None, **kwargs):
    """`network`'s model after a step, with weights that are then drawn anew."""
    model = network.model
    optimizer = optimizer or keras.optimizers.SGD(0.1, momentum=0.9)
    kwargs = {"loss": "mse", "run_eagerly": True, **kwargs}
    model.compile(optimizer, **kwargs)
    shake(model)
    model.train_on_batch(images(), targets())  # Now there are slots.
    shake(model)
    kill_all(network, networks.TINY)
    return model


def gradients(model, x, y):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
        loss += sum(model.losses)
    return tape.gradient(loss, [v.value for v in model.trainable_variables])


def paths(weights):
    """Their paths, without the numbers of those that have no names."""
    return [w.path.rstrip("_0123456789") for w in weights]


def assert_same(model, smaller, keep):
    """Asserts that weights, slots and counters agree where `keep` says so."""
    assert paths(smaller.weights) == paths(model.weights)
    for v, old in zip(smaller.variables, model.variables, strict=True):
        expected = take(old, keep.get(old.path, {}))
        np.testing.assert_allclose(v, expected, atol=1e-11, err_msg=v.path)
    cut = 0
    pairs = zip(
        model.optimizer.variables, smaller.optimizer.variables, strict=True
    )
    for slot, new_slot in pairs:
        name = slot.path.rpartition("/")[2]
        owners = [p for p in keep if name.startswith(p.replace("/", "_") + "_")]
        axes = keep[max(owners, key=len)] if owners else {}
        cut += bool(axes)
        expected = take(slot, axes)
        np.testing.assert_allclose(
            new_slot, expected, atol=1e-11, err_msg=slot.path
        )
    return cut


def not_a_number(self, shape, dtype=None):
    return tf.cast(tf.fill(shape, float("nan")), dtype)


OPTIMIZERS = {
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(0.01),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("build", "optimizer"), networks.paired("momentum", "adam")
)
def test_it_computes_and_learns_like_the_masked_dense_model(
    build, optimizer, monkeypatch
):
    # A variable that the cut leaves unfilled is seen in whatever reads it.
    monkeypatch.setattr(keras_internals.Unfilled, "__call__", not_a_number)
    network = build()
    model = compiled(network, OPTIMIZERS[optimizer]())
    keep = networks.surviving(network)
    x, y = images(), targets()

    smaller = reconfigure(model)

    kill_all(network)  # `model` is the masked dense model from here on.
    assert smaller.count_params() < model.count_params()
    np.testing.assert_allclose(
        outputs(smaller, x), outputs(model, x), atol=1e-12
    )
    for v, gradient, expected in zip(
        model.trainable_variables,
        gradients(smaller, x, y),
        gradients(model, x, y),
        strict=True,
    ):
        expected = take(expected, keep.get(v.path, {}))
        np.testing.assert_allclose(
            gradient, expected, atol=1e-12, err_msg=v.path
        )
    losses = [m.train_on_batch(x, y) for m in (smaller, model)]
    np.testing.assert_allclose(*losses, rtol=1e-12)
    cut = assert_same(model, smaller, keep)
    assert cut == len(cut_weights(network, keep)) * (1 + (optimizer == "adam"))
    assert int(smaller.optimizer.iterations) == 2


def cut_weights(network, keep):
    return [v for v in network.model.trainable_variables if v.path in keep]


def test_nothing_dead_returns_the_same_object():
    model = compiled(networks.plain())
    shake(model)
    assert reconfigure(model) is model


def test_the_model_and_its_optimizer_are_not_touched():
    model = compiled(networks.residual())
    variables = [*model.variables, *model.optimizer.variables]
    before = [v.numpy() for v in variables]
    calls = [len(layer._inbound_nodes) for layer in model.operations]
    optimizer, config = model.optimizer, model.get_config()

    assert reconfigure(model) is not model

    assert model.optimizer is optimizer
    assert variables == [*model.variables, *model.optimizer.variables]
    for v, value in zip(variables, before, strict=True):
        np.testing.assert_array_equal(v, value, err_msg=v.path)
    assert model.get_config() == config
    assert calls == [len(layer._inbound_nodes) for layer in model.operations]


def test_an_optimizer_before_its_first_step_has_no_slots_to_carry():
    network = networks.plain()
    network.model.compile(keras.optimizers.Adam(0.25), "mse", run_eagerly=True)
    network.model.optimizer.iterations.assign(7)  # As after a warm start.
    shake(network.model)
    kill_all(network)

    smaller = reconfigure(network.model)

    assert int(smaller.optimizer.iterations) == 7
    assert float(smaller.optimizer.learning_rate) == 0.25
    smaller.train_on_batch(images(), targets())
    assert int(smaller.optimizer.iterations) == 8


def test_trainable_flags_stay_as_they_are():
    network = networks.nested()
    model = compiled(network)
    model.get_layer("inner").get_layer("a").trainable = False
    model.get_layer("stem").bias.trainable = False
    neck = model.get_layer("neck")
    neck.trainable = False
    neck.get_layer("c_bn").gamma.trainable = True

    smaller = reconfigure(model)

    flags = {v.path: v.trainable for v in model.variables}
    assert {v.path: v.trainable for v in smaller.variables} == flags
    assert not smaller.get_layer("neck").trainable
    assert not smaller.get_layer("inner").get_layer("a").trainable
    assert smaller.get_layer("inner").trainable
    names = [v.path for v in model.trainable_variables]
    assert [v.path for v in smaller.trainable_variables] == names


def test_a_frozen_model_stays_frozen():
    model = compiled(networks.plain())
    model.trainable = False
    smaller = reconfigure(model)
    assert not smaller.trainable
    assert smaller.trainable_variables == []


def test_dropout_goes_on_with_its_random_numbers():
    image = keras.Input((6, 6, 2))
    x = networks.conv(image, 4, "a")
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(3, name="logits")(x)
    # Behind the cut: a mask for fewer channels would be another one.
    x = layers.Dropout(0.5, name="dropout")(x)
    network = networks.Network(
        keras.Model(image, x), {"a": [1]}, {"logits": [1]}, {}
    )
    model = compiled(network)
    for _ in range(3):
        model(images(), training=True)

    smaller = reconfigure(model)

    kill_all(network)
    state = model.get_layer("dropout").seed_generator.state.numpy()
    np.testing.assert_array_equal(
        smaller.get_layer("dropout").seed_generator.state, state
    )
    np.testing.assert_allclose(
        outputs(smaller, images(), training=True),
        outputs(model, images(), training=True),
        atol=1e-5,
    )


def test_a_regularizer_set_on_the_variable_stays():
    model = compiled(networks.plain())
    regularizer = keras.regularizers.L2(0.1)
    model.get_layer("b").kernel.regularizer = regularizer

    smaller = reconfigure(model)

    assert smaller.get_layer("b").kernel.regularizer is regularizer
    assert len(smaller.losses) == 1


@keras.saving.register_keras_serializable("kpt_tests")
class Drawn(keras.initializers.RandomNormal):
    """Random weights that take a long time."""

    times = 0

    def __call__(self, shape, dtype=None):
        Drawn.times += 1
        return super().__call__(shape, dtype)


def test_no_random_weights_are_drawn_only_to_be_overwritten():
    image = keras.Input((6, 6, 2))
    x = networks.conv(image, 4, "a", kernel_initializer=Drawn(seed=3))
    network = networks.Network(
        keras.Model(image, networks.head(x)), {"a": [1]}, {"logits": [1]}, {}
    )
    model = compiled(network)
    times = Drawn.times

    smaller = reconfigure(model)

    assert Drawn.times == times == 1
    assert smaller.get_layer("a").get_config() == {
        **model.get_layer("a").get_config(),
        "filters": 3,
    }
    for layer, old in zip(smaller.layers, model.layers, strict=True):
        kinds = [
            {k: type(v) for k, v in vars(x).items() if "initializer" in k}
            for x in (layer, old)
        ]
        assert kinds[0] == kinds[1]


@keras.saving.register_keras_serializable("kpt_tests")
class Trainer(keras.Model):
    """A user's subclass, whose `__init__` takes what only the user knows."""

    def __init__(self, network, penalty):
        model = network.model
        super().__init__(model.inputs[0], model.outputs[0])
        self.penalty = penalty
        self.watched = [self.get_layer("a")]
        self.seen = keras.metrics.Mean(name="seen")
        self.steps = 0

    def train_step(self, data):
        self.steps += 1
        self.seen.update_state(self.penalty)
        return super().train_step(data)


def test_a_subclass_keeps_its_class_and_attributes():
    network = networks.plain()
    model = Trainer(network, penalty=3.0)
    compiled(network._replace(model=model))

    smaller = reconfigure(model)

    assert type(smaller) is Trainer
    assert smaller.penalty == 3.0
    assert smaller.watched[0] is smaller.get_layer("a")
    assert smaller.watched[0] is not model.watched[0]
    assert smaller.seen is model.seen
    assert [m.name for m in smaller.metrics] == [m.name for m in model.metrics]
    logs = smaller.train_on_batch(images(), targets(), return_dict=True)
    assert logs["seen"] == 3.0
    assert (smaller.steps, model.steps) == (2, 1)


def test_it_is_compiled_with_the_very_same_objects():
    def loss(y, y_predicted):
        return keras.ops.mean((y - y_predicted) ** 2)

    metric = keras.metrics.MeanAbsoluteError()
    network = networks.plain()
    network.model.compile(
        "sgd",
        loss=loss,
        metrics=[metric],
        loss_weights=[0.5],
        steps_per_execution=3,
        jit_compile=False,
    )
    shake(network.model)
    kill_all(network)

    smaller = reconfigure(network.model)

    config = smaller._compile_config.config
    assert config["loss"] is loss
    assert config["metrics"][0] is metric
    assert config["loss_weights"] == [0.5]
    assert smaller.steps_per_execution == 3
    assert smaller.jit_compile is False
    assert smaller.run_eagerly is False
    y, y_predicted = targets(), outputs(smaller, images())
    logs = smaller.evaluate(images(), targets(), return_dict=True, verbose=0)
    expected = 0.5 * np.mean((y - y_predicted) ** 2)
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)
    assert logs["mean_absolute_error"] > 0.0


def test_several_inputs_and_outputs_keep_their_names_and_structure():
    left, right = keras.Input((6, 6, 2), name="l"), keras.Input((4,), name="r")
    x = layers.GlobalAveragePooling2D()(networks.conv(left, 5, "a"))
    x = layers.Concatenate()([x, layers.Dense(3, name="b")(right)])
    heads = {k: layers.Dense(3, name=k)(x) for k in ("logits", "other")}
    network = networks.Network(
        keras.Model({"l": left, "r": right}, heads),
        writes={"a": [0], "b": [2]},
        reads={"logits": [0, 7], "other": [0, 7]},
        carries={},
    )
    model = network.model
    model.compile("sgd", {"logits": "mse", "other": "mae"}, run_eagerly=True)
    shake(model)
    kill_all(network)
    x = {"l": images(), "r": targets(classes=4)}
    y = {"logits": targets(), "other": targets()}

    smaller = reconfigure(model)

    assert smaller.get_layer("b").units == 2
    expected = model(x)
    for name, value in smaller(x).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5)
    np.testing.assert_allclose(
        smaller.evaluate(x, y, verbose=0),
        model.evaluate(x, y, verbose=0),
        rtol=1e-4,
    )


def test_operations_without_a_layer_are_rebuilt():
    """`x + y` of two tensors is no layer: it has no weights and no rule."""
    image = keras.Input((6, 6, 2))
    x = networks.conv_bn(image, 6, "a")
    x = keras.ops.relu(networks.conv(x, 4, "b") * 2.0 + 1.0)
    network = networks.Network(
        keras.Model(image, networks.head(x)),
        writes={"a": [1, 4]},
        reads={"b": [1, 4]},
        carries={"a_bn": [1, 4]},
    )
    model = compiled(network)

    smaller = reconfigure(model)

    kill_all(network)
    assert smaller.get_layer("a").filters == 4
    np.testing.assert_allclose(
        outputs(smaller, images()), outputs(model, images()), atol=1e-5
    )


@pytest.mark.parametrize(
    ("build", "policy"), networks.paired("mixed_bfloat16", "mixed_float16")
)
def test_mixed_precision_stays(build, policy):
    keras.config.set_dtype_policy(policy)
    try:
        network = build()
    finally:
        keras.config.set_dtype_policy("float32")
    model = compiled(network)
    keep = networks.surviving(network)

    smaller = reconfigure(model)

    dtypes = {p.name: p.dtype_policy.name for p in leaves(model)}
    assert policy in dtypes.values()
    for layer in leaves(smaller):
        if not isinstance(layer, layers.InputLayer):  # Its own is of no use.
            assert layer.dtype_policy.name == dtypes[layer.name], layer.name
    assert {v.dtype for v in smaller.weights} == {"float32"}
    scaled = isinstance(smaller.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    kill_all(network)
    cut = assert_same(model, smaller, keep)
    assert cut == len(cut_weights(network, keep))
    # 8 bits of mantissa, one sum in another order.
    expected = np.asarray(model(images())).astype("float32")
    found = np.asarray(smaller(images())).astype("float32")
    np.testing.assert_allclose(found, expected, atol=0.03 * np.ptp(expected))
    losses = [m.train_on_batch(images(), targets()) for m in (smaller, model)]
    np.testing.assert_allclose(*losses, rtol=0.03)


# Layers that make variables of their own, and a graph of each kind.
MIRRORED = {
    *(networks.recurrent, networks.wrapped, networks.grouped),
    *(networks.residual, networks.nested),
}


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(build, marks=() if build in MIRRORED else pytest.mark.long)
        for build in networks.ALL
    ],
)
@pytest.mark.parametrize("strategy", ["mirrored"], indirect=True)
def test_a_distributed_model_stays_distributed(strategy, build):
    with strategy.scope():
        network = build()
        keep = networks.surviving(network)
        model = compiled(network)

    smaller = reconfigure(model)  # Called outside the scope.

    assert smaller.count_params() < model.count_params()
    variables = smaller.variables + smaller.optimizer.variables
    for v in variables:
        assert isinstance(v.value, tf.distribute.DistributedValues), v.path
        assert len(v.value.values) == 2
    kill_all(network)
    x, y = images().astype("float32"), targets().astype("float32")
    losses = [
        m.fit(x, y, batch_size=6, verbose=0, shuffle=False).history["loss"]
        for m in (smaller, model)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    for v, old in zip(smaller.variables, model.variables, strict=True):
        pairs = zip(v.value.values, old.value.values, strict=True)
        for one, other in pairs:
            expected = take(other, keep.get(old.path, {}))
            np.testing.assert_allclose(one, expected, atol=1e-4)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("optimizer", optimizers.ELEMENTWISE)
def test_every_optimizer_goes_on_where_it_was(optimizer, monkeypatch):
    monkeypatch.setattr(keras_internals.Unfilled, "__call__", not_a_number)
    network = networks.plain()
    model = compiled(network, optimizers.ALL[optimizer]())
    keep = networks.surviving(network)

    smaller = reconfigure(model)

    kill_all(network)
    for m in (smaller, model):
        m.train_on_batch(images(), targets())
    assert_same(model, smaller, keep)
    assert int(smaller.optimizer.iterations) == int(model.optimizer.iterations)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("optimizer", optimizers.BY_WEIGHT)
def test_an_optimizer_that_looks_at_whole_weights_keeps_its_state(optimizer):
    network = networks.plain()
    model = compiled(network, optimizers.ALL[optimizer]())
    smaller = reconfigure(model)
    kill_all(network)
    assert_same(model, smaller, networks.surviving(network))
    smaller.train_on_batch(images(), targets())
    assert int(smaller.optimizer.iterations) == 2


def test_it_can_be_repeated():
    network = networks.plain()
    model = compiled(network)
    smaller = reconfigure(model)
    kill(smaller, {"a": [0]}, {"b": [0]})  # The first one's channel 0.

    smallest = reconfigure(smaller)

    kill(model, {"a": [0, 1, 4], "b": [0]}, {"b": [0, 1, 4], "logits": [0]})
    assert smallest.get_layer("a").filters == 3
    np.testing.assert_allclose(
        outputs(smallest, images()), outputs(model, images()), atol=1e-5
    )


def assert_refused(model, match, **kwargs):
    """Asserts that nothing but an error comes of it."""
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.variables, *(optimizer.variables if optimizer else ())]
    before = [v.numpy() for v in variables]
    with pytest.raises(ValueError, match=match):
        reconfigure(model, **kwargs)
    for v, value in zip(variables, before, strict=True):
        np.testing.assert_array_equal(v, value, err_msg=v.path)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="mine")
        self.dense = layers.Dense(3)

    def call(self, x):
        return self.dense(x)


def test_a_model_without_a_graph_is_refused():
    model = Subclassed()
    model.compile("sgd", "mse")
    model(np.zeros((1, 4)))
    assert_refused(model, r"'mine', a Subclassed.*`keras.Model\(inputs, outp")


def test_a_sequential_model_without_input_is_refused_until_it_has_one():
    model = keras.Sequential([layers.Dense(4), layers.Dense(3)])
    model.compile("sgd", "mse")
    assert_refused(model, r"begins with `keras.Input\(shape\)`")


def test_a_model_that_is_compiled_without_an_optimizer_has_none_afterwards():
    network = networks.nested()
    shake(network.model)
    kill_all(network)
    network.model.compile(optimizer=None, loss="mse")
    smaller = reconfigure(network.model)
    assert smaller.compiled and smaller.optimizer is None
    assert networks.find(smaller, "inner/a").filters == 4


def test_a_model_that_is_not_compiled_is_not_afterwards():
    network = networks.nested()
    shake(network.model)
    kill_all(network)
    smaller = reconfigure(network.model)
    assert not smaller.compiled
    assert networks.find(smaller, "inner/a").filters == 4
    np.testing.assert_allclose(
        outputs(smaller, images()), outputs(network.model, images()), atol=1e-5
    )


@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf")])
def test_a_threshold_must_be_finite_and_not_negative(value):
    model = compiled(networks.plain())
    assert_refused(model, f"at least 0.*threshold={value}", threshold=value)


@pytest.mark.parametrize("name", ["channel_multiple", "min_channels"])
@pytest.mark.parametrize("value", [0, 1.5])
def test_counts_must_be_positive_integers(name, value):
    model = compiled(networks.plain())
    assert_refused(model, f"`{name}` must be.*{name}={value}", **{name: value})


def test_a_skip_that_matches_nothing_is_refused():
    model = compiled(networks.plain())
    match = "`skip` names 'stage9_.*Layers: .*a_bn"
    assert_refused(model, match, skip="stage9_*")


def test_a_regularizer_is_the_same_object_in_layer_and_weight():
    lasso = GroupLasso(factor=0.5)
    image = keras.Input((6, 6, 2))
    x = keras.layers.Conv2D(4, 3, kernel_regularizer=lasso, name="a")(image)
    x = keras.layers.Conv2D(4, 3, name="b")(x)
    model = keras.Model(image, networks.head(x))
    model.compile("sgd", "mse")
    networks.kill(model, {"a": [1]}, {"b": [1]})

    smaller = reconfigure(model)

    assert smaller.get_layer("a").kernel.shape[-1] == 3
    assert smaller.get_layer("a").kernel_regularizer is lasso
    assert smaller.get_layer("a").kernel.regularizer is lasso
