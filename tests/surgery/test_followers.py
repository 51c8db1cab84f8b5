"""Other models on the same layers go on as well, or are named."""

import gc
import logging
import weakref

import keras
import numpy as np
import pytest
from keras import layers

from keras_prunetrain.surgery.reconfigure import check_reconfigurable
from tests import networks
from tests.networks import images, targets
from tests.surgery.test_takeover import shrink, step, trained


def results(model, x=None):
    return model.predict(images() if x is None else x, verbose=0)


def softmax(model):
    return keras.ops.convert_to_numpy(keras.ops.softmax(model(images())))


def make_untraced(*models):
    """Lets `predict` of these models run eagerly: that takes less time."""
    for model in models:
        model.compile(run_eagerly=True)


def test_models_made_before_compute_with_the_smaller_layers(tmp_path):
    network = networks.residual()
    model = network.model
    features = keras.Model(model.inputs, model.get_layer("add").output)
    head = layers.Softmax(name="head")(model.outputs[0])
    prediction = keras.Model(model.inputs, head)
    trained(network)
    expected = results(features), results(prediction)  # Traced, as by users.

    shrink(model)

    kept = np.delete(expected[0], network.writes["stem"], axis=-1)
    np.testing.assert_allclose(results(features), kept, atol=1e-5)
    np.testing.assert_allclose(results(prediction), expected[1], atol=1e-5)
    assert features.output_shape == (None, 6, 6, 4)
    assert features.get_layer("stem") is model.get_layer("stem")
    step(model)
    np.testing.assert_allclose(results(prediction), softmax(model), atol=1e-5)
    for one in (features, prediction):
        one.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(results(loaded), results(one), atol=1e-6)


def test_they_follow_again_and_again_and_hold_nothing_old():
    network = networks.residual()
    model = network.model
    inner = keras.Model(model.inputs, model.get_layer("conv2").output)
    whole = keras.Sequential([keras.Input((6, 6, 2)), model, layers.Softmax()])
    make_untraced(inner, whole)
    trained(network)
    old = []
    for channel in (0, 0):
        old += [weakref.ref(v) for v in model.trainable_variables]
        shrink(model)
        np.testing.assert_allclose(results(whole), softmax(model), atol=1e-5)
        assert results(inner).shape[-1] == 4
        networks.kill(model, {"conv1": [channel]}, {"conv2": [channel]})
    shrink(model)
    gc.collect()
    assert not [v for v in old if v() is not None]
    assert inner.get_layer("conv1").filters == 1


def test_a_model_without_the_branch_that_leaves_goes_on():
    network = networks.residual()
    model = network.model
    features = keras.Model(model.inputs, model.get_layer("add").output)
    make_untraced(features)
    trained(network)
    networks.kill(model, {"conv1": [0, 1, 2, 3]}, {"conv2": [0, 1, 2, 3]})
    expected = np.delete(results(features), [1, 4], axis=-1)

    shrink(model)

    assert "conv1" not in [x.name for x in model.layers]
    np.testing.assert_allclose(results(features), expected, atol=1e-5)


def test_a_stack_of_the_same_layers_follows():
    network = networks.sequential()
    model = network.model
    stack = keras.Sequential([keras.Input((6, 6, 2)), *model.layers[:3]])
    make_untraced(stack)
    trained(network)
    expected = np.delete(results(stack), network.writes["a"], axis=-1)

    shrink(model)

    np.testing.assert_allclose(results(stack), expected, atol=1e-5)
    assert stack.layers == model.layers[:3]


class Whole(keras.Model):
    """A trainer that holds the model as a part."""

    def __init__(self, part):
        super().__init__()
        self.part = part
        self.head = layers.Dense(2)

    def call(self, x):
        return self.head(self.part(x))


@pytest.mark.parametrize("has_graph", [False, True])
def test_a_model_around_it_goes_on_training_with_its_own_optimizer(has_graph):
    network = networks.plain()
    model = network.model
    if has_graph:
        whole = keras.Model(model.inputs, layers.Dense(2)(model.outputs[0]))
    else:
        whole = Whole(model)
    whole.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=has_graph)
    trained(network)
    y = targets(classes=2)
    whole.fit(images(), y, verbose=0)
    networks.kill_all(network)
    own = whole.optimizer.variables[-1]
    values = own.numpy()
    steps, optimizer = whole.optimizer.iterations, whole.optimizer
    loss = whole.evaluate(images(), y, verbose=0)

    shrink(model)

    assert whole.optimizer is optimizer
    assert optimizer.iterations is steps
    assert len(optimizer.variables) == 2 + 2 * len(whole.trainable_variables)
    np.testing.assert_array_equal(optimizer.variables[-1], values)
    assert whole.evaluate(images(), y, verbose=0) == pytest.approx(loss)
    before = model.get_layer("a").kernel.numpy()
    whole.fit(images(), y, verbose=0)
    assert np.abs(model.get_layer("a").kernel - before).min() > 0.0
    assert int(steps) == 2


def test_a_nested_model_that_was_trained_before_can_be_trained_again():
    network = networks.nested()
    inner = network.model.get_layer("inner")
    inner.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=True)
    x = networks.images(shape=(6, 6, 5))
    inner.train_on_batch(x, x)
    model = trained(network)
    momentum = inner.optimizer._momentums[0].numpy()

    shrink(model)

    kept = np.delete(np.delete(momentum, [0, 5], -1), [2], -2)
    np.testing.assert_array_equal(inner.optimizer._momentums[0], kept)
    x = networks.images(shape=(6, 6, 4))
    inner.train_on_batch(x, x)
    assert int(inner.optimizer.iterations) == 2


def autoencoder():
    image = keras.Input((6, 6, 2))
    x = layers.Flatten()(image)
    code = layers.Dense(5, activation="tanh", name="code")(x)
    decode = layers.Dense(3, name="decode")
    model = keras.Model(image, decode(code), name="autoencoder")
    given = keras.Input((5,))
    decoder = keras.Model(given, decode(given), name="decoder")
    dead = {"code": [1, 2]}, {"decode": [1, 2]}
    return decoder, networks.Network(model, *dead, {})


def test_a_model_that_cannot_follow_is_named_before_and_says_so(caplog):
    decoder, network = autoencoder()
    model = trained(network)
    with caplog.at_level(logging.WARNING):
        check_reconfigurable(model)
    message = "model 'decoder' shares layers with 'autoencoder' and may not"
    assert message in caplog.text
    assert "layer 'decode' reads channels that may go" in caplog.text
    code = np.ones((2, 5))
    before = results(decoder, code)
    np.testing.assert_array_equal(results(decoder, code), before)

    caplog.clear()
    with caplog.at_level(logging.WARNING):
        shrink(model)

    assert "'decoder'" in caplog.text and "Make it anew" in caplog.text
    with pytest.raises(ValueError, match="'decoder' shares layers with"):
        results(decoder, code)
    step(model)
    given = keras.Input((3,))
    anew = keras.Model(given, model.get_layer("decode")(given))
    assert results(anew, code[:, :3]).shape == (2, 3)


def test_the_advice_to_skip_helps(caplog):
    decoder, network = autoencoder()
    model = trained(network)
    with caplog.at_level(logging.WARNING):
        check_reconfigurable(model, skip=["code"])
    assert caplog.text == ""
    del decoder


def test_models_that_are_gone_are_not_named(caplog):
    network = autoencoder()[1]  # Its decoder waits to be collected.
    with caplog.at_level(logging.WARNING):
        check_reconfigurable(trained(network))
    assert caplog.text == ""


def test_a_trial_leaves_no_trace_in_layers_of_others():
    network = networks.plain()
    model = network.model
    head = layers.Softmax()
    prediction = keras.Model(model.inputs, head(model.outputs[0]))
    trained(network)
    nodes = list(head._inbound_nodes)
    outward = [list(x._outbound_nodes) for x in model.layers]
    check_reconfigurable(model)
    assert list(head._inbound_nodes) == nodes
    assert [list(x._outbound_nodes) for x in model.layers] == outward
    assert prediction.output_shape == (None, 3)


def test_a_model_with_an_input_of_its_own_survives_the_trial(caplog):
    network = networks.plain()
    model = network.model
    image = keras.Input(model.input_shape[1:])
    around = keras.Model(image, layers.Softmax()(model(image)), name="around")
    make_untraced(around)
    trained(network)
    expected = results(around)
    check_reconfigurable(model)
    shrink(model)
    np.testing.assert_allclose(results(around), expected, atol=1e-5)
    assert caplog.text == ""


def test_tracing_after_each_reconfiguration_is_no_reason_for_a_warning(caplog):
    """TensorFlow warns of the fifth tracing of a step; here it is wanted."""
    line = keras.Input((4,))
    x = layers.Dense(6, name="a")(line)
    model = keras.Model(line, layers.Dense(2, name="b")(x))
    model.compile("sgd", "mse")
    x, y = np.ones((4, 4)), np.ones((4, 2))
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            model.fit(x, y, verbose=0)
            networks.kill(model, {"a": [0]}, {"b": [0]})
            shrink(model)
        model.fit(x, y, verbose=0)
    assert model.get_layer("a").units == 1
    assert "retracing" not in caplog.text
