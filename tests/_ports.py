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
    folder = Path(tempfile.gettempdir(), f"modal-nomad-test-ports-{os.getuid()}")
    folder.mkdir(exist_ok=True)
    found: list[int] = []
    for port in random.SystemRandom().sample(_RANGE, len(_RANGE)):
        if len(found) == count:
            return found
        lock = open(folder / str(port), "wb")  # noqa: SIM115 - open as long as this process
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            lock.close()
        else:
            _ours.append(lock)
            found.append(port)
    raise RuntimeError(f"no {count} free ports between {_RANGE.start} and {_RANGE.stop}")
