"""The tree that Volumes, rsync and rclone move, and how it is read. Only the standard library."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

LARGE = "large.bin"
ONE = "middle/0000"
SMALL_BYTES = 4096


def make(folder: Path, large_mib: int, small: int) -> None:
    """Make one large file, some of 1 MiB and many small ones, of bytes that do not repeat."""
    for part in ("middle", "small"):
        (folder / part).mkdir(parents=True)
    with (folder / LARGE).open("wb") as file:
        for _ in range(large_mib):
            file.write(os.urandom(1 << 20))
    for number in range(32):
        (folder / f"middle/{number:04}").write_bytes(os.urandom(1 << 20))
    for number in range(small):
        (folder / f"small/{number:06}").write_bytes(os.urandom(SMALL_BYTES))


def change(folder: str) -> None:
    """Change what one commit, or one more copy, has to move."""
    with open(f"{folder}/{ONE}", "r+b") as file:
        file.write(os.urandom(1 << 16))
    with open(f"{folder}/small/new", "wb") as file:
        file.write(os.urandom(SMALL_BYTES))


def read_one(folder: str) -> None:
    """Read one file of 1 MiB."""
    with open(f"{folder}/{ONE}", "rb") as file:
        assert len(file.read()) == 1 << 20


def read_all(folder: str) -> None:
    """Read everything."""
    for top, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(top, name), "rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass


def timed(work: Callable[[], object]) -> float:
    """Return how many milliseconds something takes."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3
