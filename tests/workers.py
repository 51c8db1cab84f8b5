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
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(len(commands))]
    with tempfile.TemporaryDirectory() as folder:
        # Files: who waits for one worker does not empty the pipe of another.
        errors = [pathlib.Path(folder, str(i)) for i in range(len(commands))]
        workers = [
            _start(command, addresses, index, errors[index])
            for index, command in enumerate(commands)
        ]
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


def _start(command, addresses, index, error):
    config = {
        "cluster": {"worker": addresses},
        "task": {"type": "worker", "index": index},
    }
    with error.open("w") as file:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"TF_CONFIG": json.dumps(config)},
            stdout=subprocess.DEVNULL,
            stderr=file,
        )


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
