"""Small programs of the kinds that users have: a network, its data, its loss.

Each function makes one `Program`. What trains with a `train_step` of its own
has a file of its own beside this one.
"""

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers, ops

from tests.networks import conv, conv_bn
from tests.programs.watched import images

GATES = "it reads what it computes, in all its gates"
NORMALIZES = "it normalizes across channels"
OTHER_DATA = "it makes other data of its input, not channel by channel"
OUTPUT = "model output"
UNKNOWN = "no rule for this class, see register_rule"


class Program(NamedTuple):
    """What a user would write down to `fit`, and what of it must stay.

    Attributes:
        model: An uncompiled `keras.Model`.
        x: What `fit` reads: an array, or a list or dict of arrays.
        y: The labels; `None` if the model adds its own loss.
        loss: For `compile`.
        held: Dict from each layer that keeps all of its channels to the reason.
        flops: A target that can be met.
    """

    model: keras.Model
    x: Any
    y: Any = None
    loss: Any = None
    held: dict[str, str] = {}  # noqa: RUF012
    flops: float = 0.5


def labels(count, *shape, examples=32):
    """Random integers below `count`."""
    return np.random.default_rng(1).integers(0, count, (examples, *shape))


def classes(logits=True):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=logits)


def classification():
    """From scratch: augmentation, separable convolutions, and shortcuts."""
    image = keras.Input((12, 12, 3))
    x = layers.RandomFlip("horizontal", seed=0)(image)
    x = conv_bn(layers.Rescaling(2.0, -1.0)(x), 8, "stem", strides=2)
    for i, width in enumerate((12, 16)):
        y = x
        for j in range(2):
            y = layers.SeparableConv2D(
                width, 3, padding="same", name=f"block{i}_{j}"
            )(layers.ReLU()(y))
            y = layers.BatchNormalization()(y)
        y = layers.MaxPooling2D(3, 2, "same")(y)
        x = layers.Add()([y, conv(x, width, f"shortcut{i}", 1, strides=2)])
    x = layers.Dropout(0.2, seed=0)(layers.GlobalAveragePooling2D()(x))
    return Program(
        keras.Model(image, layers.Dense(4, name="logits")(x)),
        images(32, 12, 12, 3),
        labels(4),
        classes(),
        {"logits": OUTPUT},
    )


def segmentation():
    """A U-Net: what goes down is read again on the way up."""
    image = keras.Input((8, 8, 3))
    a = conv_bn(image, 8, "down1")
    b = conv_bn(layers.MaxPooling2D()(a), 12, "down2")
    x = conv_bn(layers.MaxPooling2D()(b), 16, "bottom")
    for skip, width, name in ((b, 12, "up2"), (a, 8, "up1")):
        x = layers.Conv2DTranspose(width, 2, 2, name=f"{name}_wide")(x)
        x = conv_bn(layers.Concatenate()([x, skip]), width, name)
    return Program(
        keras.Model(image, conv(x, 3, "classes", 1)),
        images(32, 8, 8, 3),
        labels(3, 8, 8),
        classes(),
        {"classes": OUTPUT},
    )


def detection():
    """A pyramid of features, and heads that all of its levels share."""
    image = keras.Input((16, 16, 3))
    x = conv_bn(image, 8, "stem", strides=2)
    fine = conv_bn(x, 12, "fine", strides=2)
    coarse = conv_bn(fine, 16, "coarse", strides=2)
    top = conv(coarse, 10, "lateral_coarse", 1)
    x = layers.UpSampling2D()(top)
    levels = layers.Add()([x, conv(fine, 10, "lateral_fine", 1)]), top
    outputs = {}
    for name, width in (("boxes", 4), ("objects", 3)):
        head = keras.Sequential(
            [
                keras.Input((None, None, 10)),
                layers.Conv2D(8, 3, padding="same", activation="relu"),
                layers.Conv2D(2 * width, 3, padding="same", name="last"),
            ],
            name=f"{name}_head",
        )
        each = [layers.Reshape((-1, width))(head(level)) for level in levels]
        outputs[name] = layers.Concatenate(axis=1, name=name)(each)
    anchors = 2 * (4 * 4 + 2 * 2)
    return Program(
        keras.Model(image, outputs),
        images(32, 16, 16, 3),
        {"boxes": images(32, anchors, 4), "objects": labels(3, anchors)},
        {"boxes": keras.losses.Huber(), "objects": classes()},
        {"boxes_head/last": OUTPUT, "objects_head/last": OUTPUT},
    )


def keypoints():
    """A backbone, one model within another, and numbers at its end."""
    image = keras.Input((12, 12, 3))
    x = conv_bn(image, 8, "a", strides=2)
    x = layers.DepthwiseConv2D(3, padding="same", name="depth")(x)
    backbone = keras.Model(image, conv_bn(x, 12, "b", 1), name="backbone")
    x = layers.Dropout(0.3, seed=0)(backbone(image * 2.0 - 1.0))
    x = layers.SeparableConv2D(10, 3, 2, activation="relu", name="c")(x)
    x = layers.SeparableConv2D(8, 2, activation="sigmoid", name="places")(x)
    return Program(
        keras.Model(image, x),
        images(32, 12, 12, 3),
        images(32, 1, 1, 8),
        "mse",
        {"places": OUTPUT},
    )


def super_resolution():
    """Images of any size; twice as large in the middle, and at the end."""
    image = keras.Input((None, None, 1))
    x = conv(image, 12, "a", activation="tanh")
    x = ops.depth_to_space(conv(x, 32, "wide"), 2)
    x = conv(layers.ReLU()(x), 4, "sub_pixels")
    return Program(
        keras.Model(image, ops.depth_to_space(x, 2)),
        images(32, 4, 4, 1),
        images(32, 16, 16, 1),
        "mse",
        {"sub_pixels": OUTPUT},
    )


def denoising():
    """An autoencoder of convolutions that reads noise and writes images."""
    clean = images(32, 8, 8, 1)
    model = keras.Sequential([keras.Input((8, 8, 1))])
    for _ in range(2):
        model.add(layers.Conv2D(12, 3, padding="same", activation="relu"))
        model.add(layers.MaxPooling2D(2, padding="same"))
    for i in range(2):
        model.add(
            layers.Conv2DTranspose(
                12, 3, 2, padding="same", activation="relu", name=f"up{i}"
            )
        )
    model.add(
        layers.Conv2D(
            *(1, 3), padding="same", activation="sigmoid", name="image"
        )
    )
    noise = np.random.default_rng(2).normal(0.0, 0.3, clean.shape)
    return Program(
        model,
        np.clip(clean + noise, 0.0, 1.0),
        clean,
        "binary_crossentropy",
        {"image": OUTPUT},
    )


@keras.saving.register_keras_serializable("programs")
class CTCEndpoint(layers.Layer):
    """Adds the loss of the labels, and passes on what was read."""

    def call(self, y_true, logits):
        loss = keras.losses.ctc(y_true, ops.cast(logits, "float32"))
        self.add_loss(ops.cast(ops.mean(loss), self.compute_dtype))
        return logits


def ocr():
    """Reads columns of an image as a sequence; the loss is in the graph."""
    image = keras.Input((16, 8, 1), name="image")
    label = keras.Input((3,), name="label", dtype="int32")
    x = conv(image, 8, "a", activation="relu")
    x = conv(layers.MaxPooling2D()(x), 10, "b", activation="relu")
    x = layers.Reshape((8, 40))(x)
    x = layers.Dense(12, activation="relu", name="columns")(x)
    x = layers.Bidirectional(
        layers.LSTM(6, return_sequences=True), name="reader"
    )(layers.Dropout(0.2, seed=0)(x))
    x = layers.Dense(6, name="characters")(x)
    x = CTCEndpoint(name="ctc")(label, x)
    return Program(
        keras.Model({"image": image, "label": label}, x),
        {"image": images(32, 16, 8, 1), "label": 1 + labels(5, 3)},
        held={"reader": GATES, "characters": UNKNOWN},
    )


def crnn():
    """Convolutions of a spectrogram, two recurrent layers, the loss of CTC."""
    sound = keras.Input((12, 8))
    x = layers.Reshape((12, 8, 1))(sound)
    x = conv_bn(x, 8, "a", strides=(1, 2))
    x = conv_bn(x, 10, "b", strides=(2, 2))
    x = layers.Reshape((6, 20))(x)
    for i in range(2):
        gru = layers.GRU(5, return_sequences=True)
        x = layers.Bidirectional(gru, name=f"gru{i}")(x)
    x = layers.Dense(12, activation="relu", name="mixed")(x)
    return Program(
        keras.Model(sound, layers.Dense(5, name="characters")(x)),
        images(32, 12, 8),
        1 + labels(4, 2),
        keras.losses.CTC(),
        {"gru0": GATES, "gru1": GATES, "characters": OUTPUT},
    )


def time_series():
    """1-D: three convolutions over time, and their mean."""
    x = series = keras.Input((24, 1))
    for name, width in (("a", 8), ("b", 12), ("c", 8)):
        x = layers.Conv1D(width, 3, padding="same", name=name)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling1D()(x)
    x = layers.Dense(2, activation="softmax", name="classes")(x)
    return Program(
        keras.Model(series, x),
        images(32, 24, 1),
        labels(2),
        "sparse_categorical_crossentropy",
        {"classes": OUTPUT},
    )


def volumes():
    """3-D: a scan of a body, and whether it is healthy."""
    x = scan = keras.Input((8, 8, 6, 1))
    for name, width in (("a", 6), ("b", 8)):
        x = layers.Conv3D(width, 3, 2, "same", name=name)(x)
        x = layers.BatchNormalization()(layers.ReLU()(x))
    x = layers.GlobalAveragePooling3D()(x)
    x = layers.Dense(10, activation="relu", name="c")(x)
    x = layers.Dense(1, activation="sigmoid", name="healthy")(x)
    return Program(
        keras.Model(scan, x),
        images(32, 8, 8, 6, 1),
        labels(2, 1),
        "binary_crossentropy",
        {"healthy": OUTPUT},
    )
