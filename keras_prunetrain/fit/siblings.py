"""Checks of the callbacks beside one that makes the model smaller."""

import logging
from collections.abc import Sequence

import keras
from keras.callbacks import Callback

from keras_prunetrain import keras_internals

_LOG = logging.getLogger("keras_prunetrain")


def check_outer_fits(
    callback: Callback, model: keras.Model, kind: type[Callback]
) -> None:
    """Raises a `ValueError` if an outer `fit` makes the model smaller as well.

    A hook of another callback may have called this `fit`. The check belongs in
    `Callback.set_model`.

    Args:
        callback: The callback that is to make `model` smaller.
        model: The model of the inner `fit`.
        kind: The class of all callbacks that do so.
    """
    for outer, callbacks in keras_internals.running_fits():
        shrinks = any(isinstance(x, kind) for x in callbacks.callbacks)
        if callback in callbacks.callbacks or (outer is model and shrinks):
            raise ValueError(
                f"{type(callback).__name__} is to make '{model.name}' smaller "
                f"inside of a `fit` of '{outer.name}' that makes its model "
                "smaller, and the one would cut the model under the other. "
                "Call the inner `fit` once the outer one has returned, or "
                "train a clone of the model, with a callback of its own."
            )


def check_siblings(
    callback: Callback, siblings: Sequence[Callback], kind: type[Callback]
) -> None:
    """Raises a `ValueError` if one of `siblings` cannot work beside `callback`.

    Args:
        callback: The callback that makes the model smaller.
        siblings: List of all callbacks of its `fit`.
        kind: The class of all callbacks that do so.
    """
    for sibling in siblings:
        if isinstance(sibling, kind) and sibling is not callback:
            raise ValueError(
                "There are two callbacks that make the model smaller among "
                "those of one `fit`, and each would cut the other's channels. "
                f"Pass one of them. Received: {type(callback).__name__}, "
                f"{type(sibling).__name__}"
            )
        _check_restoring(sibling)
        if (
            isinstance(sibling, keras.callbacks.ModelCheckpoint)
            and sibling.save_weights_only
        ):
            _LOG.warning(
                "%s(save_weights_only=True) saves weights without the sizes "
                "of their layers: once the model has shrunk, the files fit "
                "neither the first model nor each other. Save whole models, "
                "with `ModelCheckpoint('best.keras')`, and load them with "
                "`keras.saving.load_model`.",
                type(sibling).__name__,
            )


def _check_restoring(sibling):
    """Raises a `ValueError` for a callback that brings weights back."""
    if isinstance(sibling, keras.callbacks.BackupAndRestore):
        raise ValueError(
            f"Keras's {type(sibling).__name__} saves weights without the sizes "
            "of their layers, and cannot resume a training in which the model "
            "has shrunk. `keras_prunetrain.BackupAndRestore(backup_dir)` can: "
            "put it in the place of Keras's."
        )


def logs_behind(
    callback: Callback, siblings: Sequence[Callback], kind: type
) -> list[Callback]:
    """Returns a list of each log among `siblings`.

    Args:
        callback: The callback that makes the model smaller.
        siblings: List of all callbacks of its `fit`.
        kind: The class of the logs, `DensityLog`.

    Raises:
        ValueError: If one of them stands in front of `callback`, and would log
            an epoch before its reconfiguration.
    """
    logs = [x for x in siblings if isinstance(x, kind)]
    # Another callback may hold `callback` and pass the hooks on to it. It is
    # then not among the siblings, and its order is up to the user.
    place = siblings.index(callback) if callback in siblings else 0
    for log in logs:
        if siblings.index(log) < place:
            name = type(callback).__name__
            raise ValueError(
                f"{kind.__name__} stands in front of the {name} whose figures "
                "it logs. Put it behind in the list of callbacks, or use "
                f"`{name}(log_dir=...)`."
            )
    return logs
