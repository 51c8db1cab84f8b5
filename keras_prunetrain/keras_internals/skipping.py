"""The first steps of an epoch, left out because they were done before."""

import functools
import weakref
from collections.abc import Callable

import keras
from keras import tree

from keras_prunetrain.keras_internals.callers import calling_methods


def skip_steps(count: int, done: Callable[[], None]) -> None:
    """Lets the next epoch of the running `fit` begin behind `count` steps.

    To be called from a hook of a callback. The data of these steps are read and
    dropped. Only the object that iterates over an epoch, a local variable of
    `fit`, knows where in its data it is.

    Args:
        count: Integer, at least 1.
        done: Function to call when they are skipped. The metrics of the model,
            which Keras may make in the first step only, have their variables.
    """
    for function, caller, variables in calling_methods():
        iterator = variables.get("epoch_iterator")
        is_fit = function == "fit" and isinstance(caller, keras.Model)
        if is_fit and iterator is not None:
            vars(iterator)["_enumerate_iterator"] = functools.partial(
                _behind, weakref.ref(iterator), caller, count, done
            )
            return


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
