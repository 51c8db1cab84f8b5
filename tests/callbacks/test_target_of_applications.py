"""A target for the networks of `keras.applications`, in short trainings."""

import keras
import numpy as np
import pytest

import keras_prunetrain as kpt

# Residual, separable, squeeze and excitation.
NAMES = ("ResNet50V2", "MobileNet", "MobileNetV3Small")
SIZE = (32, 32, 3)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "target"),
    [
        *((name, "flops") for name in NAMES),
        ("MobileNetV2", "parameters"),
    ],
)
def test_the_target_is_met_within_two_percent(name, target):
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=SIZE, classes=10
    )
    # Tracing takes most of the time of so few steps.
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    first = kpt.model_cost(model)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, *SIZE)).astype("float32")
    y = rng.integers(10, size=8)
    pruning = kpt.TargetPruneCallback(
        **{target: 0.6},
        warmup=0,
        decay=1,
        reconfigure={"channel_multiple": 1},
    )
    history = model.fit(x, y, 2, 2, verbose=0, callbacks=[pruning]).history
    quantity = pruning.target.quantity
    share = getattr(kpt.model_cost(model), quantity) / getattr(first, quantity)
    assert 0.98 * 0.6 <= share <= 0.6
    assert np.isfinite(history["loss"]).all()
    assert len(pruning.reports) == 1
