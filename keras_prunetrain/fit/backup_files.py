"""Files that hold the state of a training; none is ever half written.

A backup is a zip archive of arrays, as `np.savez` writes it, one of which is a
text: everything that is no array, as JSON. The archive has a checksum of each
part. Reading an archive executes no code.
"""

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import re
from typing import Any

import numpy as np
from keras import ops

_LOG = logging.getLogger("keras_prunetrain")
_TEXT = "state"
_ARRAY, _TUPLE = "__array__", "__tuple__"
_NAME = "backup-{:05d}-{:07d}.npz"  # Epoch, and steps of it.
_PATTERN = re.compile(r"backup-(\d{5,})-(\d{7,})\.npz")
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

    def take(self) -> None:
        """Keeps the folder for this process, until `release` or its end.

        Raises:
            ValueError: If another process has it, or if it cannot be written.
        """
        while self._lock is None:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                lock = os.open(
                    self.path / _LOCK,
                    os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW,
                    0o666,
                )
            except OSError as error:
                raise ValueError(
                    f"BackupAndRestore cannot write into '{self.path}': "
                    f"{error}. Give it a folder that may be written."
                ) from error
            try:
                # The system removes the lock however the process ends.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Else whoever had it has deleted the file meanwhile.
                if os.path.samestat(os.fstat(lock), os.stat(self.path / _LOCK)):
                    self._lock = lock
            except FileNotFoundError:
                pass
            except OSError as error:
                raise ValueError(
                    f"Another process trains with the backups in '{self.path}'."
                    " Wait for it, end it, or give each training a folder of "
                    "its own."
                ) from error
            finally:
                if self._lock is None:
                    os.close(lock)

    def release(self) -> None:
        """Lets go of the folder; does nothing if it was not taken.

        A folder without a backup is deleted, unless something else is in it.
        """
        if self._lock is None:
            return
        with contextlib.suppress(OSError):
            (self.path / _LOCK).unlink()
            self.path.rmdir()  # Fails where something is left.
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
        """
        path = self.path / _NAME.format(*place)
        scratch = path.with_suffix(".new")
        arrays: list[np.ndarray] = []
        text = json.dumps(_without_arrays(state, arrays))
        parts = {f"array{i}": value for i, value in enumerate(arrays)}
        parts[_TEXT] = np.frombuffer(text.encode(), "uint8")
        self.path.mkdir(parents=True, exist_ok=True)
        for left in self.path.glob("*.new"):  # Of a process that was killed.
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
        for old in self._paths()[self._keep :]:
            old.unlink(missing_ok=True)

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

    def delete(self) -> None:
        """Deletes all backups."""
        if not self.path.is_dir():
            return
        for path in self._paths():
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()  # Else `release` does so.

    def _paths(self):
        """Returns the paths of all backups, the last one first."""
        found = {}
        for path in self.path.iterdir() if self.path.is_dir() else ():
            match = _PATTERN.fullmatch(path.name)
            if match:
                found[int(match[1]), int(match[2])] = path
        return [found[place] for place in sorted(found, reverse=True)]


def _read(path):
    # Every part is read, and its checksum compared.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as parts:
        text = parts[_TEXT].tobytes().decode()
        return _with_arrays(json.loads(text), parts)


def _sync(folder):
    """Has the system write a folder's list of files to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _without_arrays(value, arrays):
    """Returns `value` for JSON; its arrays are appended to `arrays`."""
    if isinstance(value, np.ndarray):
        arrays.append(_as_bytes(value))
        place = len(arrays) - 1
        return {_ARRAY: [place, value.dtype.name, list(value.shape)]}
    if isinstance(value, dict):
        return {
            str(key): _without_arrays(x, arrays) for key, x in value.items()
        }
    if isinstance(value, tuple):
        return {_TUPLE: [_without_arrays(x, arrays) for x in value]}
    if isinstance(value, list):
        return [_without_arrays(x, arrays) for x in value]
    return value.item() if isinstance(value, np.generic) else value


def _as_bytes(array):
    """NumPy's format has no bfloat16."""
    return np.ascontiguousarray(array).reshape(-1).view("uint8")


def _with_arrays(value, parts):
    if isinstance(value, list):
        return [_with_arrays(x, parts) for x in value]
    if not isinstance(value, dict):
        return value
    if _ARRAY in value:
        place, dtype, shape = value[_ARRAY]
        return parts[f"array{place}"].view(_dtype(dtype)).reshape(shape)
    if _TUPLE in value:
        return tuple(_with_arrays(x, parts) for x in value[_TUPLE])
    return {key: _with_arrays(x, parts) for key, x in value.items()}


def _dtype(name):
    try:
        return np.dtype(name)
    except TypeError:  # bfloat16 and the float8 types of Keras.
        return ops.convert_to_numpy(ops.zeros((), name)).dtype
