"""Notices that a `fit` ends with an exception, which Keras tells no callback.

Keras calls `on_train_end` after the last epoch only: not after Ctrl-C, nor if a
callback, the data, the loss, a layer or the validation raises. A callback that
has changed the model would leave it so.

The user's code runs in the hooks of the `CallbackList` and in the loops over
batches, inside of `epoch_iterator.catch_stop_iteration()`: both are guarded.
For the few lines of `fit` in between (the first look at validation data, the
reset of a metric) there are finalizers of two objects that `fit` alone holds.
They act when the exception's traceback goes, and with it the locals of `fit`.
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
    """Has `leave()` called if a hook of a `CallbackList` raises.

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
    """Has `leave()` called if the running `fit` or `evaluate` breaks off.

    To be called from `on_train_begin` and `on_test_begin`.

    Args:
        leave: As of `guard_hooks`.
    """
    for function, caller, variables in calling_methods():
        iterator = variables.get("epoch_iterator")
        if isinstance(caller, keras.Model) and iterator is not None:
            is_fit = function == "fit"
            break
    else:
        return  # No `fit`, but a loop of the user's own.
    # For a `CallbackList` that the user has made and goes on holding. Here the
    # finalizer may come late: an iterator left in its middle holds itself.
    # The iterator of the validation goes when all epochs are done, before
    # `on_train_end`: too early.
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
