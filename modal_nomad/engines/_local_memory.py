"""Whether the processes of a container together use more memory than its limit, which holds each alone."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
from collections.abc import Callable

from modal_nomad.engines._local_container import LocalContainer
from modal_nomad.engines._local_files import family, usage_of

_INTERVAL = 0.2


async def watch_memory(container: LocalContainer, over: Callable[[LocalContainer, int], None]) -> None:
    """Look at a container that has a limit until it ends, or uses more: then ``over`` is told how much."""
    pid, limit = container.pid, container.plan.memory
    assert pid is not None and limit is not None
    while not container.ended.is_set():
        used = await asyncio.to_thread(over_use, pid, limit)
        if used and not container.ended.is_set():
            over(container, used)
            return
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(container.ended.wait(), _INTERVAL)


def over_use(pid: int, limit: int) -> int:
    """Return the bytes that a process and its descendants use, when that is above ``limit``; else 0."""
    # Each counts what it shares with the others: when that is little enough the rest need not be looked at.
    if usage_of(pid)[1] <= limit:
        return 0
    used = sum(map(_own_part, family(pid)))
    return used if used > limit else 0


def _own_part(pid: int) -> int:
    """Return the resident bytes of a process, of shared ones its part."""
    with contextlib.suppress(OSError, ValueError):
        for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0
