"""A backup is there as a whole, or not at all."""

import resource

import numpy as np
import pytest

from keras_prunetrain.fit.backup_files import BackupFolder

STATE = {"weights": [np.arange(300.0)], "place": (1, None), "loss": 0.5}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_process_has_begun_is_no_hindrance(tmp_path):
    folder = BackupFolder(tmp_path, keep=1)
    for name in ("backup-00001-0000000.new", "backup-00000-0000003.new"):
        (tmp_path / name).write_bytes(b"half of it")
    folder.write((1, 0), STATE)
    assert names(tmp_path) == ["backup-00001-0000000.npz"]
    _, state = folder.read()
    np.testing.assert_array_equal(state["weights"][0], STATE["weights"][0])
    assert state["place"] == (1, None)
    assert state["loss"] == 0.5


def test_nothing_is_left_of_a_backup_that_does_not_fit(tmp_path):
    folder = BackupFolder(tmp_path, keep=1)
    folder.write((1, 0), STATE)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            folder.write((2, 0), STATE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["backup-00001-0000000.npz"]


def test_the_last_backups_stay(tmp_path):
    folder = BackupFolder(tmp_path, keep=2)
    for place in ((0, 9), (1, 0), (1, 10)):
        folder.write(place, STATE)
    assert names(tmp_path) == [
        *("backup-00001-0000000.npz", "backup-00001-0000010.npz"),
    ]
