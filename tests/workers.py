"""Starts worker processes on this machine."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import tempfile
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SECONDS = 240  # Until they count as hung.


def run(*commands):
    """Runs each command as one of the workers of a cluster.

    Returns:
        List of `(stderr, exit code)`.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Files: who waits for one worker does not empty the pipe of another.
        errors = [pathlib.Path(folder, str(i)) for i in range(len(commands))]
        workers = start(commands, errors)
        deadline = time.monotonic() + SECONDS
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                for worker in workers:
                    worker.wait(max(0.0, deadline - time.monotonic()))
            hang = [worker.poll() is None for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        texts = [path.read_text() for path in errors]
    if any(hang):
        pytest.fail("\n".join(["Workers hang.", *(x[-2000:] for x in texts)]))
    codes = [worker.returncode for worker in workers]
    return list(zip(texts, codes, strict=True))


def start(commands, errors, stdout=subprocess.DEVNULL):
    """Starts each command as one of the workers of a cluster.

    A single command is started without a cluster.

    Args:
        commands: List of lists of words.
        errors: List of the paths of files for what each writes to `stderr`.
        stdout: As for `subprocess.Popen`.

    Returns:
        List of `subprocess.Popen`.
    """
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(len(commands))]
    processes = []
    for index, command in enumerate(commands):
        config = {
            "cluster": {"worker": addresses},
            "task": {"type": "worker", "index": index},
        }
        environment = {"TF_CONFIG": json.dumps(config)}
        with errors[index].open("w") as file:
            processes.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=os.environ | (environment if len(commands) > 1 else {}),
                    stdout=stdout,
                    stderr=file,
                )
            )
    return processes


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
