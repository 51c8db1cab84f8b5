"""A variable of the smaller model and the variable that it was cut from."""

from typing import NamedTuple

import keras
import numpy as np

from keras_prunetrain import keras_internals

# From an axis of a variable to the positions that stay, sorted ints.
Keep = dict[int, np.ndarray]


class Cut(NamedTuple):
    """A variable of the smaller model and where its value comes from.

    Attributes:
        old: The variable of the model.
        new: Its counterpart in the smaller model.
        keep: Dict from an axis of `old` to the positions that stay.
    """

    old: keras.Variable
    new: keras.Variable
    keep: Keep

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that `old` has at the positions that stay, a tuple."""
        shape = list(self.old.shape)
        for axis, positions in self.keep.items():
            shape[axis] = len(positions)
        return tuple(shape)


def sliced(
    variable: keras.Variable | np.ndarray, keep: Keep
) -> keras.Variable | np.ndarray:
    """Returns the value of `variable` at the positions `keep`, per axis."""
    if not keep:
        return variable
    value = keras_internals.values_of(variable)
    for axis, positions in keep.items():
        value = np.take(value, positions, axis)
    return value
