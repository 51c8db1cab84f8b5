"""Fine-tuning in two phases: a frozen backbone, then an unfrozen one."""

import keras
import numpy as np
import pytest
from keras import layers

from tests.networks import conv_bn, shake
from tests.programs.watched import (
    PruneTrain,
    Target,
    images,
    outputs,
    trained,
)


def backbone():
    """What has been trained elsewhere; it takes images of any size."""
    image = keras.Input((None, None, 3))
    x = conv_bn(image, 8, "a", strides=2)
    y = conv_bn(conv_bn(x, 8, "b"), 8, "c", relu=False)
    x = conv_bn(layers.Add()([x, y]), 16, "d")
    model = keras.Model(image, x, name="backbone")
    shake(model)
    return model


def fine_tuned():
    image = keras.Input((10, 10, 3))
    nested = backbone()
    nested.trainable = False
    x = nested(layers.Rescaling(2.0, -1.0)(image), training=False)
    x = layers.Dropout(0.2, seed=0)(layers.GlobalAveragePooling2D()(x))
    x = layers.Dense(24, activation="relu", name="hidden")(x)
    return keras.Model(image, layers.Dense(4, name="logits")(x))


def compiled(model, optimizer):
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        run_eagerly=True,
    )
    return model


DATA = images(32, 10, 10, 3), np.arange(32) % 4


@pytest.mark.long
def test_the_head_shrinks_first_and_then_the_backbone(float64, tmp_path):
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    model = compiled(fine_tuned(), optimizer)
    nested = model.get_layer("backbone")
    taught = nested.get_weights()
    callback = PruneTrain(interval=2, factor=1.0, solver="proximal")
    trained(callback, model, lambda x: [x], *DATA)

    assert 1 <= model.get_layer("hidden").units < 24
    for one, other in zip(nested.get_weights(), taught, strict=True):
        np.testing.assert_array_equal(one, other)

    nested.trainable = True
    compiled(model, keras.optimizers.Adam(1e-3))
    trained(Target(), model, lambda x: [x], *DATA)

    assert model.get_layer("backbone") is nested
    widths = [nested.get_layer(x).filters for x in "abcd"]
    assert sum(widths) < 8 + 8 + 8 + 16
    assert widths[0] == widths[2]  # They are added.
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for one, other in zip(outputs(again), outputs(model), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)
    loss = again.fit(*DATA, verbose=0).history["loss"][0]
    assert np.isfinite(loss)
