"""The folder of a run, which belongs to one run at a time.

A run replaces the files of an earlier one, and only those: what lies under one
of their names without having been written by a run is refused, be it a link or
somebody else's `result.json`. Nothing is replaced before the training begins,
so a run that is refused leaves the earlier one as it was.
"""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import platform

from apps.refusal import RefusedError

RECORDS = (
    *("result.json", "metrics.jsonl", "reconfigurations.jsonl"),
    *("channels.npz", "model.keras"),
)
# Written first and removed last: by it the others are known to be a run's.
RECIPE = "recipe.json"
LOGS = "tensorboard"
_KEYS_OF_RECIPE = {"method", "dataset", "network", "epochs", "seed"}
_EVENT_FILE = "events.out.tfevents."
_RECORDS_OF_LOGS = ("density_log.json", "density_log.new")
_LOCK = ".prunetrain.lock"
_ADVICE = "Move it away, or choose another --workdir."


def check(folder):
    """Makes sure that a run may replace what is in `folder`.

    Raises:
        RefusedError: If something in it was not written by a run.
    """
    folder = pathlib.Path(folder)
    names = (*RECORDS, RECIPE, *map(scratch_name, (*RECORDS, RECIPE)))
    files = [folder / name for name in names if _is_there(folder / name)]
    for path in [*files, folder / _LOCK]:
        if _is_there(path) and not _is_plain_file(path):
            raise RefusedError(
                f"{path} is a link or a folder, which no run writes. {_ADVICE}"
            )
    files += _event_files(folder / LOGS)
    if files and not _has_recipe(folder):
        raise RefusedError(
            f"{files[0]} was not written by a run of this program: there is no "
            f"{RECIPE} of a run beside it. {_ADVICE}"
        )


def scratch_name(name):
    """Returns the name of a record until it is whole."""
    stem, suffix = os.path.splitext(name)
    return f"{stem}.new{suffix}"


def _event_files(logs):
    if not _is_there(logs):
        return []
    if logs.is_symlink() or not logs.is_dir():
        raise RefusedError(
            f"{logs} is a link or a file, which no run writes. {_ADVICE}"
        )
    paths = sorted(logs.iterdir())
    for path in paths:
        known = path.name in _RECORDS_OF_LOGS
        if not (
            (known or path.name.startswith(_EVENT_FILE))
            and _is_plain_file(path)
        ):
            raise RefusedError(
                f"{path} was not written by a run of this program. {_ADVICE}"
            )
    return paths


def _has_recipe(folder):
    try:
        recipe = json.loads((folder / RECIPE).read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(recipe, dict) and recipe.keys() >= _KEYS_OF_RECIPE


def _is_there(path):
    return os.path.lexists(path)


def _is_plain_file(path):
    return path.is_file() and not path.is_symlink()


class Workdir:
    """The folder of a run while it is going on, locked against a second one.

    A context: whoever enters it has the folder for himself until he leaves it,
    or until his process ends, in whatever way.

    Args:
        folder: Path. Made if it is not there.

    Raises:
        RefusedError: When the context is entered: if the folder cannot be
            written, if another run has it, or if something in it was not
            written by a run.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.begun = False
        self._lock = _Lock(self.folder / _LOCK)

    def __enter__(self):
        self._is_new = not _is_there(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            try:
                check(self.folder)
            except BaseException:
                self._leave()
                raise
        except OSError as error:
            raise RefusedError(
                f"The folder of the run cannot be used: {error}. Choose "
                "another --workdir."
            ) from error
        return self

    def __exit__(self, *exception):
        self._leave()

    def _leave(self):
        self._lock.release()
        if self._is_new and not self.begun:
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def path(self, name):
        """Returns the path of a record."""
        return self.folder / name

    def begin(self, recipe):
        """Replaces the records of an earlier run by the recipe of this one.

        Args:
            recipe: Dict for `recipe.json`.
        """
        check(self.folder)
        for name in RECORDS:
            for file in (name, scratch_name(name)):
                self.path(file).unlink(missing_ok=True)
        for path in _event_files(self.path(LOGS)):
            path.unlink()
        self.write_json(RECIPE, recipe)
        self.begun = True

    @contextlib.contextmanager
    def replacing(self, name):
        """Gives the path to write a record to, which then takes its place.

        Others find the old record or the new one, and never a part: if the
        writing fails, the old one stays.
        """
        scratch = self.path(scratch_name(name))
        try:
            yield scratch
            scratch.replace(self.path(name))
        finally:
            scratch.unlink(missing_ok=True)

    def write_text(self, name, text):
        """Writes a record that is a text."""
        with self.replacing(name) as scratch:
            scratch.write_text(text)

    def write_json(self, name, content):
        """Writes a record that is JSON."""
        self.write_text(name, json.dumps(content, indent=2) + "\n")

    def append(self, name, line):
        """Adds a line to a record: the whole line, or nothing of it."""
        path = self.path(name)
        size = path.stat().st_size
        try:
            with path.open("a") as file:
                file.write(line)
        except BaseException:
            with contextlib.suppress(OSError):
                os.truncate(path, size)
            raise


class _Lock:
    """A file that one process at a time has locked.

    The system lifts the lock when the process ends, so that what is left of
    one that was killed is in nobody's way. Its text is for people.
    """

    def __init__(self, path):
        self._path = path
        self._descriptor = None

    def acquire(self):
        while self._descriptor is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            descriptor = os.open(self._path, flags, 0o666)
            try:
                self._lock(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            # Else the process that had it has removed the file meanwhile.
            if _is_there(self._path) and os.path.samestat(
                os.fstat(descriptor), os.stat(self._path)
            ):
                self._descriptor = descriptor
            else:
                os.close(descriptor)
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        text = f"Process {os.getpid()} on {platform.node()}, since {now}\n"
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text.encode())

    def _lock(self, descriptor):
        text = os.read(descriptor, 200).decode(errors="replace").strip()
        if text and not text.startswith("Process "):
            raise RefusedError(
                f"{self._path} was not written by a run of this program. "
                f"{_ADVICE}"
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
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None
