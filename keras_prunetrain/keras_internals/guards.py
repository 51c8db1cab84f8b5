"""Lets a callback clean up when a `fit` ends with an exception.

Keras calls `on_train_end` only after the last epoch. After Ctrl-C, or if a
callback, the data, the loss, a layer or the validation raises, Keras calls no
hook, and a callback's changes of the model would remain.

The user's code runs in the hooks of the `CallbackList` and in the loops over
batches, inside of `epoch_iterator.catch_stop_iteration()`: both are guarded.
The few lines of `fit` in between (the first look at validation data, the reset
of a metric) are covered by finalizers of two objects that only `fit` holds. The
finalizers run when the traceback, and with it the locals of `fit`, is freed.
"""

import contextlib
import functools
import weakref
from collections.abc import Callable

import keras

from keras_prunetrain.keras_internals.callers import calling_methods
from keras_prunetrain.keras_internals.list_hooks import wrap_hook


def guard_hooks(
    callbacks: keras.callbacks.CallbackList, leave: Callable[[], None]
) -> None:
    """Makes a `CallbackList` call `leave()` if one of its hooks raises.

    Args:
        callbacks: A `keras.callbacks.CallbackList`; modified.
        leave: Function that can be called any number of times.
    """
    for name in dir(callbacks):
        if name.startswith("on_"):
            wrap_hook(callbacks, name, functools.partial(_guarded, leave))
    weakref.finalize(callbacks, _leave_outside, leave).atexit = False


def _guarded(leave, hook):
    try:
        hook()
    except BaseException:
        leave()
        raise


def guard_loop(leave: Callable[[], None]) -> None:
    """Makes the running `fit` or `evaluate` call `leave()` if it raises.

    Call this from `on_train_begin` and `on_test_begin`.

    Args:
        leave: As for `guard_hooks`.
    """
    for function, caller, variables in calling_methods():
        iterator = variables.get("epoch_iterator")
        if isinstance(caller, keras.Model) and iterator is not None:
            is_fit = function == "fit"
            break
    else:
        return  # The user's own training loop calls the callback.
    # This finalizer serves where the user has made the `CallbackList` and still
    # holds it. The finalizer may run late: an iterator that was left in
    # mid-epoch refers to itself. The iterator of the validation gets no
    # finalizer: Keras frees it after the last epoch, before `on_train_end`.
    if is_fit:
        weakref.finalize(iterator, _leave_outside, leave).atexit = False
    vars(iterator)["catch_stop_iteration"] = functools.partial(
        _guarded_loop, weakref.ref(iterator), leave
    )


@contextlib.contextmanager
def _guarded_loop(iterator, leave):
    iterator = iterator()
    try:
        with type(iterator).catch_stop_iteration(iterator):
            yield
    except BaseException:
        leave()
        raise


def _leave_outside(leave):
    """Calls `leave` outside of a function that TensorFlow may be tracing."""
    if keras.backend.backend() != "tensorflow":
        return leave()
    import tensorflow as tf

    with tf.init_scope():
        return leave()
