"""Skips the epochs and steps that were done before a training resumes.

The epoch iterator, a local variable of `fit`, reads the data and knows the
current position in them.
"""

import functools
import weakref
from collections.abc import Callable

import keras
from keras import tree

from keras_prunetrain.keras_internals.callers import epoch_iterator


class Passes:
    """Counts the passes over the data that the running `fit` begins.

    The order of a `tf.data.Dataset` that shuffles or draws anew in each pass
    depends on how many iterators were made before. Keras makes one or two
    iterators for an epoch. Make this object in a hook of a callback.

    Args:
        validated: The model whose validation data are meant, in a hook that is
            called as validation begins; `None` for the training data.

    Attributes:
        begun: Integer, the number of passes begun so far.
    """

    def __init__(self, validated: keras.Model | None = None):
        self.begun = 0
        if validated is None:
            iterator = (epoch_iterator() or (None, None))[1]
        else:
            # `fit` keeps it from one validation to the next.
            iterator = getattr(validated, "_eval_epoch_iterator", None)
        self._iterator = None
        if iterator is not None:
            self._iterator = weakref.ref(iterator)
            vars(iterator)["_get_iterator"] = self._get_iterator

    def _get_iterator(self):
        self.begun += 1
        iterator = self._iterator()
        return type(iterator)._get_iterator(iterator)

    def begin(self, count: int, reads: bool = False) -> None:
        """Brings the data into their state after `count` passes.

        Args:
            count: Integer.
            reads: Whether a pass begins only when its first batch is read, as
                for a data set that a function makes anew in each pass.
        """
        # With a fixed number of steps, one iterator serves many epochs.
        iterator = self._iterator and self._iterator()
        if iterator is not None and not iterator.steps_per_epoch:
            for _ in range(count):
                batches = iter(iterator._get_iterator())
                if reads:
                    next(batches)


def skip_steps(count: int, done: Callable[[], None]) -> None:
    """Lets the next epoch of the running `fit` begin after `count` steps.

    Call this from a hook of a callback. The data of the skipped steps are read
    and dropped.

    Args:
        count: Integer, at least 1.
        done: Function to call after the skipped steps. By then the metrics,
            which Keras may make only in the first step, have their variables.
    """
    found = epoch_iterator()
    if found is not None:
        model, iterator = found
        vars(iterator)["_enumerate_iterator"] = functools.partial(
            _behind, weakref.ref(iterator), model, count, done
        )


def _behind(iterator, model, count, done):
    """Calls `done()` and yields the steps of an epoch after the first `count`.

    Before, the batches of the first `count` steps are read and dropped.
    """
    iterator = iterator()
    del vars(iterator)["_enumerate_iterator"]  # For this epoch only.
    skipped = False
    for begin, end, batches in iterator._enumerate_iterator():
        if end < count:
            for _ in range(begin, end + 1):
                batch = next(batches)
            if begin == 0:
                _build_metrics(model, batch)
            continue
        if not skipped:
            done()
            skipped = True
        yield begin, end, batches
    if not skipped:  # The epoch has no step after the first `count`.
        done()


def _build_metrics(model, batch):
    """Makes the variables of the compiled metrics, as the first step does.

    `compile` only stores the metrics; a private method makes their variables
    from the shapes of a batch.
    """
    with model.distribute_strategy.scope():
        model._symbolic_build(data_batch=tree.map_structure(_of_one, batch))


def _of_one(value):
    """Returns the part of a value that the first replica gets."""
    import tensorflow as tf

    if isinstance(value, tf.distribute.DistributedValues):
        return value.values[0]
    return value
