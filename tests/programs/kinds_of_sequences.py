"""Programs of the kinds that users have: videos, sound, text, tables, tokens.

As in `tests.programs.kinds`.
"""

import keras
from keras import layers, ops

from tests.networks import conv, conv_bn
from tests.programs.kinds import (
    GATES,
    NORMALIZES,
    OTHER_DATA,
    OUTPUT,
    UNKNOWN,
    Program,
    classes,
    labels,
)
from tests.programs.watched import images


def video():
    """Convolutions of each frame, and what has been seen so far."""
    each = layers.TimeDistributed
    frames = keras.Input((4, 8, 8, 3))
    x = each(layers.Conv2D(8, 3, 2, activation="relu"), name="a")(frames)
    x = each(layers.Conv2D(10, 3, activation="relu"), name="b")(x)
    x = each(layers.Flatten())(x)
    x = layers.GRU(8, name="gru")(x)
    x = layers.Dense(12, activation="relu", name="c")(x)
    return Program(
        keras.Model(frames, layers.Dense(3, name="logits")(x)),
        images(32, 4, 8, 8, 3),
        labels(3),
        classes(),
        {"gru": GATES, "logits": OUTPUT},
    )


def next_frames():
    """Images that remember, and a convolution over space and time."""
    x = frames = keras.Input((4, 8, 8, 1))
    x = layers.TimeDistributed(
        layers.Conv2D(10, 3, padding="same", activation="relu"), name="each"
    )(x)
    x = layers.ConvLSTM2D(
        *(5, 3), padding="same", return_sequences=True, name="memory"
    )(x)
    x = layers.BatchNormalization()(x)
    x = layers.Conv3D(8, 3, padding="same", activation="relu", name="a")(x)
    x = layers.Conv3D(
        *(1, 3), padding="same", activation="sigmoid", name="pixels"
    )(x)
    return Program(
        keras.Model(frames, x),
        images(32, 4, 8, 8, 1),
        images(32, 4, 8, 8, 1, seed=1),
        "binary_crossentropy",
        {"memory": GATES, "pixels": OUTPUT},
        flops=0.6,
    )


def audio():
    """A spectrogram that the network makes itself, and residual blocks."""
    sound = keras.Input((128, 1))
    x = layers.STFTSpectrogram(
        frame_length=16, frame_step=8, fft_length=16, name="spectrogram"
    )(sound)
    x = layers.Conv1D(8, 3, padding="same", activation="relu", name="a")(x)
    for name in ("b", "c"):
        y = layers.Conv1D(8, 3, padding="same", name=f"{name}1")(x)
        y = layers.Conv1D(8, 3, padding="same", name=f"{name}2")(
            layers.ReLU()(y)
        )
        x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Flatten()(layers.MaxPooling1D(4)(x))
    x = layers.Dense(16, activation="relu", name="d")(x)
    return Program(
        keras.Model(sound, layers.Dense(3, name="speakers")(x)),
        images(32, 128, 1),
        labels(3),
        classes(),
        {"spectrogram": OTHER_DATA, "speakers": OUTPUT},
    )


def text():
    """A vector for each word, and convolutions over the words."""
    words = keras.Input((16,), dtype="int32")
    x = layers.Embedding(20, 12, name="words")(words)
    x = layers.Dropout(0.3, seed=0)(x)
    x = layers.Conv1D(10, 4, strides=2, activation="relu", name="a")(x)
    x = layers.Conv1D(10, 4, activation="relu", name="b")(x)
    x = layers.Dense(8, activation="relu", name="c")(
        layers.GlobalMaxPooling1D()(x)
    )
    x = layers.Dense(1, activation="sigmoid", name="mood")(x)
    return Program(
        keras.Model(words, x),
        labels(20, 16),
        labels(2, 1),
        "binary_crossentropy",
        {"mood": OUTPUT},
    )


@keras.saving.register_keras_serializable("programs")
class Places(layers.Layer):
    """Adds a learned vector to each place of a sequence."""

    def build(self, shape):
        self.places = self.add_weight(shape=shape[1:], name="places")

    def call(self, x):
        return x + self.places


@keras.saving.register_keras_serializable("programs")
class SequencePooling(layers.Layer):
    """Sums up a sequence, each place weighed by what it says."""

    def build(self, shape):
        self.scores = layers.Dense(1)
        self.scores.build(shape)

    def call(self, x):
        weights = ops.softmax(self.scores(x), axis=1)
        return ops.sum(weights * x, axis=1)


def transformer(x, heads, width, hidden, name):
    """One block: an attention, then two dense layers, both added."""
    y = layers.LayerNormalization()(x)
    y = layers.MultiHeadAttention(heads, width // heads, name=f"{name}_att")(
        y, y
    )
    x = layers.Add()([x, y])
    y = layers.LayerNormalization()(x)
    y = layers.Dense(hidden, activation="gelu", name=f"{name}_up")(y)
    return layers.Add()([x, layers.Dense(width, name=f"{name}_down")(y)])


def compact_transformer():
    """CCT: convolutions make the tokens, and all of them are pooled."""
    image = keras.Input((12, 12, 3))
    x = conv(image, 8, "a", activation="relu")
    x = conv(layers.MaxPooling2D(3, 2, "same")(x), 8, "b", activation="relu")
    x = layers.MaxPooling2D(3, 2, "same")(x)
    x = Places(name="places")(layers.Reshape((9, 8))(x))
    for i in range(2):
        x = transformer(x, 2, 8, 24, f"block{i}")
    x = SequencePooling(name="pool")(layers.LayerNormalization()(x))
    return Program(
        keras.Model(image, layers.Dense(4, name="logits")(x)),
        images(32, 12, 12, 3),
        labels(4),
        classes(),
        dict.fromkeys(
            (
                *("b", "places", "block0_att", "block0_down"),
                *("block1_att", "block1_down", "pool"),
            ),
            UNKNOWN,
        )
        | {"logits": OUTPUT},
    )


def inverted_residual(x, width, name, strides=1):
    """Wide inside, narrow outside, and around it a shortcut."""
    y = conv_bn(x, 2 * x.shape[-1], f"{name}_up", 1, relu=False)
    y = layers.DepthwiseConv2D(
        3, strides, "same", use_bias=False, name=f"{name}_depth"
    )(layers.Activation("silu")(y))
    y = layers.Activation("silu")(layers.BatchNormalization()(y))
    y = conv_bn(y, width, f"{name}_down", 1, relu=False)
    return layers.Add()([x, y]) if y.shape == x.shape else y


def mobile_vit():
    """MobileViT: attention between the patches, convolutions around it."""
    image = keras.Input((16, 16, 3))
    x = conv_bn(image, 8, "stem", strides=2)
    x = inverted_residual(x, 8, "a")
    x = inverted_residual(x, 12, "b", strides=2)
    y = conv(conv(x, 12, "local"), 8, "tokens", 1, activation="silu")
    # (rows, columns) to (places in a patch, patches).
    y = layers.Reshape((2, 2, 2, 2, 8))(y)
    y = layers.Reshape((4, 4, 8))(layers.Permute((2, 4, 1, 3, 5))(y))
    for i in range(2):
        y = transformer(y, 2, 8, 16, f"block{i}")
    y = layers.LayerNormalization()(y)
    y = layers.Reshape((2, 2, 2, 2, 8))(y)
    y = layers.Reshape((4, 4, 8))(layers.Permute((3, 1, 4, 2, 5))(y))
    y = layers.Concatenate()([x, conv(y, 12, "fold", 1, activation="silu")])
    x = conv_bn(y, 12, "fusion")
    x = layers.GlobalAveragePooling2D()(conv(x, 24, "last", 1))
    return Program(
        keras.Model(image, layers.Dense(4, name="logits")(x)),
        images(32, 16, 16, 3),
        labels(4),
        classes(),
        dict.fromkeys(
            (
                *("tokens", "block0_att", "block0_down"),
                *("block1_att", "block1_down"),
            ),
            NORMALIZES,
        )
        | {"logits": OUTPUT},
    )


def wide_and_deep():
    """A table of numbers and categories, by two networks at once."""
    inputs, wide, deep = {}, [], []
    for name in ("age", "income"):
        inputs[name] = keras.Input((1,), name=name)
        wide.append(inputs[name])
        deep.append(inputs[name])
    for name, size in (("job", 6), ("town", 8)):
        inputs[name] = keras.Input((1,), name=name, dtype="int32")
        code = layers.CategoryEncoding(size, "one_hot")(inputs[name])
        wide.append(code)
        vector = layers.Embedding(size, 5, name=f"{name}_vector")(inputs[name])
        deep.append(layers.Flatten()(vector))
    wide = layers.BatchNormalization()(layers.Concatenate()(wide))
    x = layers.Concatenate()(deep)
    for name in ("a", "b"):
        x = layers.Dense(16, use_bias=False, name=name)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Dropout(0.1, seed=0)(x)
    x = layers.Concatenate()([wide, x])
    return Program(
        keras.Model(inputs, layers.Dense(2, name="logits")(x)),
        {
            "age": images(32, 1),
            "income": images(32, 1, seed=1),
            "job": labels(6, 1),
            "town": labels(8, 1),
        },
        labels(2),
        classes(),
        {"logits": OUTPUT},
    )


@keras.saving.register_keras_serializable("programs")
class BagAttention(layers.Layer):
    """Weighs the instances of a bag against each other."""

    def build(self, shapes):
        self.look, self.gate = (layers.Dense(6, a) for a in ("tanh", "sigmoid"))
        self.score = layers.Dense(1)
        for layer in (self.look, self.gate):
            layer.build(shapes[0])
        self.score.build((None, 6))

    def call(self, bag):
        scores = [self.score(self.look(x) * self.gate(x)) for x in bag]
        weights = ops.softmax(ops.stack(scores), axis=0)
        return [weights[i] for i in range(len(bag))]


def instances():
    """Multiple instances: a bag of images has one label for all of them."""
    bag = [keras.Input((8, 8, 1)) for _ in range(3)]
    shared = [
        layers.Flatten(),
        layers.Dense(16, activation="relu", name="a"),
        layers.Dense(12, activation="relu", name="b"),
    ]
    embedded = []
    for x in bag:
        for layer in shared:
            x = layer(x)
        embedded.append(x)
    weights = BagAttention(name="attention")(embedded)
    weighed = [
        layers.multiply([w, x]) for w, x in zip(weights, embedded, strict=True)
    ]
    x = layers.Dense(8, activation="relu", name="c")(
        layers.concatenate(weighed)
    )
    x = layers.Dense(2, activation="softmax", name="classes")(x)
    return Program(
        keras.Model(bag, x),
        [images(32, 8, 8, 1, seed=i) for i in range(3)],
        labels(2),
        "sparse_categorical_crossentropy",
        {"b": UNKNOWN, "attention": UNKNOWN, "classes": OUTPUT},
    )
