"""A shrunk model in every format that Keras writes, loaded back."""

import importlib.util

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_prunetrain import reconfigure
from tests import networks
from tests.networks import images, outputs, shake, targets

# A graph of each kind: the formats know of no channels.
EXPORTED = [
    networks.projection,
    networks.depthwise,
    networks.separable,
    networks.transposed,
    networks.splitting,
    networks.squeezing,
    networks.nested,
    networks.lines,
    networks.passing,
]


@pytest.fixture(scope="module", params=EXPORTED)
def shrunk(request):
    """A reconfigured network, with an image and what it makes of it."""
    network = request.param()
    model = network.model
    shake(model)
    networks.kill_all(network)
    model.compile("sgd", "mse")
    smaller = reconfigure(model)
    x = images().astype("float32")
    return smaller, x, outputs(smaller, x)


@pytest.mark.parametrize("build", networks.sampled())
def test_keras_file(build, tmp_path):
    network = build()
    model = network.model
    model.compile("adam", "mse", run_eagerly=True)
    shake(model)
    x, y = images().astype("float32"), targets().astype("float32")
    model.train_on_batch(x, y)
    networks.kill_all(network)
    smaller = reconfigure(model)
    assert smaller.count_params() < model.count_params()

    smaller.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")

    np.testing.assert_allclose(
        outputs(loaded, x), outputs(smaller, x), atol=1e-6
    )
    pairs = zip(
        loaded.optimizer.variables, smaller.optimizer.variables, strict=True
    )
    for one, other in pairs:
        np.testing.assert_array_equal(one, other, err_msg=other.path)
    # Keras does not save where random augmentation has got to.
    for one, other in zip(loaded.variables, smaller.variables, strict=True):
        if "seed_generator" in one.path:
            one.assign(other)
    losses = [m.train_on_batch(x, y) for m in (loaded, smaller)]
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_weights_file(shrunk, tmp_path):
    model, x, expected = shrunk
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = keras.Model.from_config(model.get_config())
    fresh.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(fresh(x), expected, atol=1e-6)


def test_saved_model(shrunk, tmp_path):
    model, x, expected = shrunk
    model.export(tmp_path / "model", format="tf_saved_model", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "model")
    np.testing.assert_allclose(loaded.serve(x), expected, atol=1e-6)


def missing(*packages):
    absent = [p for p in packages if importlib.util.find_spec(p) is None]
    return pytest.mark.skipif(
        bool(absent), reason=f"not installed: {', '.join(absent)}"
    )


@missing("ai_edge_litert")
def test_litert(shrunk, tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    model, x, expected = shrunk
    path = tmp_path / "model.tflite"
    model.export(path, format="litert", verbose=False)
    interpreter = Interpreter(str(path))
    (place,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(place["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(place["index"], x)
    interpreter.invoke()
    (result,) = interpreter.get_output_details()
    np.testing.assert_allclose(
        interpreter.get_tensor(result["index"]), expected, atol=1e-5
    )


@missing("tf2onnx", "onnxruntime")
# Keras asks NumPy for what tf2onnx still needs of it.
@pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning")
def test_onnx(shrunk, tmp_path):
    import onnxruntime

    model, x, expected = shrunk
    path = tmp_path / "model.onnx"
    model.export(path, format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(path)
    (name,) = [x.name for x in session.get_inputs()]
    np.testing.assert_allclose(
        session.run(None, {name: x})[0], expected, atol=1e-5
    )
