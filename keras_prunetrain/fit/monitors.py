"""Warns of callbacks that monitor a loss with the penalty in it."""

import logging
from collections.abc import Sequence

import keras

_LOG = logging.getLogger("keras_prunetrain")


def warn_of_monitors(
    callback: keras.callbacks.Callback,
    siblings: Sequence[keras.callbacks.Callback],
    is_in_loss: bool,
) -> None:
    """Warns of each of `siblings` that should monitor `val_task_loss`.

    If `val_loss` contains the penalty, which changes with the factor and with
    each reconfiguration, values before and after are not comparable.

    Args:
        callback: The callback that adds `val_task_loss` to the logs.
        siblings: All callbacks of the same `fit`, in their order.
        is_in_loss: Boolean. Whether the penalty of the lasso is in the loss.
    """
    name = type(callback).__name__
    # Another callback may hold `callback` and pass hooks on: see `logs_behind`.
    place = siblings.index(callback) if callback in siblings else 0
    for i, sibling in enumerate(siblings):
        monitored = getattr(sibling, "monitor", None)
        # A checkpoint of every epoch compares nothing.
        if not getattr(sibling, "save_best_only", True):
            continue
        if monitored == "val_loss" and is_in_loss:
            _LOG.warning(
                "%s monitors 'val_loss', which contains the penalty of the "
                "lasso and changes with it. The validation loss without "
                "penalties on weights is 'val_task_loss': pass "
                "%s(monitor='val_task_loss', mode='min', ...) and put it "
                "behind %s in the list of callbacks.",
                type(sibling).__name__,
                type(sibling).__name__,
                name,
            )
        elif monitored == "val_task_loss" and i < place:
            _LOG.warning(
                "%s monitors 'val_task_loss' and stands in front of %s, which "
                "computes it. Put it behind in the list of callbacks.",
                type(sibling).__name__,
                name,
            )
