"""Whether a container uses more than its limits: its processes together of memory, its files of the disk."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import time
from collections.abc import Awaitable, Callable

from modal_nomad.engines._local_container import LocalContainer
from modal_nomad.engines._local_files import family, usage_of
from modal_nomad.engines.base import EngineError
from modal_nomad.wire.over_use import VOLUMES, disk_use, out_of_disk, out_of_memory_together

_INTERVAL = 0.2
_DISK_INTERVAL = 1.0
_SPARE = 20
"""Looking at many files takes its time: so many times as long nobody looks."""
_MIB = 20


async def watch_use(
    container: LocalContainer,
    over: Callable[[LocalContainer, str], None],
    size: Callable[[], Awaitable[int]] | None = None,
) -> None:
    """Look at a container until it ends, or uses more than it may: then ``over`` is told, in words.

    Args:
        container: one that runs.
        over: what to do then.
        size: gives the bytes of its files, where they are a runtime's own; they are counted here without.
    """
    plan = container.plan
    in_memory = plan.memory is not None and plan.container is None
    next_size = time.monotonic()
    while not container.ended.is_set():
        reason = await asyncio.to_thread(_memory, container) if in_memory else ""
        if not reason and plan.disk and time.monotonic() >= next_size:
            began = time.monotonic()
            used = await (size() if size else asyncio.to_thread(_files, str(container.directory)))
            reason = "" if used <= plan.disk else out_of_disk(used, plan.disk)
            next_size = time.monotonic() + max(_DISK_INTERVAL, _SPARE * (time.monotonic() - began))
        if reason and not container.ended.is_set():
            over(container, reason)
            return
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(container.ended.wait(), _INTERVAL if in_memory else _DISK_INTERVAL)


def _memory(container: LocalContainer) -> str:
    assert container.pid is not None and container.plan.memory is not None
    if container.group is not None:
        return out_of_memory_together(container.plan.memory) if container.group.killed else ""
    used = over_use(container.pid, container.plan.memory)
    return out_of_memory(used, container.plan.memory) if used else ""


def out_of_memory(used: int, limit: int) -> str:
    """Say that a container used more memory than it may, in bytes."""
    return (
        f"out of memory: it used {used >> _MIB:,} MiB, above its limit of {limit >> _MIB:,} MiB: ask for more"
        " with memory="
    )


def over_use(pid: int, limit: int) -> int:
    """Return the bytes that a process and its descendants use, when that is above ``limit``; else 0."""
    # Each counts what it shares with the others: when that is little enough the rest need not be looked at.
    try:
        if usage_of(pid)[1] <= limit:
            return 0
    except EngineError:
        return 0
    used = sum(map(_own_part, family(pid)))
    return used if used > limit else 0


def _files(directory: str) -> int:
    return disk_use([directory], [f"{directory}/alloc/{VOLUMES}"])


def _own_part(pid: int) -> int:
    """Return the resident bytes of a process, of shared ones its part."""
    with contextlib.suppress(OSError, ValueError):
        for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0
