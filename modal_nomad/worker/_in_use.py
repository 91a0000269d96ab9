"""Whether this container's processes use a directory: then a Volume there cannot be reloaded."""

import contextlib
import os
from typing import List, Optional


def check_unused(shown: str, source: str) -> None:
    """Look for open files and working directories of this process and those that it started.

    Args:
        shown: the path at which user code sees a Volume.
        source: the directory that is really there.

    Raises:
        RuntimeError: something is in use; the text names it.
    """
    failed = f"cannot reload the Volume at {shown}"
    places = [os.fsencode(os.path.realpath(shown)), os.fsencode(source)]
    for pid in _family():
        with contextlib.suppress(OSError):
            inside = _inside(os.readlink(b"/proc/%d/cwd" % pid), places)
            if inside is not None:
                raise RuntimeError(f"{failed}: cwd is inside volume; leave it before")
        for number in _descriptors(pid):
            with contextlib.suppress(OSError):
                inside = _inside(os.readlink(b"/proc/%d/fd/%s" % (pid, number)), places)
                if inside is not None:
                    raise RuntimeError(f"{failed}: path {inside} is open; close it")


def _inside(path: bytes, places: List[bytes]) -> Optional[str]:
    for place in places:
        if path == place or path.startswith(place + b"/"):
            return os.fsdecode(path)
    return None


def _family() -> List[int]:
    """Return this process and those that it started."""
    found, looked = [os.getpid()], 0
    while looked < len(found):
        pid = found[looked]
        looked += 1
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children") as file:
                    found.extend(int(child) for child in file.read().split())
    return found


def _descriptors(pid: int) -> List[bytes]:
    try:
        return os.listdir(b"/proc/%d/fd" % pid)
    except OSError:
        return []
