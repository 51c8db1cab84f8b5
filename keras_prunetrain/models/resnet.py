"""Residual networks for small images (He et al. 2016, section 4.2).

They differ from that paper in one point, as the PruneTrain authors' do: where
the shape changes, the shortcut is a 1x1 convolution with BN.
"""

import keras

from keras_prunetrain.models.parts import check_arguments, classifier, conv_bn


def resnet8(
    input_shape: tuple[int | None, ...] = (32, 32, 3),
    classes: int = 10,
    weight_decay: float = 0.0,
    width: int = 16,
) -> keras.Model:
    """Builds ResNet8, the smallest, for quick starts: basic blocks 1/1/1.

    Args:
        input_shape: Tuple `(height, width, channels)`, in pixels.
        classes: Integer. Number of logits.
        weight_decay: Float, at least 0. Coupled weight decay on every
            trainable weight. Defaults to `0.0`.
        width: Integer. Channels of the first stage; the second has twice, the
            third four times as many. Defaults to `16`, the paper's.

    Returns:
        A functional `keras.Model` with logits `(batch, classes)`.

    Raises:
        ValueError: If an argument is out of its range.
    """
    return _resnet(
        "resnet8", _basic, 1, input_shape, classes, weight_decay, width
    )


def resnet20(
    input_shape: tuple[int | None, ...] = (32, 32, 3),
    classes: int = 10,
    weight_decay: float = 0.0,
    width: int = 16,
) -> keras.Model:
    """Builds ResNet20: basic blocks 3/3/3. Arguments as for `resnet8`."""
    return _resnet(
        "resnet20", _basic, 3, input_shape, classes, weight_decay, width
    )


def resnet32(
    input_shape: tuple[int | None, ...] = (32, 32, 3),
    classes: int = 10,
    weight_decay: float = 0.0,
    width: int = 16,
) -> keras.Model:
    """Builds ResNet32: basic blocks 5/5/5. Arguments as for `resnet8`."""
    return _resnet(
        "resnet32", _basic, 5, input_shape, classes, weight_decay, width
    )


def resnet56(
    input_shape: tuple[int | None, ...] = (32, 32, 3),
    classes: int = 10,
    weight_decay: float = 0.0,
    width: int = 16,
) -> keras.Model:
    """Builds ResNet56: basic blocks 9/9/9. Arguments as for `resnet8`."""
    return _resnet(
        "resnet56", _basic, 9, input_shape, classes, weight_decay, width
    )


def resnet50_cifar(
    input_shape: tuple[int | None, ...] = (32, 32, 3),
    classes: int = 10,
    weight_decay: float = 0.0,
    width: int = 16,
) -> keras.Model:
    """Builds what PruneTrain calls ResNet50 on CIFAR: bottlenecks 8/8/8.

    It is not the ImageNet network: 76 convolutions, widths 16/32/64 with an
    expansion of 4. Arguments as for `resnet8`.
    """
    return _resnet(
        "resnet50_cifar",
        _bottleneck,
        8,
        input_shape,
        classes,
        weight_decay,
        width,
    )


def _resnet(name, block, blocks, input_shape, classes, weight_decay, width):
    """Builds three stages of residual blocks, whose width doubles each time."""
    check_arguments(input_shape, classes, weight_decay, width)
    width = int(width)  # Small integers of NumPy would overflow.
    inputs = keras.Input(input_shape, name="image")
    x = conv_bn(inputs, width, 3, "stem", weight_decay=weight_decay)
    for stage, channels in enumerate((width, 2 * width, 4 * width), start=1):
        for index in range(blocks):
            stride = 2 if stage > 1 and index == 0 else 1
            x = _residual(
                x,
                block,
                channels,
                stride,
                f"stage{stage}_block{index}",
                weight_decay,
            )
    outputs = classifier(x, classes, weight_decay)
    return keras.Model(inputs, outputs, name=name)


def _residual(x, block, width, stride, name, weight_decay):
    """Adds a branch to its shortcut, which is projected where shapes differ."""
    branch = block(x, width, stride, name, weight_decay)
    if branch.shape != x.shape:
        x = conv_bn(
            x,
            branch.shape[-1],
            1,
            f"{name}_shortcut",
            stride=stride,
            relu=False,
            weight_decay=weight_decay,
        )
    x = keras.layers.Add(name=f"{name}_add")([branch, x])
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _basic(x, width, stride, name, weight_decay):
    decay = {"weight_decay": weight_decay}
    x = conv_bn(x, width, 3, f"{name}_conv1", stride=stride, **decay)
    return conv_bn(x, width, 3, f"{name}_conv2", relu=False, **decay)


def _bottleneck(x, width, stride, name, weight_decay):
    decay = {"weight_decay": weight_decay}
    x = conv_bn(x, width, 1, f"{name}_conv1", **decay)
    x = conv_bn(x, width, 3, f"{name}_conv2", stride=stride, **decay)
    return conv_bn(x, 4 * width, 1, f"{name}_conv3", relu=False, **decay)
