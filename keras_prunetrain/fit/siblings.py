"""Checks of the callbacks beside one that makes the model smaller."""

import keras


def check_siblings(siblings):
    """Raises a `ValueError` if one of them fails once the model has shrunk.

    Args:
        siblings: List of all callbacks of a `fit`.
    """
    for sibling in siblings:
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
