"""The backups of one `fit`, to which each of its workers adds a part.

The first worker writes the state of the training. Every other worker writes a
file beside it with what is its own: the statistics of its examples, the metrics
of an epoch that is not over, and its random generators.
"""

import logging
import os
from collections.abc import Callable
from typing import Any

import keras

from keras_prunetrain.distribution import check_agreement, worker_name
from keras_prunetrain.fit.backup_files import BackupFolder
from keras_prunetrain.fit.training_state import (
    add_worker_state,
    check_same,
    has_finite_weights,
    worker_state,
)

_LOG = logging.getLogger("keras_prunetrain")
_FORMAT = 1


class Backups:
    """The backups that the workers of a `fit` write and read together.

    Args:
        path: Path of a local folder that all workers see.
        keep: Integer of at least 1. The number of backups that stay.
    """

    def __init__(self, path: str | os.PathLike, keep: int):
        self._folder = BackupFolder(path, keep)
        self._model = None
        self._worker = None
        self._said_diverged = False

    def begin(self, model: keras.Model) -> None:
        """Keeps the folder for the `fit` of `model`, until `release`.

        Raises:
            ValueError: As `BackupFolder.take`.
        """
        self._model, self._worker = model, worker_name(model)
        self._said_diverged = False
        if self._worker is None:
            self._folder.take()

    def read(self, description: dict[str, Any]) -> dict[str, Any] | None:
        """Returns the state of the last backup, `None` if there is none.

        Args:
            description: The `description_of` this training.

        Raises:
            ValueError: If no backup is whole, or if it is one of another
                training.
        """
        found = self._folder.read()
        if found is None:
            return None
        path, state = found
        # Of another format, the description may mean something else.
        formats = {"format": state.get("format")}, {"format": _FORMAT}
        check_same(path, *formats)
        check_same(path, state["description"], description)
        if self._worker is not None:
            part = self._folder.read_part(path, self._worker)
            if part is not None:
                add_worker_state(state, part)
        return state

    def write(
        self,
        place: tuple[int, int],
        state: Callable[[], dict[str, Any]],
        together: bool,
    ) -> None:
        """Writes a backup; a warning says why if that is not possible.

        A state with weights that are not finite is no place to go on from, and
        does not replace a backup.

        Args:
            place: The epoch to go on with, and how many steps of it are done.
            state: Function that returns the state of the training.
            together: Whether all workers write a backup of this place. The
                first worker's file then appears after those of the others.
        """
        if self._worker is not None:
            self._try(
                place,
                lambda: self._folder.write_part(
                    place, worker_state(self._model, place[1]), self._worker
                ),
            )
        if together:
            check_agreement(self._model, f"backup={place}")
        if self._worker is None:
            self._try(
                place,
                lambda: self._folder.write(
                    place, {"format": _FORMAT, **state()}
                ),
            )

    def _try(self, place, write):
        if not has_finite_weights(self._model):
            self._say_diverged(place)
            return
        try:
            write()
        # TypeError: a callback's state has something that is no data.
        except (OSError, TypeError, ValueError) as error:
            _LOG.warning(
                "No backup after step %d of epoch %d: %s. The training goes "
                "on, and the last backup stays in '%s'.",
                place[1],
                place[0] + 1,
                error,
                self._folder.path,
            )

    def _say_diverged(self, place):
        if not self._said_diverged:
            self._said_diverged = True
            _LOG.warning(
                "No backup after step %d of epoch %d, nor after others like "
                "it: a weight of '%s' is not finite. The backups in '%s' stay.",
                place[1],
                place[0] + 1,
                self._model.name,
                self._folder.path,
            )

    def delete(self) -> None:
        """Deletes all backups, once all workers have done the training.

        The backups of a training that has diverged stay, with a warning.
        """
        check_agreement(self._model, "the end of the training")
        if self._worker is not None:
            return
        if not has_finite_weights(self._model):
            _LOG.warning(
                "'%s' has ended with a weight that is not finite. The last "
                "backups before stay in '%s', and the same program goes on "
                "from there. Delete them to begin anew, with a lower learning "
                "rate.",
                self._model.name,
                self._folder.path,
            )
            return
        try:
            self._folder.delete()
        except OSError as error:
            _LOG.warning(
                "The backups in '%s' cannot be deleted, and the next training "
                "would go on from there. Delete them. %s",
                self._folder.path,
                error,
            )

    def release(self) -> None:
        """Lets go of the folder; does nothing if it is not kept."""
        self._folder.release()
        self._model = None
