"""The benchmark of channel gating computes what the model with zeros does."""

import json
import pathlib
import sys

import keras
import numpy as np
import pytest
from absl import flags

import keras_prunetrain as kpt

BENCHMARKS = pathlib.Path(__file__).parents[2] / "tools" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import channel_gating  # noqa: E402  # isort: skip


def block(use_bias=False):
    """A shortcut over two convolutions, in which every third channel is dead.

    What one of them does not need, the other does.
    """
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 6))
    x = inputs
    for name in ("first", "second"):
        y = keras.layers.Conv2D(6, 3, padding="same", name=name)(x)
        x = keras.layers.Add()([x, keras.layers.ReLU()(y)])
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    for start, name in enumerate(("first", "second")):
        layer = model.get_layer(name)
        layer.bias.assign(np.linspace(0.5, 1.0, 6) * use_bias)
        kernel = layer.kernel.numpy()
        kernel[:, :, start::3] = 1e-5
        kernel[..., start::3] = 0.0
        layer.kernel.assign(kernel)
    return model


def zeroed(model):
    """Gives `model` zeros in the place of what is below the threshold."""
    for layer in model.layers:
        layer.set_weights(
            [np.where(abs(x) < 1e-4, 0, x) for x in layer.get_weights()]
        )
    return model


@pytest.mark.parametrize("use_bias", [False, True])
def test_outputs_are_those_of_the_model_with_zeros(use_bias):
    model = block(use_bias)
    gated = channel_gating.gate(model, 1e-4)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 6))
    expected = zeroed(model)(images)
    np.testing.assert_allclose(gated(images), expected, atol=1e-6)


def test_a_convolution_computes_what_itself_needs():
    model = block()
    gated = channel_gating.gate(model, 1e-4)
    shapes = [gated.get_layer(x).kernel.shape for x in ("first", "second")]
    assert shapes == [(3, 3, 4, 4)] * 2
    flops = [kpt.model_cost(x).forward_flops for x in (model, gated)]
    assert flops[1] * 36 == flops[0] * 16


def test_a_dead_convolution_keeps_one_channel():
    model = block()
    layer = model.get_layer("first")
    layer.kernel.assign(np.zeros_like(layer.kernel))
    read, written = channel_gating.gates(model, 1e-4)["first"]
    assert (len(read), len(written)) == (1, 1)


@pytest.mark.long
def test_two_runs_are_compared(tmp_path):
    values = flags.FlagValues()
    channel_gating.define(values)
    output = tmp_path / "out.json"
    values(["", "--turns=1", f"--output={output}"])
    for name in ("dense", "pruned"):
        (tmp_path / name).mkdir()
        block().save(tmp_path / name / "model.keras")
    folders = [str(tmp_path / name) for name in ("dense", "pruned")]
    channel_gating.main(["", *folders], values)
    record = json.loads(output.read_text())
    assert record["run"] == "pruned"
    assert record["union_flops_ratio"] == 1.0
    assert record["gated_flops_ratio"] == pytest.approx(16 / 36)
    assert record["gated_layers"] == 2
    assert record["step_time_ratio_median"] > 0
