"""The folder of a run, which belongs to one run at a time.

A run goes on with an unfinished one of the same recipe, or replaces the files
of an earlier one, and only those: what lies under one of their names without
having been written by a run is refused, be it a link or somebody else's
`result.json`. Nothing is replaced before the training begins, so a run that is
refused leaves the earlier one as it was.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil

from apps.file_lock import FileLock
from apps.refusal import RefusedError

RECORDS = (
    *("result.json", "metrics.jsonl", "reconfigurations.jsonl"),
    *("channels.npz", "model.keras"),
)
# Written first and removed last: by it the others are known to be a run's.
RECIPE = "recipe.json"
LOGS = "tensorboard"
BACKUPS = "backups"
_OLD_BACKUPS = "backups.old"  # Of a run that is about to be replaced.
_BACKUP = re.compile(r"backup-\d+-\d+\.npz")
# What is in their folder, too: parts of workers, a lock, files half written.
_BESIDE = re.compile(r"backup-\d+-\d+(\.[a-z]+\d+)?\.(npz|new)|backup\.lock")
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
    files += [*_backups(folder / BACKUPS), *_backups(folder / _OLD_BACKUPS)]
    if files and _recipe_in(folder) is None:
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


def _backups(folder):
    """Returns the paths of all backups in a folder; all else is refused."""
    if not _is_there(folder):
        return []
    if folder.is_symlink() or not folder.is_dir():
        raise RefusedError(
            f"{folder} is a link or a file, which no run writes. {_ADVICE}"
        )
    paths = sorted(folder.iterdir())
    for path in paths:
        if not (_BESIDE.fullmatch(path.name) and _is_plain_file(path)):
            raise RefusedError(
                f"{path} was not written by a run of this program. {_ADVICE}"
            )
    return [path for path in paths if _BACKUP.fullmatch(path.name)]


def _recipe_in(folder):
    """Returns the recipe of a run, a dict, or `None` if there is none."""
    try:
        recipe = json.loads((folder / RECIPE).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    is_recipe = isinstance(recipe, dict) and recipe.keys() >= _KEYS_OF_RECIPE
    return recipe if is_recipe else None


def _is_there(path):
    return os.path.lexists(path)


def _is_plain_file(path):
    return path.is_file() and not path.is_symlink()


def _sync(path):
    """Has the system write a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Workdir:
    """The folder of a run while it is going on, locked against a second one.

    A context: whoever enters it has the folder for himself until he leaves it,
    or until his process ends, in whatever way.

    Args:
        folder: Path. Made if it is not there.
        backups: Path of the folder of the run's backups, where that is not in
            `folder`: several workers share one.

    Attributes:
        folder: As given.
        backups: Path of the folder of the run's backups.
        begun: Whether the training has begun.
        resumes: Whether this run goes on with an unfinished one.

    Raises:
        RefusedError: When the context is entered: if the folder cannot be
            written, if another run has it, or if something in it was not
            written by a run.
    """

    def __init__(self, folder, backups=None):
        self.folder = pathlib.Path(folder)
        self.backups = pathlib.Path(backups or self.folder / BACKUPS)
        self.begun = self.resumes = False
        self._lock = FileLock(self.folder / _LOCK, _ADVICE)

    def __enter__(self):
        self._is_new = not _is_there(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            try:
                check(self.folder)
                # Of a process that was killed before its restart began.
                self._bring_backups_back()
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
        if not self.begun:
            self._bring_backups_back()
        self._lock.release()
        if self._is_new and not self.begun:
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def path(self, name):
        """Returns the path of a record."""
        return self.folder / name

    def take_up(self, recipe, restart):
        """Finds out whether there is a run to go on with.

        Args:
            recipe: Dict for `recipe.json`.
            restart: Whether the run begins anew all the same.

        Returns:
            Whether the run of this recipe has finished already.

        Raises:
            RefusedError: If the folder holds another run that has finished, or
                that could go on; or a run that was not finished and has lost
                its backups.
        """
        earlier = _recipe_in(self.folder) or {}
        finished = self.path("result.json").exists()
        unfinished = not finished and bool(_backups(self.backups))
        if restart or not (finished or unfinished):
            if not restart:
                self._check_nothing_is_lost()
            self._set_backups_aside()
            return False
        # Tuples are lists in a file.
        recipe = json.loads(json.dumps(recipe))
        differing = [
            f"{name}={earlier.get(name)!r} instead of {recipe.get(name)!r}"
            for name in {**earlier, **recipe}
            if earlier.get(name) != recipe.get(name)
        ]
        if differing:
            kind = "a finished" if finished else "an unfinished"
            raise RefusedError(
                f"{self.folder} holds {kind} run with {', '.join(differing)}. "
                "Choose another --workdir, or replace that run with --restart."
            )
        self.resumes = unfinished
        return finished

    def _check_nothing_is_lost(self):
        metrics = self.path("metrics.jsonl")
        epochs = (
            len(metrics.read_text().splitlines()) if metrics.exists() else 0
        )
        # Whoever kills a run in its first epochs may leave a row and no backup.
        if epochs > 1:
            raise RefusedError(
                f"{self.folder} holds the records of {epochs} epochs of a run "
                f"that was not finished, and no backup in {self.backups} from "
                "which it could go on. Choose another --workdir, or replace "
                "that run with --restart."
            )

    def _set_backups_aside(self):
        backups = self.folder / BACKUPS
        if _is_there(backups):
            shutil.rmtree(self.folder / _OLD_BACKUPS, ignore_errors=True)
            backups.rename(self.folder / _OLD_BACKUPS)

    def _bring_backups_back(self):
        old = self.folder / _OLD_BACKUPS
        if _is_there(old):
            with contextlib.suppress(OSError):
                old.rename(self.folder / BACKUPS)  # Where none was begun.

    def begin(self, recipe):
        """Replaces the records of an earlier run by the recipe of this one.

        A run that goes on replaces nothing.

        Args:
            recipe: Dict for `recipe.json`.
        """
        check(self.folder)
        if self.resumes:
            self.begun = True
            return
        shutil.rmtree(self.folder / _OLD_BACKUPS, ignore_errors=True)
        for name in RECORDS:
            for file in (name, scratch_name(name)):
                self.path(file).unlink(missing_ok=True)
        for path in _event_files(self.path(LOGS)):
            path.unlink()
        self.write_json(RECIPE, recipe)
        self.begun = True

    def delete_backups(self):
        """Deletes the backups of this run, which has finished."""
        if self.backups.parent != self.folder:  # They are shared.
            return
        # A loss of power must not take both, the backups and the records.
        for path in filter(_is_there, map(self.path, RECORDS)):
            _sync(path)
        _sync(self.folder)
        shutil.rmtree(self.backups, ignore_errors=True)

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
