"""VGG networks with BN and a single dense layer (Simonyan & Zisserman)."""

import keras

from keras_prunetrain.models.parts import check_arguments, classifier, conv_bn

# Widths of the stages, in widths of the first one.
MULTIPLES = (1, 2, 4, 8, 8)


def vgg11(
    input_shape: tuple[int | None, ...] = (32, 32, 3),
    classes: int = 10,
    weight_decay: float = 0.0,
    width: int = 64,
) -> keras.Model:
    """Builds VGG11: 3x3 convolutions 1/1/2/2/2, a max pool after each stage.

    The five stages have 1, 2, 4, 8 and 8 times `width` channels. The dense
    layer reads the last stage, so its inputs scale with `width`, too.

    Args:
        input_shape: Tuple `(height, width, channels)`. Each of the five pools
            halves height and width, as long as they are above one pixel.
        classes: Integer. Number of logits.
        weight_decay: Float, at least 0. Coupled weight decay on every
            trainable weight. Defaults to `0.0`.
        width: Integer. Channels of the first stage. Defaults to `64`, the
            paper's.

    Returns:
        A functional `keras.Model` with logits `(batch, classes)`.

    Raises:
        ValueError: If an argument is out of its range.
    """
    return _vgg(
        "vgg11", (1, 1, 2, 2, 2), input_shape, classes, weight_decay, width
    )


def vgg13(
    input_shape: tuple[int | None, ...] = (32, 32, 3),
    classes: int = 10,
    weight_decay: float = 0.0,
    width: int = 64,
) -> keras.Model:
    """Builds VGG13: convolutions 2/2/2/2/2. Arguments as for `vgg11`."""
    return _vgg(
        "vgg13", (2, 2, 2, 2, 2), input_shape, classes, weight_decay, width
    )


def _vgg(name, depths, input_shape, classes, weight_decay, width):
    """Builds stages of convolutions, a max pool after each."""
    check_arguments(input_shape, classes, weight_decay, width)
    x = inputs = keras.Input(input_shape, name="image")
    for stage, depth in enumerate(depths):
        # Small integers of NumPy would overflow.
        channels = MULTIPLES[stage] * int(width)
        for index in range(1, depth + 1):
            conv = f"stage{stage + 1}_conv{index}"
            x = conv_bn(x, channels, 3, conv, weight_decay=weight_decay)
        window = [1 if pixels == 1 else 2 for pixels in x.shape[1:3]]
        if max(window) > 1:
            pool = keras.layers.MaxPooling2D(
                window, name=f"stage{stage + 1}_pool"
            )
            x = pool(x)
    outputs = classifier(x, classes, weight_decay)
    return keras.Model(inputs, outputs, name=name)
