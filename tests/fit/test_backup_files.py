"""Backups are there as a whole or not at all, and harm nothing else."""

import errno
import fcntl
import os
import pathlib
import resource
import signal
import time

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_prunetrain.fit.backup_files import BackupFolder

STATE = {"weights": [np.arange(300.0)], "place": (1, None), "loss": 0.5}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def folder(path, keep=2):
    return BackupFolder(path, keep)


@pytest.mark.parametrize(
    "value",
    [
        {"text": "ä", "none": None, "nan": float("inf"), "flag": True},
        [1, 2.5, ("tuple", ["list"])],
        {0: "an integer", (1, "b"): "a tuple", True: "a boolean"},
        {"__array__": 1, "__tuple__": [2]},
        {"deep": {3: {4: (5,)}}},
    ],
)
def test_data_come_back_as_they_were(value, tmp_path):
    folder(tmp_path).write((0, 0), {"value": value})
    _, state = folder(tmp_path).read()
    assert repr(state["value"]) == repr(value)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3).T,
        np.array(["text", "a longer one"]),
        np.array([b"bytes"]),
        np.array([1, 256], ">i4"),
        np.array(3.5, "float16"),
        np.zeros((0, 4)),
        np.array(["2026-01-01"], "datetime64[D]"),
        np.array([True, False]),
        ops.convert_to_numpy(ops.ones((2, 2), "bfloat16")),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_come_back_as_they_were(array, tmp_path):
    folder(tmp_path).write((0, 0), {"value": array})
    _, state = folder(tmp_path).read()
    assert state["value"].dtype == array.dtype
    np.testing.assert_array_equal(state["value"], array)


def test_tensors_come_back_as_arrays(tmp_path):
    folder(tmp_path).write((0, 0), {"value": tf.constant([1.0, 2.0])})
    _, state = folder(tmp_path).read()
    np.testing.assert_array_equal(state["value"], [1.0, 2.0])


@pytest.mark.parametrize(
    "value",
    [
        object(),
        np.array([object()]),
        np.zeros(2, [("a", "f4"), ("b", "i4")]),
    ],
    ids=["object", "objects", "records"],
)
def test_what_is_no_data_is_refused_and_leaves_no_file(value, tmp_path):
    with pytest.raises(TypeError):
        folder(tmp_path).write((0, 0), {"value": value})
    assert not list(tmp_path.iterdir())


def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    state = {"values": np.arange(5.0), "list": list(range(20))}
    folder(tmp_path).write((1, 0), state)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    noticed = 0
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            _, found = folder(tmp_path).read()
        except ValueError:
            noticed += 1
        else:
            assert repr(found) == repr(state)
    assert noticed > len(content) / 2


def test_files_of_others_stay(tmp_path):
    (tmp_path / "notes.new").write_text("mine")
    (tmp_path / "backup.npz").write_text("mine")
    (tmp_path / "backup-00001-0000000.npz").mkdir()
    os.mkfifo(tmp_path / "backup-00009-0000000.npz")
    before = sorted(tmp_path.iterdir())
    backups = folder(tmp_path, keep=1)
    backups.take()
    assert backups.read() is None
    for epoch in (2, 3):
        backups.write((epoch, 0), {"epoch": epoch})
    assert backups.read()[1] == {"epoch": 3}
    backups.delete()
    backups.release()
    assert sorted(tmp_path.iterdir()) == before


def test_links_are_not_followed_by_what_is_written(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for name in ("backup-00001-0000000.npz", "backup-00001-0000000.new"):
        (tmp_path / "a" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "a" / name).symlink_to(precious)
    folder(tmp_path / "a").write((1, 0), {})
    assert folder(tmp_path / "a").read()[1] == {}
    (tmp_path / "a" / "backup.lock").symlink_to(precious)
    with pytest.raises(ValueError, match="cannot write into"):
        folder(tmp_path / "a").take()
    folder(tmp_path / "a").delete()
    assert precious.read_text() == "mine"


def test_an_interrupted_deletion_leaves_the_last_backup(tmp_path, monkeypatch):
    backups = folder(tmp_path)
    for epoch in (1, 2):
        backups.write((epoch, 0), {"epoch": epoch})
    unlink = pathlib.Path.unlink

    def interrupted(path, **kwargs):
        unlink(path, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pathlib.Path, "unlink", interrupted)
        with pytest.raises(KeyboardInterrupt):
            backups.delete()
    assert backups.read()[1] == {"epoch": 2}


def test_a_lock_that_its_owner_deletes_meanwhile_is_no_lock(
    tmp_path, monkeypatch
):
    """Else a third process could take the folder beside this one."""
    flock, lock = fcntl.flock, tmp_path / "backup.lock"
    deleted = []

    def late(descriptor, operation):
        if not deleted:
            lock.unlink()
            deleted.append(lock)
        flock(descriptor, operation)

    backups = folder(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", late)
        backups.take()
    with pytest.raises(ValueError, match="Another process"):
        folder(tmp_path).take()
    backups.release()
    folder(tmp_path).take()


def test_a_process_that_a_dead_one_has_forked_does_not_hold_its_folder(
    tmp_path,
):
    """A worker that reads data may live on, and wait for ever."""
    receiver, sender = os.pipe()
    parent = os.fork()
    if parent == 0:
        folder_of_parent = folder(tmp_path)
        folder_of_parent.take()
        worker = os.fork()
        if worker != 0:
            os.write(sender, f"{worker}\n".encode())
        time.sleep(60)
        os._exit(0)
    worker = int(os.read(receiver, 20))
    try:
        with pytest.raises(ValueError, match="Another process"):
            folder(tmp_path).take()
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        os.kill(worker, 0)  # It lives.
        folder(tmp_path).take()
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(receiver)
        os.close(sender)


def test_a_fork_takes_no_folder_away(tmp_path):
    backups = folder(tmp_path)
    backups.take()
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(ValueError, match="Another process"):
        folder(tmp_path).take()


def test_what_a_killed_process_has_begun_is_no_hindrance(tmp_path):
    backups = BackupFolder(tmp_path, keep=1)
    for name in ("backup-00001-0000000.new", "backup-00000-0000003.new"):
        (tmp_path / name).write_bytes(b"half of it")
    backups.write((1, 0), STATE)
    assert names(tmp_path) == ["backup-00001-0000000.npz"]
    _, state = backups.read()
    np.testing.assert_array_equal(state["weights"][0], STATE["weights"][0])
    assert state["place"] == (1, None)
    assert state["loss"] == 0.5


def test_nothing_is_left_of_a_backup_that_does_not_fit(tmp_path):
    backups = BackupFolder(tmp_path, keep=1)
    backups.write((1, 0), STATE)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            backups.write((2, 0), STATE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["backup-00001-0000000.npz"]


def test_the_last_backups_stay(tmp_path):
    backups = BackupFolder(tmp_path, keep=2)
    for place in ((0, 9), (1, 0), (1, 10)):
        backups.write(place, STATE)
    assert names(tmp_path) == [
        *("backup-00001-0000000.npz", "backup-00001-0000010.npz"),
    ]


def test_damaged_backups_of_a_later_place_do_not_stay_in_the_place_of_whole(
    tmp_path,
):
    """As if `keep` were 3 before, and the last two had been damaged."""
    first = BackupFolder(tmp_path, keep=3)
    for epoch in (1, 2, 3):
        first.write((epoch, 0), STATE)
        first.write_part((epoch, 0), STATE, "worker1")
    for epoch in (2, 3):
        damaged = tmp_path / f"backup-0000{epoch}-0000000.npz"
        damaged.write_bytes(damaged.read_bytes()[:-100])
    backups = BackupFolder(tmp_path, keep=2)
    assert backups.read()[0].name == "backup-00001-0000000.npz"
    backups.write((1, 5), STATE)
    assert names(tmp_path) == [
        "backup-00001-0000000.npz",
        "backup-00001-0000000.worker1.npz",
        "backup-00001-0000005.npz",
    ]


def test_a_file_system_without_locks_is_not_taken_for_another_process(
    tmp_path, monkeypatch
):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ValueError, match="cannot lock .*No locks available"):
        folder(tmp_path).take()


def test_what_a_worker_adds_comes_back_and_goes_with_the_backup(tmp_path):
    first, second = folder(tmp_path, keep=1), folder(tmp_path)
    for epoch in (1, 2, 3):
        second.write_part((epoch, 0), {"epoch": epoch}, "worker1")
        if epoch < 3:  # The first worker died before.
            first.write((epoch, 0), STATE)
    path, state = second.read()
    assert repr(state) == repr(STATE)  # A part is no backup.
    assert second.read_part(path, "worker1") == {"epoch": 2}
    assert names(tmp_path) == [
        "backup-00002-0000000.npz",
        "backup-00002-0000000.worker1.npz",
        "backup-00003-0000000.worker1.npz",
    ]
    first.delete()
    assert not tmp_path.exists()


def test_a_worker_leaves_what_another_is_writing(tmp_path):
    scratches = [
        tmp_path / f"backup-00001-0000000{part}.new"
        for part in ("", ".worker1", ".worker2")
    ]
    for path in scratches:
        path.write_text("half")
    folder(tmp_path).write_part((2, 0), STATE, "worker1")
    assert [path.exists() for path in scratches] == [True, False, True]
    folder(tmp_path).write((2, 0), STATE)
    assert [path.exists() for path in scratches] == [False, False, True]


def test_a_damaged_part_is_told_and_not_taken(tmp_path, caplog):
    folder(tmp_path).write((1, 0), STATE)
    folder(tmp_path).write_part((1, 0), {"epoch": 1}, "worker1")
    path, _ = folder(tmp_path).read()
    flipped = bytearray((tmp_path / f"{path.stem}.worker1.npz").read_bytes())
    flipped[len(flipped) // 2] ^= 16
    (tmp_path / f"{path.stem}.worker1.npz").write_bytes(flipped)
    assert folder(tmp_path).read_part(path, "worker1") is None
    assert "the first worker" in caplog.text
