"""Data sets in batches whose size is read anew in each pass."""

from concurrent import futures
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_prunetrain.checks import is_count

if TYPE_CHECKING:
    import tensorflow as tf


def size_variable(size: int) -> "tf.Variable":
    """Returns a variable with a batch size, which each pass reads anew.

    The variable belongs to no strategy, even if it is made in the scope of one:
    a data set could not read a variable that has a copy on each replica.
    """
    import tensorflow as tf

    def on_cpu():
        with tf.init_scope(), tf.device("/CPU:0"):
            return tf.Variable(size, dtype="int64")

    # The scope of a strategy applies to one thread only.
    with futures.ThreadPoolExecutor(1) as executor:
        return executor.submit(on_cpu).result()


def batched(
    examples: "tf.data.Dataset", size: "tf.Variable", steps: int
) -> "tf.data.Dataset":
    """Returns a data set in batches.

    Args:
        examples: An unbatched `tf.data.Dataset`.
        size: A `size_variable`.
        steps: Number of batches that the result claims to have: `fit` asks for
            it once, when it begins.
    """
    import tensorflow as tf

    # The function is traced and reads the variable each time that it runs.
    batches = tf.data.Dataset.range(1).flat_map(lambda _: examples.batch(size))
    return batches.apply(tf.data.experimental.assert_cardinality(steps))


def is_data_set(data: Any) -> bool:
    """Whether `data` is a data set of TensorFlow, distributed or not."""
    import tensorflow as tf

    return isinstance(data, tf.data.Dataset | tf.distribute.DistributedDataset)


def check_examples(examples: Any, size: int) -> None:
    """Raises a `ValueError` unless `examples` can be formed into batches.

    They can if they are an unbatched `tf.data.Dataset` of known size with at
    least `size` elements.
    """
    import tensorflow as tf

    if not isinstance(examples, tf.data.Dataset):
        raise ValueError(
            "A DynamicBatch is called on an unbatched `tf.data.Dataset`; for "
            "arrays there is `batch.arrays(images, labels)`. A `PyDataset` or "
            "a generator forms its batches itself and cannot be enlarged. "
            f"Received: {type(examples).__name__}"
        )
    shapes = [
        spec.shape
        for spec in tf.nest.flatten(examples.element_spec)
        if hasattr(spec, "shape")
    ]
    if all(s.rank and s[:1].as_list() == [None] for s in shapes):
        raise ValueError(
            "The data set is batched already: every element has a first axis "
            "of unknown length. Leave `.batch(...)` out, or undo it with "
            f"`.unbatch()`. Received: {examples.element_spec}"
        )
    count = int(examples.cardinality())
    if count < 0:
        kind = "infinite" if count == -1 else "unknown"
        raise ValueError(
            f"The data set is of {kind} size. Leave `.repeat()` out; after a "
            "`filter` or a generator, tell the number of examples with "
            "`.apply(tf.data.experimental.assert_cardinality(n))`."
        )
    if count < size:
        raise ValueError(
            "A batch is larger than the data set. Choose a smaller `initial`. "
            f"Received: a batch of {size} examples, and {count} in all"
        )


def structure_of(x: Any, y: Any, sample_weight: Any) -> Any:
    """Returns arrays in the structure that `fit` expects of a data set.

    Args:
        x: Array, or a structure of arrays: dicts, lists, tuples.
        y: Array, a structure of arrays, or `None`.
        sample_weight: Array, or `None`.

    Raises:
        ValueError: If an array has no examples, if two have different numbers
            of them, or if there are weights without targets.
    """
    import tensorflow as tf

    if y is None and sample_weight is not None:
        raise ValueError(
            "`sample_weight` without `y` would be taken for the targets. "
            "Pass `y` as well."
        )
    named = {"x": x, "y": y, "sample_weight": sample_weight}
    named = {k: v for k, v in named.items() if k == "x" or v is not None}
    _check_lengths({k: tf.nest.flatten(v) for k, v in named.items()})
    parts = tuple(named.values())
    structure = parts if len(parts) > 1 else x
    # A data set would stack a list to one tensor.
    structure = _lists_as_tuples(structure)
    if y is None and isinstance(structure, tuple):
        structure = (structure,)  # Else the second input would be the target.
    return structure


def _check_lengths(named):
    """Checks the arrays of each argument: all have the same first axis."""
    found = []
    for name, arrays in named.items():
        shapes = [_shape(array) for array in arrays]
        if not shapes or not all(shape and shape[0] for shape in shapes):
            raise ValueError(
                f"`{name}` must be one or more arrays that have a first axis "
                "with the examples, at least one. Received: shapes "
                f"{', '.join(map(str, shapes)) or 'of no array'}"
            )
        found += [(shape[0], name) for shape in shapes]
    if len({length for length, _ in found}) > 1:
        raise ValueError(
            "All arrays must have the same number of examples. Received: "
            f"{', '.join(f'{length} in `{name}`' for length, name in found)}"
        )


def tensors_of(structure: Any) -> Any:
    """Returns a structure of arrays as one of tensors, in the main memory.

    Raises:
        ValueError: If an array cannot be a tensor: one of Python objects, or a
            sparse or ragged one.
    """
    import tensorflow as tf

    try:
        with tf.device("/CPU:0"):
            return tf.nest.map_structure(tf.convert_to_tensor, structure)
    except (ValueError, TypeError) as error:
        raise ValueError(
            "`x`, `y` and `sample_weight` must be arrays of numbers, or of "
            "strings. For others, form an unbatched `tf.data.Dataset` and "
            f"call the DynamicBatch on it. TensorFlow says: {error}"
        ) from error


def positions_in(
    tensors: Any, shuffle: bool, seed: int | None
) -> "tf.data.Dataset":
    """Returns a data set with the positions of all rows of `tensors`.

    Args:
        tensors: A structure of tensors with the same number of rows.
        shuffle: Whether each pass has an order of its own.
        seed: Integer that decides the orders; `None` for random orders.

    Raises:
        ValueError: If `shuffle` is no boolean or `seed` no integer.
    """
    import tensorflow as tf

    if not isinstance(shuffle, bool):
        raise ValueError(
            f"`shuffle` must be True or False. Received: shuffle={shuffle!r}"
        )
    if seed is not None and not is_count(seed):
        raise ValueError(
            "`seed` must be an integer of at least 0, or `None`. Received: "
            f"seed={seed!r}"
        )
    count = int(tf.nest.flatten(tensors)[0].shape[0])
    positions = tf.data.Dataset.range(count)
    return positions.shuffle(count, seed=seed) if shuffle else positions


def gathered(batches: "tf.data.Dataset", tensors: Any) -> "tf.data.Dataset":
    """Returns a data set of the rows at each batch of positions.

    Args:
        batches: A `tf.data.Dataset` of positions, in batches.
        tensors: A structure of tensors.
    """
    import tensorflow as tf

    def rows(positions):
        return tf.nest.map_structure(
            lambda tensor: tf.gather(tensor, positions), tensors
        )

    return batches.map(rows).prefetch(2)


def _shape(array):
    # The shape of a tensor is no tuple.
    return tuple(array.shape) if hasattr(array, "shape") else np.shape(array)


def _lists_as_tuples(structure):
    if isinstance(structure, dict):
        return {k: _lists_as_tuples(v) for k, v in structure.items()}
    if isinstance(structure, list | tuple):
        return tuple(map(_lists_as_tuples, structure))
    return structure
