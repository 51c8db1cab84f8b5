"""Epochs and steps that are left out because they were done before.

The object that iterates over an epoch, a local variable of `fit`, knows the
data as `fit` reads them, and where in them it is.
"""

import functools
import weakref
from collections.abc import Callable

import keras
from keras import tree

from keras_prunetrain.keras_internals.callers import calling_methods


class Passes:
    """The passes over the data that the running `fit` has begun.

    A `tf.data.Dataset` that shuffles or draws anew in each pass decides on a
    pass when its iterator is made, by how many were made before. Keras makes
    one or two for an epoch. To be made in a hook of a callback.

    Attributes:
        begun: Integer, how many there were so far.
    """

    def __init__(self):
        self.begun = 0
        found = _epoch_iterator()
        self._iterator = None
        if found is not None:
            self._iterator = weakref.ref(found[1])
            vars(found[1])["_get_iterator"] = self._get_iterator

    def _get_iterator(self):
        self.begun += 1
        iterator = self._iterator()
        return type(iterator)._get_iterator(iterator)

    def begin(self, count: int, reads: bool = False) -> None:
        """Lets the data be as behind `count` passes.

        Args:
            count: Integer.
            reads: Whether a pass begins only when its first batch is read, as
                where a function makes the data set of each pass.
        """
        # With a fixed number of steps, one iterator serves many epochs.
        iterator = self._iterator and self._iterator()
        if iterator is not None and not iterator.steps_per_epoch:
            for _ in range(count):
                batches = iter(iterator._get_iterator())
                if reads:
                    next(batches)


def skip_steps(count: int, done: Callable[[], None]) -> None:
    """Lets the next epoch of the running `fit` begin behind `count` steps.

    To be called from a hook of a callback. The data of these steps are read and
    dropped.

    Args:
        count: Integer, at least 1.
        done: Function to call when they are skipped. The metrics of the model,
            which Keras may make in the first step only, have their variables.
    """
    found = _epoch_iterator()
    if found is not None:
        model, iterator = found
        vars(iterator)["_enumerate_iterator"] = functools.partial(
            _behind, weakref.ref(iterator), model, count, done
        )


def _epoch_iterator():
    """Returns the model of the running `fit`, and what iterates for it."""
    for function, caller, variables in calling_methods():
        iterator = variables.get("epoch_iterator")
        is_fit = function == "fit" and isinstance(caller, keras.Model)
        if is_fit and iterator is not None:
            return caller, iterator
    return None


def _behind(iterator, model, count, done):
    """Yields the steps of an epoch behind the first `count`; `done()` before.

    Draws the batches of the others, so that the data are where they were.
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
    if not skipped:  # Nobody knew how many steps there are: it was the last.
        done()


def _build_metrics(model, batch):
    """Makes the variables of the compiled metrics, as the first step does.

    `compile` only notes which metrics there are, and the method that makes them
    from the shapes of a batch is private.
    """
    with model.distribute_strategy.scope():
        model._symbolic_build(data_batch=tree.map_structure(_of_one, batch))


def _of_one(value):
    """Returns the part of a value that the first replica gets."""
    import tensorflow as tf

    if isinstance(value, tf.distribute.DistributedValues):
        return value.values[0]
    return value
