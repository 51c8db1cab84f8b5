"""Does a step of the running `fit` again, with other batches.

`fit` looks up `Model.train_function`, which no public method sets, at every
step, and passes it the iterator over the batches of the epoch.
"""

import weakref
from collections.abc import Callable

import keras

from keras_prunetrain.keras_internals.callers import epoch_iterator
from keras_prunetrain.keras_internals.trainer import renew_steps


class RetriedStep:
    """Catches a lack of memory in the next step of the running `fit`.

    If the step runs out of memory, `recover()` is called, the step is
    traced anew, and this step and the rest of the epoch read a new pass over
    the data. A second lack of memory in that epoch is an error as ever.

    Make this object in a hook of a callback.

    Args:
        model: The model that `fit` trains.
        recover: Function. The step may have changed any variable before
            TensorFlow raised its `ResourceExhaustedError`.
    """

    def __init__(self, model: keras.Model, recover: Callable[[], None]):
        found = epoch_iterator()
        self._model = weakref.ref(model)
        self._recover = recover
        self._iterator = found and weakref.ref(found[1])
        self._step = model.train_function
        self._batches = None
        if found is not None:
            model.train_function = self._try

    def _try(self, batches):
        import tensorflow as tf

        self.end()
        try:
            return self._step(batches)
        except tf.errors.ResourceExhaustedError:
            pass  # Within `except`, the traceback keeps tensors in memory.
        model, iterator = self._model(), self._iterator()
        self._recover()
        renew_steps(model)
        self._step = model.train_function
        self._batches = iter(iterator._get_iterator())
        model.train_function = self._go_on
        return self._go_on(batches)

    def _go_on(self, batches):
        del batches  # Of the pass that is given up.
        return self._step(self._batches)

    def end(self) -> None:
        """Lets `fit` call the step itself again, at the end of the epoch."""
        model = self._model()
        if model.train_function in (self._try, self._go_on):
            model.train_function = self._step
