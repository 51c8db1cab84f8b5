"""Wraps the hooks of a `CallbackList`, which call all callbacks.

Keras calls the callbacks in the order of the list. A wrapper can act before the
first callback and after the last one.
"""

import functools
import weakref
from collections.abc import Callable

import keras


def wrap_hook(
    callbacks: keras.callbacks.CallbackList,
    name: str,
    around: Callable[[Callable[[], None]], None],
) -> None:
    """Replaces a hook of a `CallbackList` by the call `around(hook)`.

    Args:
        callbacks: A `keras.callbacks.CallbackList`; modified.
        name: Name of the hook, such as `"on_epoch_end"`.
        around: Function of `hook`; the call `hook()` calls all callbacks,
            inside of the wrappers that were added earlier.
    """
    # A strong reference of the list to itself would keep the model alive.
    vars(callbacks)[name] = functools.partial(
        _wrapped,
        weakref.ref(callbacks),
        name,
        vars(callbacks).get(name),
        around,
    )


def _wrapped(callbacks, name, inner, around, *args, **kwargs):
    if inner is None:
        inner = functools.partial(getattr(type(callbacks()), name), callbacks())
    around(functools.partial(inner, *args, **kwargs))
