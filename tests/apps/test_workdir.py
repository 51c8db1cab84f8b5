"""A folder belongs to one run at a time, and what is no run's stays in it."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from apps import workdir
from apps.file_lock import FileLock
from apps.refusal import RefusedError
from apps.workdir import Workdir, check
from tests.apps.programs import files

RECIPE = dict.fromkeys(("method", "dataset", "network", "epochs", "seed"), "x")
LOCK = ".prunetrain.lock"
MOVE = "Move it away, or choose another --workdir."


@pytest.fixture
def folder(tmp_path):
    """The folder of a finished run."""
    folder = tmp_path / "run"
    with Workdir(folder) as run:
        run.begin(RECIPE)
        for name in workdir.RECORDS:
            run.path(name).write_text("old")
        logs = run.path("tensorboard")
        logs.mkdir()
        (logs / "events.out.tfevents.1.host").write_text("old")
        (logs / "density_log.json").write_text("old")
    return folder


def refusal(folder):
    """Returns with what message a run is refused, and that it left no trace."""
    before = files(folder)
    with pytest.raises(RefusedError) as early:
        check(folder)
    with pytest.raises(RefusedError) as caught, Workdir(folder):
        pass
    assert str(early.value) == str(caught.value)
    assert files(folder) == before
    return str(caught.value)


def unfinished(folder):
    """Leaves in a folder what a run that was killed leaves."""
    with Workdir(folder) as run:
        run.take_up(RECIPE, restart=False)
        run.begin(RECIPE)
        run.path("metrics.jsonl").write_text("{}\n")
        (run.backups).mkdir()
        (run.backups / "backup-00001-0000000.npz").write_text("old")
        (run.backups / "backup.lock").write_text("")
    return files(folder)


def test_a_run_goes_on_with_an_unfinished_one_of_the_same_recipe(tmp_path):
    before = unfinished(tmp_path / "run")
    with Workdir(tmp_path / "run") as run:
        assert not run.take_up(RECIPE, restart=False)
        assert run.resumes
        run.begin(RECIPE)
        assert run.begun
    assert files(tmp_path / "run") == before


def test_a_finished_run_of_the_same_recipe_is_known(folder):
    before = files(folder)
    with Workdir(folder) as run:
        assert run.take_up(RECIPE, restart=False)
    assert files(folder) == before


def test_a_run_of_another_recipe_is_not_replaced_unasked(folder, tmp_path):
    unfinished(tmp_path / "killed")
    for place, kind in (
        (folder, "a finished"),
        (tmp_path / "killed", "an unf"),
    ):
        before = files(place)
        with (
            Workdir(place) as run,
            pytest.raises(
                RefusedError,
                match=f"holds {kind}.*seed='x' instead of 2.*--res",
            ),
        ):
            run.take_up(RECIPE | {"seed": 2}, restart=False)
        assert files(place) == before


@pytest.mark.parametrize(
    ("rows", "is_replaced"), [(0, True), (1, True), (2, False)]
)
def test_a_run_that_has_lost_its_backups_is_not_replaced_unasked(
    rows, is_replaced, tmp_path
):
    place = tmp_path / "run"
    unfinished(place)
    shutil.rmtree(place / "backups")
    # A kill before the first backup may leave a row.
    (place / "metrics.jsonl").write_text("{}\n" * rows)
    before = files(place)
    message = "records of 2 epochs.* not finished, and no backup in .*--restart"
    refused = pytest.raises(RefusedError, match=message)
    with Workdir(place) as run:
        with contextlib.nullcontext() if is_replaced else refused:
            assert not run.take_up(RECIPE, restart=False)
            assert not run.resumes
        assert not run.take_up(RECIPE, restart=True)
    assert files(place) == before


def test_a_restarted_run_keeps_the_earlier_one_until_it_begins(tmp_path):
    place = tmp_path / "run"
    before = unfinished(place)
    with Workdir(place) as run:
        assert not run.take_up(RECIPE, restart=True)
        assert not run.resumes
        assert not run.backups.exists()  # Nothing to go on with.
    assert files(place) == before
    with Workdir(place) as run:
        run.take_up(RECIPE | {"seed": 2}, restart=True)
        run.begin(RECIPE | {"seed": 2})
    assert set(files(place)) == {"recipe.json"}


def test_a_restart_that_was_killed_before_it_began_has_lost_nothing(tmp_path):
    before = unfinished(tmp_path)
    code = (
        "import os, sys; from apps.workdir import Workdir\n"
        "with Workdir(sys.argv[1]) as run:\n"
        "    run.take_up({}, restart=True)\n"
        "    os.kill(os.getpid(), 9)"
    )
    process = subprocess.run([sys.executable, "-c", code, tmp_path])
    assert process.returncode == -9
    assert not (tmp_path / "backups").exists()
    with Workdir(tmp_path) as run:
        assert not run.take_up(RECIPE, restart=False)
        assert run.resumes
    assert files(tmp_path) == before


def test_workers_share_the_backups(tmp_path):
    backups = tmp_path / "backups"
    backups.mkdir()
    (backups / "backup-00001-0000000.npz").write_text("of the first")
    with Workdir(tmp_path / "worker1", backups) as run:
        run.begin(RECIPE)
    with Workdir(tmp_path / "worker1", backups) as run:
        run.take_up(RECIPE, restart=False)
        assert run.resumes
        assert run.backups == backups
    assert backups.exists()


def test_what_workers_add_to_backups_is_a_runs(tmp_path):
    unfinished(tmp_path)
    for name in ("0000000.worker1.npz", "0000007.worker12.new"):
        (tmp_path / "backups" / f"backup-00001-{name}").write_text("part")
    before = files(tmp_path)
    with Workdir(tmp_path) as run:
        assert not run.take_up(RECIPE, restart=False)
        assert run.resumes
    assert files(tmp_path) == before
    (tmp_path / "backups" / "backup-00001-0000000.npz").unlink()
    with Workdir(tmp_path) as run:  # A part alone is no backup.
        assert not run.take_up(RECIPE, restart=False)
        assert not run.resumes


def test_what_is_no_backup_is_not_replaced(tmp_path):
    unfinished(tmp_path)
    (tmp_path / "backups" / "mine.npz").write_text("mine")
    assert refusal(tmp_path) == (
        f"{tmp_path}/backups/mine.npz was not written by a run of this "
        f"program. {MOVE}"
    )


def test_a_run_replaces_the_records_of_another_when_it_begins(folder):
    (folder / "notes.txt").write_text("mine")
    (folder / "channels.new.npz").write_text("of a run that was killed")
    before = files(folder)
    with Workdir(folder) as run:
        assert files(folder).keys() - before.keys() == {LOCK}
        run.begin(RECIPE | {"seed": 2})
        assert set(files(folder)) == {LOCK, "notes.txt", "recipe.json"}
    assert set(files(folder)) == {"notes.txt", "recipe.json"}
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe == RECIPE | {"seed": 2}


def test_a_run_that_does_not_begin_leaves_the_other_as_it_was(folder):
    before = files(folder)
    with pytest.raises(ZeroDivisionError), Workdir(folder):
        _ = 1 / 0
    assert files(folder) == before


def test_a_run_that_does_not_begin_leaves_no_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), Workdir(tmp_path / "new"):
        _ = 1 / 0
    assert not (tmp_path / "new").exists()
    with Workdir(tmp_path):  # It was there before.
        pass
    assert tmp_path.exists()


@pytest.mark.parametrize(
    "name",
    [*workdir.RECORDS, "channels.new.npz", "tensorboard/events.out.tfevents.1"],
)
def test_records_without_a_recipe_are_somebody_elses(name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    assert refusal(tmp_path) == (
        f"{path} was not written by a run of this program: there is no "
        f"recipe.json of a run beside it. {MOVE}"
    )


@pytest.mark.parametrize(
    "recipe", ["", "{", "[]", "{}", '{"flour": 500}', "[" * 100_000]
)
def test_another_kind_of_recipe_is_somebody_elses(recipe, tmp_path):
    (tmp_path / "recipe.json").write_text(recipe)
    assert "was not written by a run of this program" in refusal(tmp_path)


@pytest.mark.parametrize(
    "name", [*workdir.RECORDS, "recipe.json", "recipe.new.json", LOCK]
)
def test_no_record_is_written_through_a_link(name, folder, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(precious)
    message = refusal_of_link(folder)
    assert message == (
        f"{folder / name} is a link or a folder, which no run writes. {MOVE}"
    )
    assert precious.read_text() == "mine"


def refusal_of_link(folder):
    with pytest.raises(RefusedError) as caught:
        check(folder)
    with pytest.raises(RefusedError), Workdir(folder):
        pass
    return str(caught.value)


def test_a_link_to_nowhere_is_not_followed_either(folder, tmp_path):
    (folder / "result.json").unlink()
    (folder / "result.json").symlink_to(tmp_path / "nowhere")
    assert "is a link or a folder" in refusal_of_link(folder)
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_under_the_name_of_a_record_is_refused(folder):
    (folder / "model.keras").unlink()
    (folder / "model.keras").mkdir()
    assert refusal(folder).startswith(
        f"{folder / 'model.keras'} is a link or a folder"
    )


@pytest.mark.parametrize("kind", ["link", "file"])
def test_logs_that_are_no_folder_are_refused(kind, folder, tmp_path):
    logs = folder / "tensorboard"
    logs.rename(tmp_path / "elsewhere")
    if kind == "link":
        logs.symlink_to(tmp_path / "elsewhere")
    else:
        logs.write_text("mine")
    assert refusal(folder) == (
        f"{logs} is a link or a file, which no run writes. {MOVE}"
    )
    assert len(files(tmp_path / "elsewhere")) == 2


@pytest.mark.parametrize(
    "name", ["notes.txt", "plugins/profile", "events.out.tfevents.2/x"]
)
def test_logs_with_other_things_in_them_are_refused(name, folder):
    path = folder / "tensorboard" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    first = folder / "tensorboard" / name.partition("/")[0]
    assert refusal(folder) == (
        f"{first} was not written by a run of this program. {MOVE}"
    )


def test_a_link_among_the_logs_is_refused(folder, tmp_path):
    (folder / "tensorboard" / "events.out.tfevents.2").symlink_to(tmp_path)
    assert "was not written by a run" in refusal(folder)


def test_another_name_for_the_same_file_is_left_alone(folder, tmp_path):
    os.link(folder / "result.json", tmp_path / "kept.json")
    with Workdir(folder) as run:
        run.begin(RECIPE)
        run.write_json("result.json", {"new": 1})
    assert (tmp_path / "kept.json").read_text() == "old"


def test_a_linked_folder_may_hold_runs(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    with Workdir(tmp_path / "link") as run:
        run.begin(RECIPE)
    assert set(files(folder)) == {"recipe.json"}


def test_a_second_run_is_refused_while_the_first_goes_on(folder):
    with Workdir(folder) as first:
        first.begin(RECIPE)
        before = files(folder)
        with pytest.raises(RefusedError) as caught, Workdir(folder):
            pass
        assert re.fullmatch(
            rf"A run is going on in {folder}: Process {os.getpid()} on .*, "
            r"since \d{4}-.*\. Wait for it, end it, or choose another "
            r"--workdir\.",
            str(caught.value),
        )
        assert files(folder) == before
    with Workdir(folder):  # Now it is over.
        pass


def test_workers_have_folders_of_their_own(tmp_path):
    with Workdir(tmp_path) as first, Workdir(tmp_path / "worker1") as second:
        first.begin(RECIPE)
        second.begin(RECIPE)
    assert set(files(tmp_path)) == {"recipe.json", "worker1/recipe.json"}


def test_processes_that_were_killed_leave_no_lock(tmp_path):
    code = (
        "import os, sys; from apps.workdir import Workdir\n"
        "with Workdir(sys.argv[1]): os.kill(os.getpid(), 9)"
    )
    for _ in range(2):
        process = subprocess.run([sys.executable, "-c", code, tmp_path])
        assert process.returncode == -9
        assert (tmp_path / LOCK).read_text().startswith("Process ")
    with Workdir(tmp_path):
        pass
    assert not (tmp_path / LOCK).exists()


def test_a_lock_that_somebody_else_wrote_is_left_alone(tmp_path):
    (tmp_path / LOCK).write_text("mine")
    with pytest.raises(RefusedError) as caught, Workdir(tmp_path):
        pass
    assert str(caught.value) == (
        f"{tmp_path / LOCK} was not written by a run of this program. {MOVE}"
    )
    assert (tmp_path / LOCK).read_text() == "mine"


def test_a_lock_that_is_removed_meanwhile_is_made_anew(tmp_path, monkeypatch):
    # The process that has the lock removes it between our two steps.
    path = tmp_path / LOCK
    lock, removed = FileLock(path, ""), []

    def flock(descriptor, operation):
        if not removed:
            removed.append(path.unlink())
        return lock_file(descriptor, operation)

    lock_file = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", flock)
    lock.acquire()
    with pytest.raises(RefusedError):
        FileLock(path, "").acquire()
    lock.release()
    assert not path.exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RefusedError) as caught,
        Workdir(tmp_path / "file" / "x"),
    ):
        pass
    assert str(caught.value) == (
        "The folder of the run cannot be used: [Errno 20] Not a directory: "
        f"'{tmp_path}/file/x'. Choose another --workdir."
    )


def test_a_line_is_whole_or_not_there(folder):
    with Workdir(folder) as run:
        run.path("metrics.jsonl").write_text("first\n")
        with pytest.raises(UnicodeEncodeError):
            run.append("metrics.jsonl", "half \ud800\n")
        assert run.path("metrics.jsonl").read_text() == "first\n"
        run.append("metrics.jsonl", "second\n")
    text = (folder / "metrics.jsonl").read_text()
    assert text == "first\nsecond\n"


def test_a_record_is_whole_or_not_there(folder):
    with Workdir(folder) as run:
        with pytest.raises(TypeError):
            run.write_json("result.json", {"what": object()})
        assert (folder / "result.json").read_text() == "old"
        run.write_json("result.json", {"a": 1})
    assert (folder / "result.json").read_text() == '{\n  "a": 1\n}\n'


def test_records_are_on_the_disk_before_the_backups_go(folder, monkeypatch):
    """Else a loss of power could take both."""
    synced = []

    def fsync(descriptor):
        assert (folder / "backups").exists()
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    (folder / "backups").mkdir()
    (folder / "reconfigurations.jsonl").unlink()  # Not every run has all.
    monkeypatch.setattr(os, "fsync", fsync)
    with Workdir(folder) as run:
        run.delete_backups()
    assert not (folder / "backups").exists()
    assert [os.path.basename(path) for path in synced] == [
        *("result.json", "metrics.jsonl", "channels.npz", "model.keras"),
        folder.name,
    ]
