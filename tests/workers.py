"""Starts worker processes on this machine."""

import json
import os
import pathlib
import socket
import subprocess

ROOT = pathlib.Path(__file__).parents[1]
SECONDS = 240  # Until they count as hung.


def run(*commands):
    """Runs each command as one of the workers of a cluster.

    Returns:
        List of `(stderr, exit code)`.
    """
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(len(commands))]
    workers = []
    for index, command in enumerate(commands):
        config = {
            "cluster": {"worker": addresses},
            "task": {"type": "worker", "index": index},
        }
        workers.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {"TF_CONFIG": json.dumps(config)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        return [
            (worker.communicate(timeout=SECONDS)[1], worker.returncode)
            for worker in workers
        ]
    finally:
        for worker in workers:
            worker.kill()


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
