"""What the call engine shows of itself, for status and metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

ContainerState: TypeAlias = Literal["starting", "ready", "draining", "stopping"]


@dataclass(frozen=True, slots=True)
class ContainerView:
    """One container as status shows it; ``busy`` is how many inputs and requests it runs now."""

    container_id: str
    function_id: str
    version_key: str
    state: ContainerState
    since: float
    busy: int
    pending_reason: str


@dataclass(frozen=True, slots=True)
class CallView:
    """One call; of its inputs those whose outputs are still held: index, status (None while pending)."""

    function_id: str
    method: str
    inputs: list[tuple[int, int | None]]


@dataclass(frozen=True, slots=True)
class PoolView:
    """One Function's queue and containers; ``running``, ``prefetched`` and ``headroom`` count inputs."""

    function_id: str
    version_key: str
    backlog: int
    running: int
    prefetched: int
    headroom: int
    starting: int
    idle: int
    busy: int
    draining: int
    average_seconds: float | None
    pending_reason: str


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Totals since the start (counters) and now (calls, backlog, containers)."""

    functions: int
    calls: int
    backlog: int
    running: int
    containers: int
    inputs_accepted: int
    outputs_delivered: int
    retries: int
    losses: int
    containers_started: int
