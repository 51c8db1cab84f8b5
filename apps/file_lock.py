"""A lock that the folder of a run has while the run goes on."""

import datetime
import fcntl
import os
import platform

from apps.refusal import RefusedError


class FileLock:
    """A file that one process at a time has locked.

    The system lifts the lock when the process ends, so that what is left of
    one that was killed is in nobody's way. Its text is for people.

    Args:
        path: Path of the file, in a folder that is there.
        advice: String. What to do about a file that no run wrote.
    """

    def __init__(self, path, advice):
        self._path = path
        self._advice = advice
        self._descriptor = None

    def acquire(self):
        """Locks the file.

        Raises:
            RefusedError: If another process has locked it, or if something
                else is in its place.
            OSError: If it cannot be made.
        """
        while self._descriptor is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            descriptor = os.open(self._path, flags, 0o666)
            try:
                self._lock(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            # Else the process that had it has removed the file meanwhile.
            if os.path.lexists(self._path) and os.path.samestat(
                os.fstat(descriptor), os.stat(self._path)
            ):
                self._descriptor = descriptor
            else:
                os.close(descriptor)
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        text = f"Process {os.getpid()} on {platform.node()}, since {now}\n"
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)

    def _lock(self, descriptor):
        text = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        if text and not text.startswith("Process "):
            raise RefusedError(
                f"{self._path} was not written by a run of this program. "
                f"{self._advice}"
            )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RefusedError(
                f"A run is going on in {self._path.parent}: "
                f"{text or 'another process'}. Wait for it, end it, or choose "
                "another --workdir."
            ) from error

    def release(self):
        """Deletes the file, which must be locked."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None
