"""What a container still has open of its buckets when it ends: closed, so that it is sent and not cut off."""

import contextlib
import gc
import io
import os
import sys
from typing import Collection, Iterator, List, Tuple

# The kernel's function in which whoever asks a file system of a process waits.
_ASKING = "request_wait_answer"


def close_own(devices: Collection[int]) -> None:
    """Close what this process has open there: what its files' buffers hold is sent, as at any program's end.

    Args:
        devices: the numbers of the mounted buckets.
    """
    held = dict(_open_files("self", devices))
    if not held:
        return
    files = [x for x in gc.get_objects() if issubclass(type(x), io.IOBase) and not _closed(x)]
    # What holds text writes into what holds bytes.
    for kind in (io.TextIOBase, io.BufferedIOBase, io.RawIOBase):
        for file in (x for x in files if isinstance(x, kind)):
            with contextlib.suppress(ValueError, OSError):
                if (number := file.fileno()) not in held:
                    continue
                try:
                    file.close()
                except OSError as error:
                    _say(f"{held[number]} was open at the container's end, and is not stored: {error}")
    for number, name in _open_files("self", devices):
        try:
            os.close(number)
        except OSError as error:
            _say(f"{name} was open at the container's end, and is not stored: {error}")


def held_by_others(devices: Collection[int]) -> List[Tuple[str, str]]:
    """Return which other processes have something open there, or are just closing it: numbers, and paths."""
    found = []
    for pid in os.listdir("/proc"):
        if pid.isdigit() and pid != str(os.getpid()):
            found += [(pid, name) for _, name in _open_files(pid, devices)]
            if _waits(pid):
                found.append((pid, "a file"))
    return found


def _waits(pid: str) -> bool:
    """Tell whether a process waits for a file system's answer: what is being closed is open no more."""
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/wchan", encoding="ascii") as file:
                if file.read() == _ASKING:
                    return True
    return False


def _open_files(pid: str, devices: Collection[int]) -> Iterator[Tuple[int, str]]:
    folder = f"/proc/{pid}/fd"
    try:
        numbers = os.listdir(folder)
    except OSError:
        return
    for number in numbers:
        with contextlib.suppress(OSError):
            path = f"{folder}/{number}"
            name = os.readlink(path)
            # Others than files are not asked: a pipe's or a socket's device is no mount's.
            if name.startswith("/") and os.stat(path).st_dev in devices:
                yield int(number), name


def _closed(file: io.IOBase) -> bool:
    try:
        return file.closed
    except ValueError:
        return True


def _say(text: str) -> None:
    sys.stderr.write(f"modal-nomad worker: {text}\n")
