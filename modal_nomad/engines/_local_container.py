"""The record of one local container, the watchers of all, and how an end is said in words."""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from modal_nomad.engines._local_gpus import Grant
from modal_nomad.engines._local_groups import Group
from modal_nomad.engines._local_job import TaskPlan
from modal_nomad.engines.base import ContainerEvent, ContainerRequest, ContainerState
from modal_nomad.exception import ExecutionError, OutOfDiskError, OutOfMemoryError


class Starter(Protocol):
    """What started a container, and signals it: a warm interpreter or a container runtime."""

    def kill(self, process_id: str, number: int, *, group: bool) -> None:
        """Signal it, or all that belongs to it; one that has ended is no error."""
        ...


@dataclass
class LocalContainer:
    """What the engine knows of one container; changed on the event loop only."""

    request: ContainerRequest
    plan: TaskPlan
    directory: pathlib.Path
    event: ContainerEvent
    allocation_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    warm: Starter | None = None
    pid: int | None = None
    env: dict[str, str] = field(default_factory=dict)
    cpus: tuple[int, ...] = ()
    gpus: tuple[Grant, ...] = ()
    group: Group | None = None
    stopping: bool = False
    preparing: asyncio.Task[None] | None = None
    killer: asyncio.TimerHandle | None = None
    commands: set[str] = field(default_factory=set)
    sample: tuple[float, float] = (0.0, 0.0)


class Watch(AsyncIterator[ContainerEvent]):
    """One watcher's queue of events, filled from the moment it is made."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[ContainerEvent | None] = asyncio.Queue()
        self._over = False

    def put(self, event: ContainerEvent | None) -> None:
        """Add an event; None is the end."""
        self._queue.put_nowait(event)

    async def __anext__(self) -> ContainerEvent:
        event = None if self._over else await self._queue.get()
        if event is None:
            self._over = True
            raise StopAsyncIteration
        return event


def over_use_error(reason: str) -> ExecutionError | None:
    """Return what callers get for an end by over-use of memory or disk; None for any other."""
    if reason.startswith("out of memory"):
        return OutOfMemoryError(reason)
    return OutOfDiskError(reason) if reason.startswith("out of disk") else None


def describe_end(
    plan: TaskPlan,
    code: int | None,
    number: int | None,
    *,
    stopping: bool,
    oom: bool = False,
) -> tuple[ContainerState, str, int | None]:
    """Return the state, the reason in words and the exit code of an ended process.

    Args:
        plan: what it was.
        code: its exit code.
        number: the signal that ended it.
        stopping: it was told to end.
        oom: the kernel ended it, or one of its processes, for its use of memory.
    """
    exit_code = code if number is None else 128 + number
    if stopping:
        return ContainerState.COMPLETE, "stopped", exit_code
    limit = f" (limit {plan.memory >> 20} MiB)" if plan.memory else ""
    if oom and code != 0:
        return ContainerState.FAILED, f"out of memory{limit}: ask for more with memory=", exit_code
    if number is not None:
        reason = f"killed by signal {number} ({_signal_name(number)})"
        if number == signal.SIGKILL:
            reason += "" if plan.container is not None else f", perhaps out of memory{limit}"
        return ContainerState.FAILED, reason, exit_code
    if code == 0:
        return ContainerState.COMPLETE, "", 0
    return ContainerState.FAILED, f"exit code {code}", exit_code


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unnamed"


def pick_cpus(count: int, containers: list[LocalContainer]) -> tuple[int, ...]:
    """Return the ``count`` least reserved processors, or none when that would be no limit."""
    if not count or not hasattr(os, "sched_getaffinity"):
        return ()
    load = dict.fromkeys(sorted(os.sched_getaffinity(0)), 0)
    if count >= len(load):
        return ()
    for container in containers:
        for cpu in container.cpus:
            if cpu in load:
                load[cpu] += 1
    return tuple(sorted(load, key=lambda cpu: (load[cpu], cpu))[:count])


def usable_cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
