"""Says where, when and with what a number was measured."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def environment(seeds, packages=("tensorflow", "keras")):
    """Returns what a result needs beside it, to be believed and repeated.

    Args:
        seeds: List of the seeds that the measured runs used.
        packages: Names of the packages whose versions count.

    Returns:
        Dict for JSON: `date` (UTC, ISO 8601), `commit`, `machine`, `seeds`,
        and `command`, as typed in the repository's folder but for the name of
        the interpreter.
    """
    now = datetime.datetime.now(datetime.UTC)
    return {
        "date": now.isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": {
            "cpu": _cpu(),
            # Those that this process may use, not all that are there.
            "cores": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
            "python": platform.python_version(),
            **{x: importlib.metadata.version(x) for x in packages},
        },
        "seeds": list(seeds),
        "command": shlex.join(["python", *map(_from_root, sys.argv)]),
    }


def _from_root(argument):
    # Where the repository lies is no part of a result.
    return argument.replace(f"{ROOT}{os.sep}", "")


def _commit():
    """Returns the checked-out commit, or `"unknown"` outside a repository.

    With "-dirty" behind it if a file of it was changed, other than results.
    """
    try:
        commit = _git("rev-parse", "HEAD")
        changes = _git(
            *("status", "--porcelain", "--untracked-files=no"),
            *("--", ".", ":!tools/results"),
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if changes else commit


def _git(*arguments):
    finished = subprocess.run(
        ["git", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return finished.stdout.strip()


def _cpu():
    """Returns the model name of the processor, as far as the system tells."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [
        line.partition(":")[2].strip()
        for line in lines
        if line.startswith("model name")
    ]
    return names[0] if names else platform.machine()
