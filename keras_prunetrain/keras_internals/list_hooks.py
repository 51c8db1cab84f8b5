"""What acts around the hooks of a `CallbackList`: of all callbacks at once.

A callback hears of an event in its place of the list. What has to act before
the first callback, or behind the last, has no place there.
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
    """Has `around(hook)` called in the place of a hook of a `CallbackList`.

    Args:
        callbacks: A `keras.callbacks.CallbackList`; modified.
        name: Name of the hook, such as `"on_epoch_end"`.
        around: Function of `hook`, which takes no argument and tells all
            callbacks. What was wrapped earlier acts inside of it.
    """
    # Without a reference of the list to itself, which would keep the model
    # alive.
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
