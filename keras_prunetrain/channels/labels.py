"""The channel numbers along the weights and tensors of a model."""

import dataclasses
from typing import Literal, NamedTuple

import keras
import numpy as np

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.numbers import Channels


class Label(NamedTuple):
    """The channel numbers along one axis of one weight.

    Attributes:
        layer: Key of the layer, see `Numbering.layers`.
        weight: The `keras.Variable`.
        axis: Int, at least 0.
        numbers: Int array, shape `(weight.shape[axis],)`.
        side: `"in"` if the layer reads these channels, `"out"` if it writes
            them.
        is_kernel: Whether the weight's magnitude decides which channels are
            alive: it has an input and an output channel axis, or its layer only
            reads with it.
        name: Name of what the layer computes, for reports: the layer's key;
            with the argument that counts it behind, if the layer computes it
            for itself (`"attention/num_heads"`).
    """

    layer: str
    weight: keras.Variable
    axis: int
    numbers: np.ndarray
    side: Literal["in", "out"]
    is_kernel: bool
    name: str

    @property
    def is_inner(self) -> bool:
        """Whether the layer computes and reads these numbers itself."""
        return self.name != self.layer

    def magnitudes(self) -> np.ndarray:
        """Returns the largest weight magnitude at each index of the axis.

        Float array, shape `(channels,)`.
        """
        weight = keras_internals.values_of(self.weight)
        others = tuple(i for i in range(weight.ndim) if i != self.axis)
        # `np.abs` would make another copy of the weight.
        return np.maximum(weight.max(axis=others), -weight.min(axis=others))


class CallChannels(NamedTuple):
    """The channels that pass through one call.

    Attributes:
        read: List of the `Channels` of each input.
        written: List of the `Channels` of each output.
    """

    read: list[Channels]
    written: list[Channels]


@dataclasses.dataclass(frozen=True)
class Numbering:
    """The channel numbers of a whole model.

    Coupled channels have the same number; numbers run from 0 to `size - 1`.

    Attributes:
        size: Number of different channels.
        layers: Dict from a key to the layer, or other operation. The key is
            the layer's name after the names of the models around the layer:
            `"backbone/conv1"`.
        labels: List of `Label`s, one for each channel axis of each weight.
        inputs: Dict from a layer's key to the list of the `Channels` that its
            first call reads.
        outputs: The same for the `Channels` that its first call writes. Nested
            functional models are in `inputs` only.
        inner: Dict from the key of a layer to what the layer computes and reads
            itself, such as the heads of an attention: a dict from the argument
            that counts it to its numbers.
        calls: Dict from the `Visit.site` of each call, except the calls of
            nested functional models, to its `CallChannels`.
        frozen: Dict from each number that must stay to the reason, a string.
    """

    size: int
    layers: dict[str, keras.Operation]
    labels: list[Label]
    inputs: dict[str, list[Channels]]
    outputs: dict[str, list[Channels]]
    inner: dict[str, dict[str, np.ndarray]]
    calls: dict[tuple[int, ...], CallChannels]
    frozen: dict[int, str]

    def kernels(self, side: str | None = None) -> list[Label]:
        """Returns the labels of the kernels, on both sides or on one.

        Args:
            side: `"in"` for the channels that kernels read, `"out"` for those
                that they write. Defaults to `None`, both.
        """
        return [
            label
            for label in self.labels
            if label.is_kernel and side in (None, label.side)
        ]

    def computed(self) -> dict[str, Label]:
        """Returns what kernels compute: a dict from `Label.name` to a label.

        Of several labels with one name, the first.
        """
        found = {}
        for label in self.kernels("out"):
            found.setdefault(label.name, label)
        return found

    def writers(self) -> list[Label]:
        """Returns the labels of the weights that compute channels.

        These are the kernels, and the tables of embeddings: weights of channels
        that no kernel writes.
        """
        kernels = self.kernels("out")
        by_kernel = np.zeros(self.size, bool)
        for label in kernels:
            by_kernel[label.numbers] = True
        return kernels + [
            label
            for label in self.labels
            if label.side == "out" and not by_kernel[label.numbers].any()
        ]

    def added_by_head(self) -> list[np.ndarray]:
        """Returns the numbers of which two must stay, a list of int arrays.

        They lie along the last axis of a bias that has several axes. On
        TensorFlow, Keras adds a bias of shape `(n, 1)` along the wrong axis of
        a tensor of `n` steps.
        """
        return [
            x.numbers
            for x in self.labels
            if keras_internals.weight_name(x.weight) == "bias"
            and 0 < x.axis == len(x.weight.shape) - 1
        ]

    def inner_numbers(self) -> list[np.ndarray]:
        """Returns the numbers of all that layers compute and read themselves.

        A list of int arrays.
        """
        return [x for kinds in self.inner.values() for x in kinds.values()]

    def keys_within(self, key: str) -> list[str]:
        """Returns the keys of a layer and of all layers nested in it."""
        return [
            other
            for other in self.layers
            if other == key or other.startswith(f"{key}/")
        ]
