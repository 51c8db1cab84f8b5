"""Finds the `fit` in which a callback acts, in the frames of its callers.

Keras gives a callback its model and `params`, but not the other callbacks and
the arguments of `fit`. These are local variables of the calling methods.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import keras

_KERAS = os.path.dirname(keras.__file__) + os.sep


def calling_list() -> keras.callbacks.CallbackList | None:
    """Returns the `CallbackList` that calls a callback, `None` if none does.

    Call this from a method of the callback, such as `set_model`.
    """
    for _, caller, _ in calling_methods():
        if isinstance(caller, keras.callbacks.CallbackList):
            return caller
    return None


def fit_argument(name: str) -> Any:
    """Returns the value of an argument of the running `Model.fit`.

    Call this from a callback: `Callback.params` has only values that `fit`
    derives from some of its arguments. Returns `None` outside of `fit`, and for
    a name that is no argument.
    """
    for function, caller, variables in calling_methods():
        is_fit = function == "fit" and isinstance(caller, keras.Model)
        if is_fit and name in variables:
            return variables[name]
    return None


def running_fits() -> list[tuple[keras.Model, keras.callbacks.CallbackList]]:
    """Returns `(model, CallbackList)` of each `fit` that is running.

    The innermost `fit` comes first: a callback may call `fit` itself. A `fit`
    that has not made its `CallbackList` yet is left out.
    """
    found = []
    for function, caller, variables in calling_methods():
        callbacks = variables.get("callbacks")
        is_fit = function == "fit" and isinstance(caller, keras.Model)
        if is_fit and isinstance(callbacks, keras.callbacks.CallbackList):
            found.append((caller, callbacks))
    return found


def epoch_iterator() -> tuple[keras.Model, Any] | None:
    """Returns the model of the running `fit`, and the iterator over its data.

    `None` outside of `fit`.
    """
    for function, caller, variables in calling_methods():
        iterator = variables.get("epoch_iterator")
        is_fit = function == "fit" and isinstance(caller, keras.Model)
        if is_fit and iterator is not None:
            return caller, iterator
    return None


def calling_methods() -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Yields `(name, self, local variables)` of the calling methods of Keras.

    The innermost method comes first; `self` is `None` for a function.
    """
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        # Reading a frame's variables keeps them alive until the frame ends, so
        # the frames of the user's code are skipped.
        if code.co_filename.startswith(_KERAS):
            variables = frame.f_locals
            yield code.co_name, variables.get("self"), variables
        frame = frame.f_back
