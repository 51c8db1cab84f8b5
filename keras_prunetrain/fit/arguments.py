"""Checks of what the caller hands to `PruneTrainCallback`."""

import numbers

import keras

from keras_prunetrain.batching import DynamicBatch
from keras_prunetrain.channels.liveness import check_limits
from keras_prunetrain.fit.record import ReconfiguringCallback


def check_arguments(penalty_ratio, interval, finetune_epochs, batch):
    """Raises a `ValueError` if one of them is out of its range."""
    if not _is_number(penalty_ratio) or not 0.0 < penalty_ratio < 1.0:
        raise ValueError(
            "`penalty_ratio` is the lasso's share of the loss, a fraction "
            f"between 0 and 1. Received: penalty_ratio={penalty_ratio}"
        )
    if not _is_count(interval) or interval < 1:
        raise ValueError(
            "`interval` must be a number of epochs, an integer of at least 1. "
            f"Received: interval={interval}"
        )
    if not _is_count(finetune_epochs) or finetune_epochs < 0:
        raise ValueError(
            "`finetune_epochs` must be an integer, at least 0. "
            f"Received: finetune_epochs={finetune_epochs}"
        )
    if not isinstance(batch, DynamicBatch | None):
        raise ValueError(
            "`batch` must be a `DynamicBatch`; a fixed batch size belongs "
            f"into `fit` or the data set. Received: batch={batch!r}"
        )


def reconfigure_arguments(threshold, reconfigure):
    """Returns a copy of the dict `reconfigure`, empty if it is `None`.

    Raises:
        ValueError: If `threshold`, or anything in `reconfigure`, is nothing
            that `reconfigure` takes.
    """
    if not isinstance(reconfigure, dict | None):
        raise ValueError(
            "`reconfigure` must be a dict of arguments. "
            f"Received: reconfigure={reconfigure!r}"
        )
    arguments = dict(reconfigure or {})
    limits = arguments.keys() & {"channel_multiple", "min_channels"}
    unknown = arguments.keys() - limits - {"skip", "fold"}
    if unknown:
        raise ValueError(
            "`reconfigure` takes 'channel_multiple', 'min_channels', 'skip' "
            f"and 'fold'. Received: {', '.join(sorted(map(repr, unknown)))}"
        )
    check_limits(threshold, **{k: arguments[k] for k in limits})
    return arguments


def check_siblings(callback, siblings):
    """Raises a `ValueError` if one of `siblings` cannot work beside it.

    Args:
        callback: The callback that makes the model smaller.
        siblings: All callbacks of the same `fit`.
    """
    for sibling in siblings:
        reconfigures = isinstance(sibling, ReconfiguringCallback)
        if reconfigures and sibling is not callback:
            raise ValueError(
                f"There are two callbacks that make the model smaller among "
                "those of one `fit`, and a kernel has one lasso. Pass one of "
                f"them. Received: {type(callback).__name__}, "
                f"{type(sibling).__name__}"
            )
        if (
            isinstance(sibling, keras.callbacks.EarlyStopping)
            and sibling.restore_best_weights
        ):
            raise ValueError(
                "EarlyStopping(restore_best_weights=True) remembers "
                "weights by their shapes and cannot bring them back once "
                "the model has shrunk. Let `ModelCheckpoint('best.keras', "
                "save_best_only=True)` keep the best model, in its own "
                "shape, and load it with `keras.saving.load_model`; "
                "EarlyStopping without restoring works."
            )


def _is_number(value):
    return isinstance(value, numbers.Real)


def _is_count(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
