"""The models of `keras.applications`, with weights that carry a signal."""

import keras
import numpy as np

from tests.masked import leaves

# Smallest inputs, in pixels, where they are larger than 32.
SIZES = {"Xception": 71, "InceptionV3": 75, "InceptionResNetV2": 75}
TOO_LARGE = {
    "ConvNeXtXLarge": "not run to its end: it takes more than 18 GiB",
}


def names():
    """Returns the names of all functions of `keras.applications`."""
    return sorted(
        name
        for name, value in vars(keras.applications).items()
        if callable(value) and name[0].isupper()
    )


def build(name):
    size = SIZES.get(name, 32)
    return getattr(keras.applications, name)(
        weights=None,
        input_shape=(size, size, 3),
        classes=10,
        classifier_activation=None,
    )


def draw_weights(model, rng):
    """Draws all weights so that outputs depend on inputs.

    Preprocessing is adapted, as in a model with pretrained weights.
    """
    for layer in leaves(model):
        # Fewer channels would draw other masks: no randomness in the check.
        for name in ("rate", "drop_path_rate"):
            if hasattr(layer, name):
                setattr(layer, name, 1e-12)
        if isinstance(layer, keras.layers.Normalization):
            # Its weights are the mean and the variance of what it has seen.
            if layer.input_mean is None:
                shape = [size or 32 for size in layer.input.shape[1:]]
                layer.adapt(rng.uniform(0.2, 0.9, (8, *shape)))
            continue
        for weight in layer.weights:
            value = rng.normal(size=weight.shape)
            if "kernel" in weight.name:
                fan_in = np.prod(weight.shape[:-1])
                if isinstance(layer, keras.layers.DepthwiseConv2D) or (
                    weight.name == "depthwise_kernel"
                ):
                    fan_in = np.prod(weight.shape[:-2])
                value *= np.sqrt(2.0 / fan_in)
            elif weight.name.startswith(
                ("gamma", "moving_variance", "variable")
            ):
                value = rng.uniform(0.5, 1.5, weight.shape)
            else:
                value *= 0.2
            if "int" not in weight.dtype:  # The state of a seed generator.
                weight.assign(value)


def normalizations(model):
    return [
        layer
        for layer in leaves(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]


def awaken(model, images, rng):
    """Gives BN the statistics of `images`, shaken.

    Those of more channels than live would drown what an image says.
    """
    norms = normalizations(model)
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(images, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
        variance = layer.moving_variance.numpy()
        shift = 0.2 * rng.normal(size=variance.shape) * np.sqrt(variance)
        layer.moving_mean.assign_add(shift)
        layer.moving_variance.assign(
            variance * rng.uniform(1.0, 1.6, variance.shape)
        )
