"""Files that hold the state of a training; none is ever half written.

A backup is a zip archive of arrays, as `np.savez` writes it, one of which is a
text: everything that is no array, as JSON. The archive has a checksum of each
part. Reading an archive executes no code.
"""

import contextlib
import fcntl
import logging
import os
import pathlib
import re
import weakref
from typing import Any

import numpy as np

from keras_prunetrain.fit.backup_data import ARRAY_NAME, decoded, encoded

_LOG = logging.getLogger("keras_prunetrain")
_TEXT = "state"
_NAME = "backup-{:05d}-{:07d}.npz"  # Epoch, and steps of it.
_PATTERN = re.compile(r"backup-(\d{5,})-(\d{7,})\.npz")
_PART = re.compile(r"backup-(\d{5,})-(\d{7,})\.[a-z]+\d+\.npz")
_UNFINISHED = r"backup-\d{{5,}}-\d{{7,}}{}\.new"
_LOCK = "backup.lock"


class BackupFolder:
    """The backups of one training, in a folder that no other may use.

    Args:
        path: Path of a local folder.
        keep: Integer of at least 1. The number of backups that stay.

    Attributes:
        path: As given.
    """

    def __init__(self, path: str | os.PathLike, keep: int):
        self.path = pathlib.Path(path)
        self._keep = keep
        self._lock = None
        # A process that this one forks has the lock too. As a worker that reads
        # data, it may survive this one, and the folder would stay taken.
        close = weakref.WeakMethod(self._close)
        os.register_at_fork(after_in_child=lambda: (close() or bool)())

    def take(self) -> None:
        """Keeps the folder for this process, until `release` or its end.

        Raises:
            ValueError: If another process has it, or if it cannot be written.
        """
        # Whoever had the folder may have deleted the file while it was opened.
        while self._lock is None:
            lock = self._open_lock()
            if _is_there(lock, self.path / _LOCK):
                self._lock = lock
            else:
                os.close(lock)

    def _open_lock(self):
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            lock = os.open(self.path / _LOCK, flags, 0o666)
        except OSError as error:
            raise ValueError(
                f"BackupAndRestore cannot write into '{self.path}': {error}. "
                "Give it a folder that may be written."
            ) from error
        try:
            # The system lifts it when the process ends, in whatever way.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise ValueError(
                f"Another process trains with the backups in '{self.path}'. "
                "Wait for it, end it, or give each training a folder of its "
                "own."
            ) from error
        except OSError as error:
            os.close(lock)
            raise ValueError(
                f"BackupAndRestore cannot lock '{self.path}' against other "
                f"processes: {error}. Give it a folder on another disk."
            ) from error
        return lock

    def release(self) -> None:
        """Lets go of the folder; does nothing if it was not taken.

        A folder without a backup is deleted, unless something else is in it.
        """
        if self._lock is None:
            return
        with contextlib.suppress(OSError):
            (self.path / _LOCK).unlink()
            self.path.rmdir()  # Fails where something is left.
        self._close()

    def _close(self):
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write(self, place: tuple[int, int], state: dict[str, Any]) -> None:
        """Writes a backup, and deletes those that need not stay.

        The file appears only once it is complete.

        Args:
            place: The epoch to go on with, and how many steps of it are done.
            state: Nested dicts, lists and tuples of numbers, strings, arrays.

        Raises:
            OSError: If the file cannot be written.
            TypeError: If `state` holds something else.
        """
        self._write(self.path / _NAME.format(*place), state)
        paths = self._paths()
        # Those of a later place were damaged: the training went on from before.
        this = [_place_of(path) for path in paths].index(place)
        old = paths[:this] + paths[this + self._keep :]
        for path in (*old, *self._parts(_place_of(x) for x in old)):
            path.unlink(missing_ok=True)

    def write_part(
        self, place: tuple[int, int], state: dict[str, Any], worker: str
    ) -> None:
        """Writes what a worker adds to a backup; the arguments of `write`.

        Args:
            place: As for `write`.
            state: As for `write`.
            worker: Name of the worker: lower case letters and a number.

        Raises:
            OSError: As `write`.
            TypeError: As `write`.
        """
        path = self.path / _NAME.format(*place)
        self._write(path.with_suffix(f".{worker}.npz"), state, f"\\.{worker}")

    def _write(self, path, state, part=""):
        scratch = path.with_suffix(".new")
        arrays: list[np.ndarray] = []
        text = encoded(state, arrays)
        parts = {ARRAY_NAME.format(i): x for i, x in enumerate(arrays)}
        parts[_TEXT] = np.frombuffer(text.encode(), "uint8")
        self.path.mkdir(parents=True, exist_ok=True)
        for left in self.path.iterdir():  # Of a process that was killed.
            if re.fullmatch(_UNFINISHED.format(part), left.name):
                left.unlink()
        try:
            with scratch.open("xb") as file:
                np.savez(file, **parts)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
        _sync(self.path)

    def read(self) -> tuple[pathlib.Path, dict[str, Any]] | None:
        """Returns the path and the state of the last backup that is whole.

        `None` if there is no backup.

        Raises:
            ValueError: If there are some, and none can be read.
        """
        paths = self._paths()
        for path in paths:
            try:
                return path, _read(path)
            # A damaged archive makes zipfile and NumPy raise errors of many
            # classes.
            except Exception as error:
                _LOG.warning(
                    "The backup '%s' is damaged, and the one before it is "
                    "taken: %s",
                    path,
                    error,
                )
        if paths:
            raise ValueError(
                f"No backup in '{self.path}' can be read. Delete the folder to "
                "begin the training anew."
            )
        return None

    def read_part(self, path: pathlib.Path, worker: str) -> Any:
        """Returns what a worker has added to the backup `path`.

        `None` if it has added nothing, or if its file is damaged.
        """
        part = path.with_suffix(f".{worker}.npz")
        try:
            return _read(part)
        except Exception as error:
            _LOG.warning(
                "'%s' cannot be read, and %s goes on with the statistics and "
                "the random generators of the first worker: %s",
                part,
                worker,
                error,
            )
            return None

    def delete(self) -> None:
        """Deletes all backups.

        Raises:
            OSError: If a file cannot be deleted.
        """
        if not self.path.is_dir():
            return
        # The last one at last: if that is interrupted, the training is done.
        for path in (*self._parts(), *reversed(self._paths())):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()  # Else `release` does so.

    def _paths(self):
        """Returns the paths of all backups, the last one first."""
        found = {}
        for path in self.path.iterdir() if self.path.is_dir() else ():
            # A folder or a pipe is no backup.
            if _PATTERN.fullmatch(path.name) and path.is_file():
                found[_place_of(path)] = path
        return [found[place] for place in sorted(found, reverse=True)]

    def _parts(self, places=None):
        """Returns the paths of what workers have added, at all `places`."""
        places = places and set(places)
        return [
            path
            for path in self.path.iterdir()
            if _PART.fullmatch(path.name)
            and (places is None or _place_of(path) in places)
        ]


def _place_of(path):
    match = _PATTERN.fullmatch(path.name) or _PART.fullmatch(path.name)
    return int(match[1]), int(match[2])


def _read(path):
    # Every part is read, and its checksum compared.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as parts:
        return decoded(parts[_TEXT].tobytes().decode(), parts)


def _is_there(descriptor, path):
    """Whether an open file still has the name `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _sync(folder):
    """Has the system write a folder's list of files to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
