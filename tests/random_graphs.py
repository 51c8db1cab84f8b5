"""Random functional models, of everything that can stand in a CNN."""

import keras
import numpy as np
from keras import layers, ops

SIZE = 6
BLOCK = "block"  # How the names of convolutions inside a residual branch begin.


class Grower:
    """Grows a graph from random pieces; the seed decides them all."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.tensors = []
        self.models = []  # Nested ones: to be called again.
        self.blocks = 0
        self.flatten = layers.Flatten()

    def model(self, pieces):
        image = keras.Input((SIZE, SIZE, 2))
        self.tensors = [self.convolution(image), self.convolution(image)]
        kinds = [getattr(self, name) for name in _PIECES]
        for _ in range(pieces):
            x = self.tensors[self.rng.integers(len(self.tensors))]
            kind = kinds[self.rng.integers(len(kinds))]
            self.tensors.append(kind(x))
        # All loose ends, so that no piece is left out.
        ends = [self.flat(x) for x in self.tensors[2:]]
        outputs = [layers.Dense(3)(layers.Concatenate()(ends))]
        if self.rng.random() < 0.3:
            outputs.append(layers.Dense(2)(ends[-1]))
        return keras.Model(image, outputs)

    def channels(self):
        return int(self.rng.integers(2, 7))

    def like(self, x):
        """Another tensor of the shape of `x`, often of a branch of it."""
        same = [t for t in self.tensors if t.shape == x.shape and t is not x]
        if same and self.rng.random() < 0.6:
            return same[self.rng.integers(len(same))]
        return layers.Conv2D(x.shape[-1], 3, padding="same")(x)

    def flat(self, x):
        if self.rng.random() < 0.2 and x.shape[1] * x.shape[2] <= 9:
            return self.flatten(x)
        kinds = (
            layers.GlobalAveragePooling2D(),
            layers.GlobalMaxPooling2D(),
            lambda x: ops.mean(x, axis=(1, 2)),
        )
        return kinds[self.rng.integers(len(kinds))](x)

    def convolution(self, x):
        size = int(self.rng.choice([1, 3]))
        activation = self.rng.choice(["linear", "relu", "tanh"])
        return layers.Conv2D(
            self.channels(),
            size,
            padding="same",
            use_bias=bool(self.rng.random() < 0.7),
            activation=str(activation),
        )(x)

    def batch_norm(self, x):
        return layers.ReLU()(layers.BatchNormalization()(x))

    def depthwise(self, x):
        multiplier = int(self.rng.integers(1, 3))
        return layers.DepthwiseConv2D(
            3, padding="same", depth_multiplier=multiplier
        )(x)

    def separable(self, x):
        return layers.SeparableConv2D(
            self.channels(), 3, padding="same", depth_multiplier=2
        )(x)

    def grouped(self, x):
        possible = [g for g in (2, 3, x.shape[-1]) if x.shape[-1] % g == 0]
        groups = int(self.rng.choice(possible))
        filters = groups * int(self.rng.integers(1, 3))
        return layers.Conv2D(filters, 3, padding="same", groups=groups)(x)

    def transposed(self, x):
        return layers.Conv2DTranspose(self.channels(), 2, padding="same")(x)

    def dense(self, x):
        return layers.Dense(self.channels(), activation="sigmoid")(x)

    def pooling(self, x):
        if x.shape[1] < 4:
            return layers.ZeroPadding2D(1)(x)
        kinds = layers.MaxPooling2D, layers.AveragePooling2D
        return kinds[self.rng.integers(2)](2)(x)

    def joined(self, x):
        kinds = (
            lambda a, b: layers.Add()([a, b]),
            lambda a, b: layers.Multiply()([a, b]),
            lambda a, b: layers.Average()([a, b]),
            lambda a, b: layers.Subtract()([a, b]),
            lambda a, b: a + b,
            lambda a, b: 0.5 * a - b,
            ops.maximum,
        )
        return kinds[self.rng.integers(len(kinds))](x, self.like(x))

    def residual(self, x):
        self.blocks += 1
        y = layers.Conv2D(
            self.channels(),
            3,
            padding="same",
            use_bias=False,
            name=f"{BLOCK}{self.blocks}",
        )(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        y = layers.Conv2D(x.shape[-1], 1, use_bias=False)(y)
        return layers.Add()([x, layers.BatchNormalization()(y)])

    def excited(self, x):
        s = layers.GlobalAveragePooling2D(keepdims=True)(x)
        s = layers.Conv2D(3, 1, activation="relu")(s)
        s = layers.Conv2D(x.shape[-1], 1, activation="sigmoid")(s)
        return layers.Multiply()([x, s])

    def concatenated(self, x):
        same = [t for t in self.tensors if t.shape[:-1] == x.shape[:-1]]
        y = same[self.rng.integers(len(same))]
        return layers.Concatenate()([x, y, self.convolution(x)])

    def split(self, x):
        if x.shape[-1] < 2:
            return self.convolution(x)
        at = int(self.rng.integers(1, x.shape[-1]))
        left, right = ops.split(x, [at], axis=-1)
        return ops.concatenate([self.convolution(left), right], axis=-1)

    def sliced(self, x):
        start = int(self.rng.integers(0, max(x.shape[-1] - 1, 1)))
        step = int(self.rng.choice([1, 1, 2]))
        return x[:, :, :, start::step] * 2.0

    def taken(self, x):
        count = int(self.rng.integers(2, 6))
        indices = self.rng.integers(0, x.shape[-1], count).tolist()
        return ops.take(x, indices, axis=-1)

    def shuffled(self, x):
        h, w, c = x.shape[1:]
        if c % 2:
            return ops.flip(x, axis=-1)
        x = layers.Reshape((h, w, 2, c // 2))(x)
        x = layers.Permute((1, 2, 4, 3))(x)
        return layers.Reshape((h, w, c))(x)

    def shared(self, x):
        layer = layers.Conv2D(x.shape[-1], 3, padding="same")
        return ops.tanh(layer(ops.relu(layer(x))))

    def nested(self, x):
        known = [m for m in self.models if m.input_shape == x.shape]
        if known and self.rng.random() < 0.5:
            return known[0](x)
        inside = keras.Input(x.shape[1:])
        y = layers.LeakyReLU()(inside)
        if self.rng.random() < 0.7:
            y = layers.Conv2D(x.shape[-1], 3, padding="same")(y)
            y = layers.Add()([inside, layers.BatchNormalization()(y)])
        if self.models and self.models[-1].input_shape == y.shape:
            y = self.models[-1](y)
        inner = keras.Model(inside, y)
        self.models.append(inner)
        y = inner(x)
        return inner(y) if self.rng.random() < 0.3 else y

    def wrapped(self, x):
        channels = self.channels()
        kinds = (
            layers.TimeDistributed(layers.Conv1D(channels, 3, padding="same")),
            layers.TimeDistributed(layers.BatchNormalization()),
            layers.SpectralNormalization(layers.Conv2D(channels, 1)),
            layers.EinsumDense("abcd,de->abce", (*x.shape[1:3], channels)),
        )
        return kinds[self.rng.integers(len(kinds))](x)

    def normalized(self, x):
        kinds = (
            layers.LayerNormalization(),
            layers.GroupNormalization(-1),
            layers.GroupNormalization(1),
            layers.PReLU(shared_axes=[1, 2]),
            layers.UnitNormalization(),
        )
        return kinds[self.rng.integers(len(kinds))](x)

    def unknown(self, x):
        return layers.Lambda(lambda x: x[..., ::-1])(x)


_PIECES = [
    *("convolution", "batch_norm", "depthwise", "separable", "grouped"),
    *("transposed", "dense", "pooling", "joined", "residual", "excited"),
    *("concatenated", "split", "sliced", "taken", "shuffled", "shared"),
    *("normalized", "unknown", "convolution", "batch_norm", "joined"),
    *("wrapped", "nested", "nested"),
]


def random_model(seed):
    """Returns a model of 3 to 10 random pieces."""
    grower = Grower(seed)
    return grower.model(int(grower.rng.integers(3, 11)))
