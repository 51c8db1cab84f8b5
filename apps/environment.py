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
_CPU_INFO = pathlib.Path("/proc/cpuinfo")
# TensorFlow chooses its kernels by them, so times depend on them.
_INSTRUCTIONS = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_bf16", "amx_fp16"),
)

# They choose TensorFlow's kernels, whatever the processor has.
_SWITCHES = ("TF_ENABLE_ONEDNN_OPTS",)


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
    flags = cpu_flags()
    return {
        "date": now.isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": {
            "cpu": _cpu(),
            "instructions": [x for x in _INSTRUCTIONS if x in flags],
            **{x: os.environ[x] for x in _SWITCHES if x in os.environ},
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


def cpu_flags():
    """Returns the instruction sets of the processor, as Linux names them.

    Returns:
        Set of strings, such as `"avx2"`. Empty where the system does not tell.
    """
    return set(_cpu_info("flags").split())


def _cpu():
    """Returns the model name of the processor, as far as the system tells."""
    name = _cpu_info("model name")
    return name or platform.processor() or platform.machine()


def _cpu_info(key):
    """Returns what Linux says of the first core under `key`, else `""`."""
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
