"""Scores by the gradient flow, against finite differences in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_prunetrain import saliency
from keras_prunetrain.channels.numbering import number_channels
from keras_prunetrain.gradient_flow import Batch, gradient_flow
from keras_prunetrain.saliency import readers
from keras_prunetrain.scoring import check_batches, measured_flow
from tests import networks

pytestmark = pytest.mark.usefixtures("float64")
STEP = 1e-5


def compiled(build, l2=None):
    model = build().model
    networks.shake(model)
    if l2:
        for layer in model.layers:
            if hasattr(layer, "kernel"):
                layer.kernel.regularizer = keras.regularizers.L2(l2)
    model.compile("sgd", "mse")
    return model


def batches_for(model, count=2):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        x = [rng.normal(size=(4, *i.shape[1:])) for i in model.inputs]
        y = [rng.normal(size=(4, *o.shape[1:])) for o in model.outputs]
        found.append(Batch(x[0] if len(x) == 1 else x, y[0]))
    return found


def gradient(model, batches):
    """The gradient of the task's loss, summed, at the weights as they are."""
    values = [v.value for v in model.trainable_variables]
    total = [np.zeros(v.shape) for v in values]
    for x, y, _ in batches:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x, training=False) - y) ** 2)
        zero = tf.UnconnectedGradients.ZERO
        found = tape.gradient(loss, values, unconnected_gradients=zero)
        total = [t + g.numpy() for t, g in zip(total, found, strict=True)]
    return total


def assert_products_are_those_of_differences(flow, model, batches, direction):
    """Of the gradients a short way along `direction`, and against it."""
    sides, weights = [], model.trainable_variables
    before = [v.numpy() for v in weights]
    # So short a way that no ReLU opens or closes on it.
    step = 1e-7 / max(np.abs(g).max() for g in direction)
    for sign in (1, -1):
        for v, w, g in zip(weights, before, direction, strict=True):
            v.assign(w + sign * step * g)
        sides.append(gradient(model, batches))
    for found, above, below in zip(flow.products, *sides, strict=True):
        by_hand = (above - below) / (2 * step)
        np.testing.assert_allclose(found, by_hand, rtol=1e-3, atol=1e-4)


SMOOTH = [
    networks.residual,
    networks.flattening,
    networks.nested,
    networks.depthwise,
    pytest.param(networks.shared, marks=pytest.mark.long),
    pytest.param(networks.bottleneck, marks=pytest.mark.long),
    pytest.param(networks.concatenating, marks=pytest.mark.long),
    pytest.param(networks.separable, marks=pytest.mark.long),
]


@pytest.mark.parametrize("build", SMOOTH)
@pytest.mark.parametrize("l2", [None, 0.1])
def test_gradient_and_hessian_product_are_those_of_differences(build, l2):
    model = compiled(build, l2)
    batches = batches_for(model)
    flow = gradient_flow(model, batches)
    expected = gradient(model, batches)
    for found, by_hand in zip(flow.gradients, expected, strict=True):
        np.testing.assert_allclose(found, by_hand, atol=1e-8)
    assert_products_are_those_of_differences(flow, model, batches, expected)
    assert max(np.abs(x).max() for x in flow.products) > 1e-2


@pytest.mark.parametrize("build", SMOOTH)
def test_a_channel_scores_by_the_gradient_of_its_gate(build):
    """By finite differences of a factor on all slices that read the channel."""
    model = compiled(build)
    batches = batches_for(model)
    numbering = number_channels(model)
    flow = gradient_flow(model, batches)
    found = flow.channel_scores(numbering, "gradient_flow")
    reading = readers(numbering)
    weights = model.trainable_variables
    before = [v.numpy() for v in weights]
    read = np.unique(np.concatenate([x.numbers for x in reading]))
    for number in np.random.default_rng(1).choice(read, 4, replace=False):
        sides = []
        for gate in (1 + STEP, 1 - STEP):
            factors = [np.ones(v.shape) for v in weights]
            for label in reading:
                (i,) = [i for i, v in enumerate(weights) if v is label.weight]
                along = np.moveaxis(factors[i], label.axis, 0)
                along[label.numbers == number] = gate
            for v, w, f in zip(weights, before, factors, strict=True):
                v.assign(w * f)
            # By the weights before the gate, so the gate once more.
            gated = [
                f * g
                for f, g in zip(factors, gradient(model, batches), strict=True)
            ]
            sides.append(
                sum(
                    (a * b).sum()
                    for a, b in zip(flow.gradients, gated, strict=True)
                )
            )
        for v, w in zip(weights, before, strict=True):
            v.assign(w)
        expected = abs(sides[0] - sides[1]) / (2 * STEP)
        assert found[number] == pytest.approx(expected, rel=2e-3, abs=1e-4)
    assert found[read].max() > 1e-2


@pytest.mark.parametrize("build", SMOOTH)
def test_all_gates_in_reverse_mode_give_the_same_scores(build):
    model = compiled(build)
    batches = batches_for(model)
    numbering = number_channels(model)
    flow = gradient_flow(model, batches)
    found = flow.channel_scores(numbering, "gradient_flow")
    weights = [tf.constant(v.numpy()) for v in model.trainable_variables]
    fixed = [v.value for v in model.non_trainable_variables]
    gates = tf.ones(numbering.size, "float64")

    def gated(weight, variable):
        for label in readers(numbering):
            if label.weight is variable:
                shape = np.ones(len(variable.shape), int)
                shape[label.axis] = -1
                factor = tf.gather(gates, label.numbers)
                weight = weight * tf.reshape(factor, shape)
        return weight

    with tf.GradientTape() as outer:
        outer.watch(gates)
        with tf.GradientTape() as inner:
            inner.watch(weights)
            pairs = zip(weights, model.trainable_variables, strict=True)
            values = [gated(*pair) for pair in pairs]
            loss = sum(
                tf.reduce_mean(
                    (model.stateless_call(values, fixed, x)[0] - y) ** 2
                )
                for x, y, _ in batches
            )
        gradients = inner.gradient(
            *(loss, weights),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        value = sum(
            tf.reduce_sum(a * b)
            for a, b in zip(flow.gradients, gradients, strict=True)
        )
    expected = np.abs(tf.convert_to_tensor(outer.gradient(value, gates)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-10)
    assert found.max() > 1e-2


def test_masked_weights_are_none_of_the_network_whose_flow_is_measured():
    model = compiled(networks.residual)
    batches = batches_for(model)
    rng = np.random.default_rng(0)
    weights = model.trainable_variables
    masks = {
        id(v): (rng.random(v.shape) < 0.5).astype(float)
        for v in weights
        if len(v.shape) > 1
    }
    for v in weights:
        v.assign(v.numpy() * masks.get(id(v), 1.0))
    flow = gradient_flow(model, batches, masks)
    of_network = [
        g * masks.get(id(v), 1.0)
        for v, g in zip(weights, gradient(model, batches), strict=True)
    ]
    for one, other in zip(flow.gradients, of_network, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-8)
    assert_products_are_those_of_differences(flow, model, batches, of_network)


def test_weights_score_by_weight_times_hessian_product():
    model = compiled(networks.residual)
    flow = gradient_flow(model, batches_for(model))
    scores = flow.weight_scores("gradient_flow")
    for weight, product in zip(flow.weights, flow.products, strict=True):
        np.testing.assert_allclose(
            scores[id(weight)], np.abs(weight.numpy() * product)
        )


def slices_by_number(numbering, weights, values):
    """The sum of an array over the slices that read each number."""
    total = np.zeros(numbering.size)
    by_id = dict(zip(map(id, weights), values, strict=True))
    for label in readers(numbering):
        others = tuple(
            i for i in range(len(label.weight.shape)) if i != label.axis
        )
        sums = by_id[id(label.weight)].sum(axis=others)
        np.add.at(total, label.numbers, sums)
    return total


@pytest.mark.parametrize("rule", ["snip", "grasp", "synflow"])
def test_the_scores_of_the_field_by_hand(rule):
    model = compiled(networks.residual)
    batches = batches_for(model)
    numbering = number_channels(model)
    flow = measured_flow(model, batches, rule)
    weights = [v.numpy() for v in flow.weights]
    if rule == "synflow":
        for v, w in zip(flow.weights, weights, strict=True):
            v.assign(np.abs(w))
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(model(np.ones((1, 6, 6, 2)), training=False))
        found = tape.gradient(total, [v.value for v in flow.weights])
        parts = [
            np.abs(w) * g.numpy() for w, g in zip(weights, found, strict=True)
        ]
        for v, w in zip(flow.weights, weights, strict=True):
            v.assign(w)
    else:
        factors = flow.gradients if rule == "snip" else flow.products
        parts = [w * f for w, f in zip(weights, factors, strict=True)]
    sums = slices_by_number(numbering, flow.weights, parts)
    read = np.unique(np.concatenate([x.numbers for x in readers(numbering)]))
    found = flow.channel_scores(numbering, rule)
    least = min(x.min() for x in parts)
    if rule == "grasp":  # The sign counts.
        np.testing.assert_allclose(found, sums, rtol=1e-4, atol=1e-5)
        assert found[read].min() < 0.0
        expected = [x - least for x in parts]
    else:
        np.testing.assert_allclose(found, np.abs(sums), rtol=1e-4, atol=1e-5)
        expected = [np.abs(x) for x in parts]
    assert found[read].max() > 1e-2
    by_weight = flow.weight_scores(rule)
    for v, x in zip(flow.weights, expected, strict=True):
        np.testing.assert_allclose(by_weight[id(v)], x, atol=1e-9)


def test_the_weights_come_back_if_synflow_fails():
    model = compiled(networks.residual)
    before = [v.numpy() for v in model.variables]
    (batch,) = batches_for(model, 1)
    with pytest.raises(Exception):  # noqa: B017, PT011
        measured_flow(model, [batch._replace(x=np.ones((1, 3)))], "synflow")
    for v, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(v.numpy(), value)


@pytest.mark.parametrize("rule", saliency.ON_DATA)
def test_nothing_of_the_model_changes(rule):
    model = compiled(networks.residual)
    before = [v.numpy() for v in model.variables]
    measured_flow(model, batches_for(model), rule)
    for v, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(v.numpy(), value)


def test_what_keras_says_is_one_plain_line():
    model = compiled(networks.residual)
    (batch,) = batches_for(model, 1)
    batch = batch._replace(x=batch.x[..., :1])
    with pytest.raises(ValueError, match="ValueError: .*incompatible") as error:
        check_batches(model, [batch], "gradient_flow")
    text = str(error.value)
    assert text.isprintable() and "Arguments received" not in text


def test_the_metrics_of_an_epoch_do_not_count_the_scoring_data():
    image = keras.Input((4,))
    x = keras.layers.Dense(3)(image)
    outputs = [keras.layers.Dense(1, name=name)(x) for name in ("a", "b")]
    model = keras.Model(image, outputs)
    model.compile("sgd", ["mse", "mse"])
    x, y = np.ones((4, 4)), np.ones((4, 1))
    model.train_on_batch(x, [y, y])
    before = model.get_metrics_result()
    assert len(before) == 3  # The loss of each output is a metric.
    batches = [Batch(2 * x, [y, y])]
    gradient_flow(model, batches)
    check_batches(model, batches, "gradient_flow")
    assert model.get_metrics_result() == before


@pytest.mark.parametrize("rule", saliency.ON_DATA)
def test_data_without_a_batch_are_refused(rule):
    with pytest.raises(ValueError, match="have no batch"):
        measured_flow(compiled(networks.residual), [], rule)


def test_a_gradient_that_is_not_finite_is_refused():
    model = compiled(networks.residual)
    (batch,) = batches_for(model, 1)
    with pytest.raises(ValueError, match="is not finite on the scoring data"):
        gradient_flow(model, [batch._replace(x=batch.x * np.nan)])


def test_a_sum_of_synflow_that_is_too_large_is_refused():
    model = compiled(networks.residual)
    # As those of a network of some 30 layers in float32.
    for name in ("stem", "conv1"):
        kernel = model.get_layer(name).kernel
        kernel.assign(1e200 * kernel.numpy())
    before = [v.numpy() for v in model.variables]
    with pytest.raises(ValueError, match="larger than its numbers can be"):
        measured_flow(model, batches_for(model), "synflow")
    for v, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(v.numpy(), value)


def bicubic():
    """A model with an operation that has no second derivative."""
    image = keras.Input((6, 6, 2), dtype="float32")
    x = networks.conv(image, 3, "a", dtype="float32")
    x = keras.layers.Resizing(12, 12, interpolation="bicubic", dtype="float32")(
        x
    )
    model = keras.Model(image, networks.head(x))
    model.compile("sgd", "mse")
    return model


def test_an_operation_without_a_second_derivative_is_named():
    model = bicubic()
    with pytest.raises(ValueError, match="ResizeBicubicGrad"):
        gradient_flow(model, batches_for(model))


def test_a_loss_that_fails_only_as_it_is_computed_is_named():
    image = keras.Input((4, 6), dtype="float32")
    model = keras.Model(image, keras.layers.Dense(5, dtype="float32")(image))
    model.compile("sgd", keras.losses.CTC())
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 6)).astype("float32")
    batch = Batch(x, np.array([[1, 2], [3, 1]]))
    with pytest.raises(ValueError, match="second derivatives.*ctc_loss_dense"):
        check_batches(model, [batch], "gradient_flow")
    check_batches(model, [batch], "snip")


@pytest.mark.parametrize("rule", ["gradient_flow", "snip"])
@pytest.mark.parametrize(("factor", "y"), [(1.0, 3e4), (1e-4, 1.0)])
def test_float16_holds_large_and_small_derivatives(rule, factor, y):
    def scores(policy):
        keras.utils.set_random_seed(0)
        image = keras.Input((6,), dtype="float32")
        x = keras.layers.Dense(32, activation="tanh", dtype=policy)(image)
        model = keras.Model(image, keras.layers.Dense(1, dtype=policy)(x))
        mse = keras.losses.mean_squared_error
        model.compile("sgd", lambda y, p: factor * mse(y, p))
        rng = np.random.default_rng(0)
        x = rng.normal(size=(32, 6)).astype("float32")
        batch = Batch(x, np.full((32, 1), y, "float32"))
        found = measured_flow(model, [batch], rule).weight_scores(rule)
        return np.concatenate([x.ravel() for x in found.values()])

    exact, found = scores("float32"), scores("mixed_float16")
    strong = exact > np.quantile(exact, 0.5)
    np.testing.assert_allclose(found[strong], exact[strong], rtol=0.2)


def test_what_a_call_changes_comes_back():
    class Drawing(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.generator = keras.random.SeedGenerator(0)

        def call(self, x):
            return x + keras.random.normal(
                keras.ops.shape(x), seed=self.generator
            )

    words = keras.Input((4, 3), batch_size=2)
    x = keras.layers.LSTM(5, stateful=True)(Drawing()(words))
    model = keras.Model(words, keras.layers.Dense(1)(x))
    model.compile("sgd", "mse")
    drawing, lstm = model.layers[1:3]
    batch = Batch(np.ones((2, 4, 3)), np.ones((2, 1)))
    kept = [*lstm.states, drawing.generator.state]
    before = [v.numpy() for v in kept]
    check_batches(model, [batch] * 2, "gradient_flow")
    measured_flow(model, [batch] * 2, "snip")
    for variable, value in zip(kept, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    model(batch.x)
    assert np.abs(lstm.states[0].numpy()).max() > 0
    assert (drawing.generator.state.numpy() != before[-1]).any()


@pytest.mark.parametrize("rule", ["snip", "synflow"])
def test_scores_by_one_gradient_need_no_second_derivative(rule):
    model = bicubic()
    scores = measured_flow(model, batches_for(model), rule).channel_scores(
        number_channels(model), rule
    )
    assert scores.max() > 0.0
