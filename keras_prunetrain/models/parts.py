"""What all networks here are built from: convolution, BN, classifier."""

import keras

from keras_prunetrain.checks import is_number, is_size


def check_arguments(
    input_shape: tuple[int | None, ...],
    classes: int,
    weight_decay: float,
    width: int,
) -> None:
    """Checks the arguments that all networks here have.

    Raises:
        ValueError: If one of them is out of its range.
    """
    sizes = input_shape if isinstance(input_shape, tuple | list) else ()
    if len(sizes) != 3 or not all(x is None or is_size(x) for x in sizes):
        raise ValueError(
            "`input_shape` must be `(height, width, channels)`, three integers "
            "of at least 1, which fit into 32 bits. Received: "
            f"input_shape={input_shape!r}"
        )
    for name, value in (("classes", classes), ("width", width)):
        if not is_size(value):
            raise ValueError(
                f"`{name}` must be an integer of at least 1, which fits into "
                f"32 bits. Received: {name}={value!r}"
            )
    if not is_number(weight_decay) or weight_decay < 0:
        raise ValueError(
            "`weight_decay` must be a number of at least 0. Received: "
            f"weight_decay={weight_decay!r}"
        )


def conv_bn(
    x: keras.KerasTensor,
    channels: int,
    size: int,
    name: str,
    *,
    stride: int = 1,
    relu: bool = True,
    weight_decay: float = 0.0,
) -> keras.KerasTensor:
    """Applies a convolution without bias, BN and, by default, ReLU.

    Args:
        x: Tensor `(batch, height, width, channels)`.
        channels: Integer. Output channels.
        size: Integer. Height and width of the kernel, in pixels.
        name: String. Name of the convolution; the other two layers append
            `_bn` and `_relu` to it.
        stride: Integer. Defaults to `1`.
        relu: Boolean. Defaults to `True`.
        weight_decay: Float, at least 0. See `l2`.

    Returns:
        Tensor `(batch, height / stride, width / stride, channels)`.
    """
    x = keras.layers.Conv2D(
        channels,
        size,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer=he_normal(),
        kernel_regularizer=l2(weight_decay),
        name=name,
    )(x)
    x = keras.layers.BatchNormalization(
        momentum=0.9,
        epsilon=1e-5,
        gamma_regularizer=l2(weight_decay),
        beta_regularizer=l2(weight_decay),
        name=f"{name}_bn",
    )(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x) if relu else x


def classifier(
    x: keras.KerasTensor, classes: int, weight_decay: float
) -> keras.KerasTensor:
    """Averages over the pixels and maps to logits `(batch, classes)`."""
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.layers.Dense(
        int(classes),  # Keras refuses NumPy's integers.
        kernel_initializer=small_uniform(),
        kernel_regularizer=l2(weight_decay),
        bias_regularizer=l2(weight_decay),
        name="logits",
    )(x)


def he_normal() -> keras.initializers.Initializer:
    """Returns a new fan-out He initializer, as in the authors' code.

    A Keras initializer draws the same values each time it is called, so each
    layer needs one of its own.
    """
    return keras.initializers.VarianceScaling(
        2.0, mode="fan_out", distribution="untruncated_normal"
    )


def small_uniform() -> keras.initializers.Initializer:
    """Returns PyTorch's dense initializer: uniform in +-1/sqrt(inputs)."""
    return keras.initializers.VarianceScaling(
        1 / 3, mode="fan_in", distribution="uniform"
    )


def l2(weight_decay: float) -> keras.regularizers.Regularizer | None:
    """Returns the penalty whose gradient is `weight_decay * weight`.

    This is the papers' weight decay: part of the loss, so that it passes
    through momentum. Keras's `L2` has no factor 1/2, hence the halving.
    """
    if not weight_decay:
        return None
    return keras.regularizers.L2(float(weight_decay) / 2)
