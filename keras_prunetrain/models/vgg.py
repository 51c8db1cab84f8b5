"""VGG networks with BN and a single dense layer (Simonyan & Zisserman)."""

import keras

from keras_prunetrain.models.parts import check_arguments, classifier, conv_bn

WIDTHS = (64, 128, 256, 512, 512)


def vgg11(
    input_shape: tuple[int | None, ...] = (32, 32, 3),
    classes: int = 10,
    weight_decay: float = 0.0,
) -> keras.Model:
    """Builds VGG11: 3x3 convolutions 1/1/2/2/2, a max pool after each stage.

    Args:
        input_shape: Tuple `(height, width, channels)`, at least 32 pixels
            high and wide: each of the five pools halves both.
        classes: Integer. Number of logits.
        weight_decay: Float, at least 0. Coupled weight decay on every
            trainable weight. Defaults to `0.0`.

    Returns:
        A functional `keras.Model` with logits `(batch, classes)`.

    Raises:
        ValueError: If an argument is out of its range.
    """
    return _vgg("vgg11", (1, 1, 2, 2, 2), input_shape, classes, weight_decay)


def vgg13(
    input_shape: tuple[int | None, ...] = (32, 32, 3),
    classes: int = 10,
    weight_decay: float = 0.0,
) -> keras.Model:
    """Builds VGG13: convolutions 2/2/2/2/2. Arguments as for `vgg11`."""
    return _vgg("vgg13", (2, 2, 2, 2, 2), input_shape, classes, weight_decay)


def _vgg(name, depths, input_shape, classes, weight_decay):
    """Builds stages of convolutions, a max pool after each."""
    check_arguments(input_shape, classes, weight_decay)
    x = inputs = keras.Input(input_shape, name="image")
    for stage, (depth, width) in enumerate(zip(depths, WIDTHS, strict=True), 1):
        for index in range(1, depth + 1):
            conv = f"stage{stage}_conv{index}"
            x = conv_bn(x, width, 3, conv, weight_decay=weight_decay)
        x = keras.layers.MaxPooling2D(name=f"stage{stage}_pool")(x)
    outputs = classifier(x, classes, weight_decay)
    return keras.Model(inputs, outputs, name=name)
