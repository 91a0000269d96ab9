"""Ports of 127.0.0.1 for servers that have to be told theirs before they start."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import IO

# Below what the kernel gives to outgoing connections, and what Nomad gives to its allocations.
_RANGE = range(10_000, 20_000)
_ours: list[IO[bytes]] = []


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on, and that no other test process is given while this one lives."""
    found: list[int] = []
    for port in random.SystemRandom().sample(_RANGE, len(_RANGE)):
        if len(found) == count:
            return found
        if _take(port):
            found.append(port)
    raise RuntimeError(f"no {count} free ports between {_RANGE.start} and {_RANGE.stop}")


def free_range(count: int) -> tuple[int, int]:
    """Return the first and the last of ports that follow each other, as ``free_ports`` does."""
    for first in random.SystemRandom().sample(_RANGE[:-count], len(_RANGE) - count):
        if all(_take(port) for port in range(first, first + count)):
            return first, first + count - 1
    raise RuntimeError(f"no {count} free ports in a row between {_RANGE.start} and {_RANGE.stop}")


def _take(port: int) -> bool:
    folder = Path(tempfile.gettempdir(), f"modal-nomad-test-ports-{os.getuid()}")
    folder.mkdir(exist_ok=True)
    lock = open(folder / str(port), "wb")  # noqa: SIM115 - open as long as this process
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    except OSError:
        lock.close()
        return False
    _ours.append(lock)
    return True
