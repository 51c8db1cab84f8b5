"""Backward passes of layers, against dense layers with a pruned gradient."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_prunetrain as kpt
from keras_prunetrain.sdgp import emulation
from keras_prunetrain.sdgp.attach import sdgp_layers
from keras_prunetrain.sdgp.pattern import MODES
from tests.callbacks.fits import examples, network
from tests.sdgp import reference
from tests.sdgp.networks import gradients, one_layer

# A layer, the shape that it reads, and its groups.
LAYERS = {
    "convolution": lambda: (layers.Conv2D(8, 3), (6, 6, 5), 1),
    "same": lambda: (layers.Conv2D(7, 3, padding="same"), (6, 6, 5), 1),
    "without bias": lambda: (layers.Conv2D(8, 3, use_bias=False), (6, 6, 4), 1),
    "1x1": lambda: (layers.Conv2D(8, 1), (4, 4, 5), 1),
    "strided": lambda: (layers.Conv2D(8, 3, 2), (7, 7, 4), 1),
    "dilated": lambda: (layers.Conv2D(8, 3, dilation_rate=2), (8, 8, 4), 1),
    "grouped": lambda: (layers.Conv2D(12, 3, groups=2), (5, 5, 4), 2),
    "causal": lambda: (layers.Conv1D(8, 3, padding="causal"), (6, 4), 1),
    "3d": lambda: (layers.Conv3D(8, 2), (3, 3, 3, 4), 1),
    "depthwise": lambda: (layers.DepthwiseConv2D(3), (5, 5, 8), 1),
    "multiplied": lambda: (
        layers.DepthwiseConv2D(3, depth_multiplier=4),
        (5, 5, 2),
        1,
    ),
    "transposed": lambda: (layers.Conv2DTranspose(8, 3, 2), (4, 4, 5), 1),
    "transposed over time": lambda: (layers.Conv1DTranspose(7, 3), (4, 5), 1),
    "transposed 3d": lambda: (layers.Conv3DTranspose(8, 2), (2, 2, 2, 4), 1),
    "depthwise over time": lambda: (layers.DepthwiseConv1D(3), (6, 8), 1),
    "dense": lambda: (layers.Dense(8), (5,), 1),
    "dense over time": lambda: (layers.Dense(7), (3, 5), 1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_weights_have_the_dense_gradient_and_the_input_that_of_p(name, float64):
    layer, shape, groups = LAYERS[name]()
    model = one_layer(layer, shape)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, *shape))
    upstream = rng.normal(size=model(x).shape)
    kept = reference.rescaled(upstream, 2, 4, groups)
    expected = gradients(model, x, upstream)
    expected[0] = gradients(model, x, kept)[0]
    assert np.abs(kept - upstream).max() > 0.1
    outputs = np.asarray(model(x))

    assert kpt.with_sdgp(model, 2, 4, layers=layer) is model

    for found, wanted in zip(
        gradients(model, x, upstream), expected, strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-12)
    np.testing.assert_array_equal(model(x, training=True), outputs)


class WithGains(layers.Conv2D):
    """A convolution with further weights, in the product itself."""

    def build(self, shape):
        super().build(shape)
        self.gains = self.add_weight(shape=(self.filters,))

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel * self.gains)


@pytest.mark.parametrize("kind", ["gains", "lora"])
def test_further_weights_of_a_product_have_the_dense_gradient(kind, float64):
    layer = WithGains(8, 3) if kind == "gains" else layers.Conv2D(8, 3)
    model = one_layer(layer, (5, 5, 4))
    rng = np.random.default_rng(1)
    if kind == "lora":
        layer.enable_lora(2)
        layer.lora_kernel_b.assign(rng.normal(size=(2, 8)))
    x, upstream = rng.normal(size=(2, 5, 5, 4)), rng.normal(size=(2, 3, 3, 8))
    outputs = np.asarray(model(x))
    kept = reference.magnitude(upstream, 2, 4)
    expected = gradients(model, x, upstream)
    expected[0] = gradients(model, x, kept)[0]
    assert len(expected) == 4

    kpt.with_sdgp(model, 2, 4, "magnitude")

    np.testing.assert_array_equal(model(x, training=True), outputs)
    for found, wanted in zip(
        gradients(model, x, upstream), expected, strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_gradient_behind_the_activation_is_pruned(activation, float64):
    model = one_layer(layers.Conv2D(8, 3, activation=activation), (5, 5, 4))
    linear = one_layer(layers.Conv2D(8, 3), (5, 5, 4))
    rng = np.random.default_rng(1)
    x, upstream = rng.normal(size=(2, 5, 5, 4)), rng.normal(size=(2, 3, 3, 8))
    y = np.asarray(linear(x))
    slope = y > 0 if activation == "relu" else 1 - np.tanh(y) ** 2
    kept = reference.magnitude(upstream * slope, 2, 4)

    kpt.with_sdgp(model, 2, 4, "magnitude")

    found = gradients(model, x, upstream)
    np.testing.assert_allclose(found[0], gradients(linear, x, kept)[0])
    for weight, wanted in zip(
        found[1:], gradients(linear, x, upstream * slope)[1:], strict=True
    ):
        np.testing.assert_allclose(weight, wanted)


@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        (layers.Conv2D, {"padding": "same"}),
        (layers.Conv2D, {"padding": "same", "groups": 2}),
        (layers.Conv2DTranspose, {}),
    ],
)
def test_channels_may_come_first(kind, kwargs, float64):
    layer = kind(8, 3, data_format="channels_first", **kwargs)
    model = one_layer(layer, (6, 3, 4))
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 6, 3, 4))
    upstream = rng.normal(size=(2, *layer.compute_output_shape(x.shape)[1:]))
    kept = np.moveaxis(
        reference.rescaled(
            np.moveaxis(upstream, 1, -1), 2, 4, kwargs.get("groups", 1)
        ),
        *(-1, 1),
    )

    def by_xla(upstream):  # Which has such convolutions on every CPU.
        step = functools.partial(gradients, model, x, upstream)
        return tf.function(step, autograph=False, jit_compile=True)()

    _, *of_weights = by_xla(upstream)
    expected = by_xla(kept)[0]

    kpt.with_sdgp(model, 2, 4, layers=layer)

    for found, wanted in zip(
        by_xla(upstream), [expected, *of_weights], strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_out_of_training_gradients_are_dense():
    model = one_layer(layers.Conv2D(8, 3), (5, 5, 4))
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 5, 5, 4)).astype("float32")
    upstream = rng.normal(size=(2, 3, 3, 8)).astype("float32")
    dense = gradients(model, x, upstream)
    kpt.with_sdgp(model)
    for training in (False, None):
        for found, wanted in zip(
            gradients(model, x, upstream, training), dense, strict=True
        ):
            np.testing.assert_array_equal(found, wanted)


def test_a_step_runs_each_convolution_once():
    class Counted(layers.Conv2D):
        def convolution_op(self, inputs, kernel):
            calls.append(1)
            return super().convolution_op(inputs, kernel)

    model, calls = one_layer(Counted(8, 3), (5, 5, 4)), []
    kpt.with_sdgp(model)
    x = np.ones((2, 5, 5, 4), "float32")
    gradients(model, x, np.ones((2, 3, 3, 8), "float32"))
    assert len(calls) == 1

    @tf.function(autograph=False)
    def step(x):
        return gradients_of(model, x)

    def gradients_of(model, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(model(x, training=True) ** 2)
        return tape.gradient(y, [x, model.layers[1].kernel.value])

    graph = step.get_concrete_function(tf.convert_to_tensor(x)).graph
    # TensorFlow leaves out what the results do not need.
    needed = tf.compat.v1.graph_util.extract_sub_graph(
        graph.as_graph_def(), [x.op.name for x in graph.outputs]
    )
    kinds = [node.op for node in needed.node]
    for kind in ("Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter"):
        assert kinds.count(kind) == 1, kind


def test_a_gradient_can_be_asked_for_twice():
    model = one_layer(layers.Conv2D(8, 3), (5, 5, 4))
    kpt.with_sdgp(model)
    x = tf.convert_to_tensor(np.random.default_rng(0).normal(size=(2, 5, 5, 4)))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        total = tf.reduce_sum(model(x, training=True) ** 2)
    one, other = tape.gradient(total, x), tape.gradient(total, x)
    np.testing.assert_array_equal(one, other)


def test_a_traced_call_is_differentiated_from_outside():
    model = one_layer(layers.Conv2D(8, 3), (5, 5, 4))
    kpt.with_sdgp(model, mode="magnitude")
    rng = np.random.default_rng(1)
    x, upstream = rng.normal(size=(2, 5, 5, 4)), rng.normal(size=(2, 3, 3, 8))
    x, upstream = x.astype("float32"), upstream.astype("float32")
    expected = gradients(model, x, upstream)
    call = tf.function(functools.partial(model, training=True), autograph=False)
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(upstream * call(x))
    values = [v.value for v in model.trainable_variables]
    for found, wanted in zip(
        tape.gradient(total, [x, *values]), expected, strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def fitted(model, epochs=1):
    x, y = examples(16)
    model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, shuffle=False)
    return [np.asarray(v) for v in model.weights]


def net(**kwargs):
    return network(dropout=0.0, **kwargs)


def test_a_traced_step_is_traced_anew_with_it_and_is_dense_again_without():
    image = keras.Input((2, 2, 4))
    x = layers.Conv2D(8, 1, name="first")(image)
    model = keras.Model(image, layers.Conv2D(8, 1, name="second")(x))
    model.compile("sgd", "mse")
    first = model.get_weights()
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 2, 2, 4)), rng.normal(size=(4, 2, 2, 8))

    def trained():
        model.set_weights(first)
        model.fit(x, y, verbose=0, shuffle=False)
        return model.get_layer("first").kernel.numpy()

    dense = trained()
    kpt.with_sdgp(model, 1, 4, layers="second")
    assert np.abs(trained() - dense).max() > 1e-5
    kpt.without_sdgp(model)
    np.testing.assert_array_equal(trained(), dense)


def test_weights_names_and_optimizer_stay():
    model = net()
    fitted(model)
    before = [id(v) for v in [*model.variables, *model.optimizer.variables]]
    names = [v.path for v in model.variables]
    kpt.with_sdgp(model, mode="mvue", seed=3)
    assert before == [
        id(v) for v in [*model.variables, *model.optimizer.variables]
    ]
    assert names == [v.path for v in model.variables]


def drawn(count=1, how=None, dtype=None, shape=(5, 5, 4), **kwargs):
    """The gradients of `count` steps of a model of one convolution."""
    model = one_layer(layers.Conv2D(8, 3, dtype=dtype), shape)
    kpt.with_sdgp(model, 2, 4, **kwargs)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, *shape)).astype("float32")
    upstream = rng.normal(size=(2, 3, 3, 8)).astype("float32")
    step = functools.partial(gradients, model, x, upstream)
    if how is not None:
        step = tf.function(step, autograph=False, **how)
    return [[np.asarray(g) for g in step()] for _ in range(count)]


def assert_equal_steps(found, wanted):
    for step, expected in zip(found, wanted, strict=True):
        for one, other in zip(step, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_eager_and_traced_steps_and_xla_agree(mode):
    eager = drawn(2, mode=mode, seed=3)
    assert_equal_steps(drawn(2, {}, mode=mode, seed=3), eager)
    xla = {"jit_compile": True}
    compiled = drawn(2, xla, mode=mode, seed=3)
    if mode in ("rescaled", "magnitude"):
        assert_equal_steps(compiled, eager)
        return
    # XLA draws other numbers, also the same ones again.
    assert_equal_steps([x[1:] for x in compiled], [x[1:] for x in eager])
    (first, *_), (second, *_) = compiled
    assert np.abs(first - second).max() > 0.1
    assert_equal_steps(drawn(2, xla, mode=mode, seed=3), compiled)


@pytest.mark.parametrize("mode", ["random", "random_biased", "mvue"])
def test_a_seed_gives_the_same_steps_of_which_each_draws_anew(mode):
    (first, *_), (second, *_) = drawn(2, mode=mode, seed=1)
    assert np.abs(first - second).max() > 0.1
    (again, *_), _ = drawn(2, mode=mode, seed=np.int64(1))
    np.testing.assert_array_equal(first, again)
    ((other, *_),) = drawn(mode=mode, seed=2)
    assert np.abs(first - other).max() > 0.1


def test_layers_of_one_model_draw_different_numbers():
    image = keras.Input((4, 4, 8))
    convolutions = [layers.Conv2D(8, 1, use_bias=False) for _ in range(2)]
    model = keras.Model(image, [layer(image) for layer in convolutions])
    for layer in convolutions:
        layer.kernel.assign(np.eye(8)[None, None])
    kpt.with_sdgp(model, 2, 4, "random_biased", seed=1)
    x = tf.ones((2, 4, 4, 8))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        outputs = [tf.reduce_sum(y) for y in model(x, training=True)]
    one, other = (np.asarray(tape.gradient(y, x)) for y in outputs)
    assert (
        one != other
    ).any() and one.sum() == other.sum() == x.numpy().size / 2


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("mode", ["random", "random_biased", "mvue"])
def test_each_block_of_a_step_is_drawn_by_itself(mode, jit_compile):
    layer = layers.Conv2D(8, 1, use_bias=False)
    model = one_layer(layer, (40, 50, 8))
    layer.kernel.assign(np.eye(8)[None, None])
    kpt.with_sdgp(model, 2, 4, mode, seed=1)
    sizes = np.float32([1, 2, 3, 4, 1, 1, 1, 1])
    upstream = np.tile(sizes, (2, 40, 50, 1))
    step = tf.function(
        functools.partial(gradients, model, upstream, upstream),
        autograph=False,
        jit_compile=jit_compile,
    )
    found = np.asarray(step()[0]).reshape(-1, 8)
    error = found.std(0) / np.sqrt(len(found))
    share = 0.5 if mode == "random_biased" else 1.0
    assert (np.abs(found.mean(0) - share * sizes) < 4.5 * error).all()
    # All six pairs of four equal channels, next to each other as well: 4000
    # blocks, which mvue, with one point after the other, joins to two pairs.
    pairs, counts = np.unique(found[:, 4:] != 0, axis=0, return_counts=True)
    assert len(pairs) == (2 if mode == "mvue" else 6)
    np.testing.assert_allclose(counts, len(found) / len(pairs), rtol=0.15)
    changes = (found[1:, 4:] != found[:-1, 4:]).any(-1).mean()
    np.testing.assert_allclose(changes, 1 - 1 / len(pairs), atol=0.04)


def test_without_a_compiler_the_gradients_are_the_same(monkeypatch):
    compiled = drawn(1, seed=3)
    monkeypatch.setattr(emulation, "_has_compiler", lambda: False)
    emulation._compiled.cache_clear()
    try:
        assert_equal_steps(drawn(1, seed=3), compiled)
    finally:
        emulation._compiled.cache_clear()


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("mode", ["rescaled", "mvue"])
def test_in_mixed_precision(mode, policy):
    model = one_layer(layers.Conv2D(8, 3, dtype=policy), (5, 5, 4))
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 5, 5, 4)).astype("float32")
    upstream = rng.normal(size=(2, 3, 3, 8)).astype("float32")
    # Rounded, as the layer sees it.
    upstream = upstream.astype(np.asarray(model(x)).dtype).astype("float32")
    expected = gradients(model, x, upstream)
    expected[0] = gradients(model, x, reference.rescaled(upstream, 2, 4))[0]

    kpt.with_sdgp(model, 2, 4, mode, seed=1)

    of_x, *of_weights = gradients(model, x, upstream)
    for one, wanted in zip(of_weights, expected[1:], strict=True):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, wanted)
    if mode == "rescaled":
        np.testing.assert_allclose(of_x, expected[0], atol=0.1)
    else:
        assert 0.1 < np.abs(of_x - expected[0]).mean() < np.abs(of_x).mean()


def replicas(strategy, model, mode):
    """The gradients of the input on two replicas of the same images."""
    images = np.ones((2, 5, 5, 4), "float32")
    upstream = np.random.default_rng(1).normal(size=(2, 3, 3, 8))
    upstream = upstream.astype("float32")

    @tf.function(autograph=False)
    def step():
        return strategy.run(lambda: gradients(model, images, upstream)[0])

    return [
        np.stack(strategy.experimental_local_results(step())) for _ in range(2)
    ]


@pytest.mark.parametrize("mode", ["rescaled", "random", "mvue"])
def test_replicas_choose_by_their_own_numbers(strategy, mode):
    with strategy.scope():
        model = one_layer(layers.Conv2D(8, 3), (5, 5, 4))
    kpt.with_sdgp(model, 2, 4, mode, seed=1)
    first, second = replicas(strategy, model, mode)
    draws = mode != "rescaled"
    assert (np.abs(first[0] - first[1]).max() > 0.1) == draws
    assert (np.abs(first - second).max() > 0.1) == draws


def without_statistics():
    """A model whose replicas compute what one device does."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, activation="tanh")(image)
    x = layers.Conv2D(8, 3, activation="tanh", name="second")(x)
    x = layers.Dense(3)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(image, x)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1.0), loss, run_eagerly=False)
    return model


@pytest.mark.long
@pytest.mark.parametrize("mode", ["rescaled", "mvue"])
def test_two_replicas_train_as_one_device(strategy, mode):
    with strategy.scope():
        model = without_statistics()
    found = fitted(kpt.with_sdgp(model, 1, 4, mode, seed=1), 2)
    for weight in model.trainable_weights:
        one, other = strategy.experimental_local_results(weight.value)
        np.testing.assert_array_equal(one, other)
    one = kpt.with_sdgp(without_statistics(), 1, 4, mode, seed=1)
    dense = fitted(without_statistics(), 2)
    exact = mode == "rescaled"  # The replicas draw numbers of their own.
    gaps = [
        np.abs(x - y).max() / max(np.abs(y - z).max(), 1e-3)
        for x, y, z in zip(found, fitted(one, 2), dense, strict=True)
    ]
    # In parts of what pruned gradients change: that of the first layer.
    assert gaps[0] < 1e-3 if exact else gaps[0] > 0.1


def test_saved_files_load_without_it(tmp_path):
    model = net()
    config = model.get_config()
    kpt.with_sdgp(model)
    assert model.get_config() == config
    fitted(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert not sdgp_layers(loaded)
    x = examples(4)[0]
    np.testing.assert_array_equal(loaded(x), model(x))
    assert not sdgp_layers(keras.models.clone_model(model))


@pytest.mark.long
def test_exports_do_not_see_it(tmp_path):
    model = kpt.with_sdgp(net())
    model.export(tmp_path / "exported", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "exported")
    x = examples(4)[0]
    np.testing.assert_allclose(loaded.serve(x), model(x), atol=1e-6)
    graph = loaded.signatures["serve"].graph.as_graph_def()
    assert "CustomGradient" not in str(graph)


def test_a_smaller_model_keeps_it():
    model = kpt.with_sdgp(net(), 1, 2, "magnitude", layers=["inner", "last"])
    for layer, axis in (("inner", -1), ("last", -2)):
        kernel = model.get_layer(layer).kernel
        values = np.moveaxis(kernel.numpy(), axis, 0)
        values[[1, 2]] = 0.0
        kernel.assign(np.moveaxis(values, 0, axis))
    smaller = kpt.reconfigure(model)
    assert smaller.get_layer("inner").filters == 4
    assert list(sdgp_layers(smaller)) == ["inner", "last"]
    dense = kpt.without_sdgp(keras.models.clone_model(smaller))
    dense.set_weights(smaller.get_weights())
    kpt.with_sdgp(dense, 1, 2, "magnitude", layers=["inner", "last"])
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 8, 8, 3)).astype("float32")
    upstream = rng.normal(size=(2, 3)).astype("float32")
    for found, wanted in zip(
        gradients(smaller, x, upstream),
        gradients(dense, x, upstream),
        strict=True,
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-6)
