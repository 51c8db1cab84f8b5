"""The flags of folders: of data, of the new run, and of finished runs."""

import os

from absl import flags

from apps import command_line, records, workdir
from apps.refusal import RefusedError


def define(values):
    """Defines `--workdir`, the other folders, and `--restart`."""
    for name, text in (
        ("data_dir", "Where the data lies."),
        ("workdir", "Where the run's files go."),
        ("dense", "Folder of a finished dense run, to compare with."),
        (
            "initial_run",
            "Folder of a finished run of the same network, whose weights this "
            "training begins with.",
        ),
    ):
        flags.DEFINE_string(
            *(name, None, text),
            required=name == "workdir",
            flag_values=values,
        )
    for name, check in (
        ("data_dir", _check_data_dir),
        ("workdir", _check_workdir),
        ("dense", _check_finished),
        ("initial_run", _check_finished),
    ):
        flags.register_validator(name, check, flag_values=values)
    flags.DEFINE_bool(
        *("restart", False, "Train anew, though --workdir holds a run of it."),
        flag_values=values,
    )
    for name, run in (("dense", "dense"), ("initial_run", "initial")):
        flags.register_multi_flags_validator(
            [name, "workdir"],
            lambda found, name=name: (
                not _same_folder(found[name], found["workdir"])
            ),
            f"the {run} run's folder cannot be that of the new run.",
            flag_values=values,
        )


def _check_data_dir(path):
    if path is None:
        return True
    place = command_line.folder(path)
    # One that is not there is left to those who know how to fill it.
    if not path or (os.path.exists(place) and not os.path.isdir(place)):
        _no("must be a folder. Leave it out for the default.")
    return True


def _check_workdir(path):
    if not path:
        _no("must be a folder that may be written, such as runs/first.")
    if "://" in path:
        _no("must be a folder of this machine.")
    if not command_line.may_be_written(path):
        _no("must be a folder that may be written.")
    try:
        workdir.check(command_line.folder(path))
    except (RefusedError, OSError) as error:
        _no(str(error))
    return True


def _check_finished(path):
    if path is None:
        return True
    if not path:
        _no("must be the folder of a finished run.")
    try:
        records.result(command_line.folder(path))
    except records.RecordError as error:
        _no(f"must be the folder of a finished run. {error}")
    return True


def _no(message):
    raise flags.ValidationError(message)


def _same_folder(one, other):
    paths = (one, other)
    if None in paths:
        return False
    return (
        len({os.path.realpath(command_line.folder(path)) for path in paths})
        == 1
    )
