"""What a container used more of than it may: its files counted, what the kernel ended, and both in words."""

import os
from contextlib import suppress
from typing import Collection, Iterable, Set, Tuple

DISK = "MODAL_DISK_LIMIT"
"""The variable that holds a container's ``ephemeral_disk=``, in MiB, where its worker is to look."""
VOLUMES = "volumes"
"""Where an allocation's directory has what is shown of Volumes, which is none of the container's own."""
_BLOCK = 512
_MIB = 20
_KILLS = ("memory.events", "memory.oom_control")
_LIMITS = ("memory.max", "memory.limit_in_bytes")
_NO_LIMIT = 1 << 60


def disk_use(directories: Iterable[str], left_out: Collection[str] = (), since: float = 0.0) -> int:
    """Return the bytes that files take, each counted once, and nothing of another file system than its top.

    Args:
        directories: the tops.
        left_out: directories that do not count.
        since: seconds since 1970: what was there before does not count either.
    """
    used = 0
    seen: Set[Tuple[int, int]] = set()
    pending = []
    for directory in directories:
        with suppress(OSError):
            found = os.stat(directory)
            seen.add((found.st_dev, found.st_ino))
            pending.append((directory, found.st_dev))
    while pending:
        top, device = pending.pop()
        # A directory that goes away meanwhile takes nothing.
        with suppress(OSError), os.scandir(top) as entries:
            for entry in entries:
                if entry.path in left_out:
                    continue
                with suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    place = (found.st_dev, found.st_ino)
                    if found.st_dev != device or place in seen:
                        continue
                    folder = entry.is_dir(follow_symlinks=False)
                    if folder or found.st_nlink > 1:
                        seen.add(place)
                    # Of a file with several names others may make one more, which is no use of ours.
                    if found.st_ctime >= since and (found.st_nlink == 1 or found.st_mtime >= since):
                        used += found.st_blocks * _BLOCK
                    if folder:
                        pending.append((entry.path, device))
    return used


def killed(group: str) -> int:
    """Return how many processes of a control group the kernel has ended for the memory they used together."""
    for name in _KILLS:
        with suppress(OSError, ValueError), open(f"{group}/{name}") as file:
            for line in file:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def memory_limit(group: str) -> int:
    """Return the bytes of memory that a control group may use; 0 for no limit, or none that can be read."""
    for name in _LIMITS:
        with suppress(OSError, ValueError), open(f"{group}/{name}") as file:
            limit = int(file.read())
            return limit if limit < _NO_LIMIT else 0
    return 0


def out_of_memory_together(limit: int) -> str:
    """Say that the kernel has ended a process for what all of them used."""
    return (
        f"out of memory: its processes together went above its limit of {limit >> _MIB:,} MiB: ask for more"
        " with memory="
    )


def out_of_disk(used: int, limit: int) -> str:
    """Say that a container's files take more than it may, in bytes."""
    return (
        f"out of disk: its files took {used >> _MIB:,} MiB, above its limit of {limit >> _MIB:,} MiB: ask for"
        " more with ephemeral_disk=, or keep them in a Volume"
    )
