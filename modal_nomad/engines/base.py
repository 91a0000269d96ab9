"""The contract of an engine: where allocations run.

The dispatcher knows nothing of Nomad or of processes beyond this file. ``tests/engine_contract``
runs the same cases on every implementation. All methods are coroutines on the dispatcher's loop and
never block it.
"""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from modal_nomad.exception import ExecutionError

Job = Mapping[str, Any]
"""A Nomad job in Nomad's JSON job format: the dict that stands under ``"Job"``."""


class EngineError(Exception):
    """The engine refused or failed; the text says what and names the remedy."""


class EngineUnavailable(EngineError):
    """The engine cannot be reached now; the same call may succeed later."""


class EngineDenied(EngineError):
    """The caller's token does not allow it."""


class ImageGone(ExecutionError):
    """What a container was to be started from is neither where it runs nor in its registry."""


@dataclass(frozen=True)
class ContainerRequest:
    """One container to start.

    Attributes:
        container_id: ``ta-…``, chosen by the dispatcher; starting the same id twice starts one.
        job_id: the submitted job it is a child of.
        namespace: the job's namespace.
        env: what only the engine can hand over (dispatcher address, credentials). The Nomad engine
            needs none: its allocations know it from the job and their own identity.
        secrets: variables of the Function's Secrets, which win over those of its image; shown nowhere.
        snapshot: the name of the memory snapshot that it may be forked from, where its job takes one.
    """

    container_id: str
    job_id: str
    namespace: str = "default"
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    snapshot: str = ""


class ContainerState(Enum):
    PENDING = "pending"
    RUNNING = "running"
    COMPLETE = "complete"
    FAILED = "failed"
    LOST = "lost"

    @property
    def ended(self) -> bool:
        return self in (ContainerState.COMPLETE, ContainerState.FAILED, ContainerState.LOST)


@dataclass(frozen=True)
class ContainerEvent:
    """What the engine saw of a container. ``reason`` is in words, for the user who waits.

    Attributes:
        container_id: ``ta-…``.
        state: the state it is in now.
        reason: why it pends or how it ended: ``"out of memory"``, ``"killed by signal 9"``,
            ``"needs 65,536 MiB of memory: 2 nodes have too little free"``.
        exit_code: of the process, when it ended; None where unknown.
        allocation_id: the engine's own id, for its UI.
        node: where it runs.
        error: what callers get when the container cannot be set up, or used too much memory, and another try
            would end alike; None when the reason is all there is.
    """

    container_id: str
    state: ContainerState
    reason: str = ""
    exit_code: int | None = None
    allocation_id: str = ""
    node: str = ""
    error: Exception | None = None


@dataclass(frozen=True)
class Capacity:
    """What containers can be placed on: the ``cores`` of the ``nodes`` that take new ones."""

    cores: int
    nodes: int = 1


@dataclass(frozen=True)
class PlanResult:
    """What submitting would change.

    Attributes:
        changes: True when anything would be created, destroyed or updated.
        diff: Nomad's job diff as a dict (``Type``, ``Fields``, ``Objects``, ``TaskGroups``).
        warnings: the engine's words.
        failures: placement failures per task group, in words.
    """

    changes: bool
    diff: Mapping[str, Any]
    warnings: str = ""
    failures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ContainerStats:
    """Use of resources now: ``cpu`` in cores, ``memory`` in bytes."""

    cpu: float
    memory: int


@dataclass(frozen=True)
class ExecResult:
    """A finished command: its exit code and all it wrote."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class Engine(abc.ABC):
    """Where allocations run. ``token`` is the caller's Nomad ACL token where the engine has such."""

    name: str
    has_periodic_jobs = False
    """Whether ``submit`` takes periodic jobs and launches them."""

    @abc.abstractmethod
    async def start(self) -> None:
        """Connect and begin watching. Raises EngineUnavailable."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Release everything. Containers of deployed apps that the engine owns as processes end."""

    @abc.abstractmethod
    async def validate(self, job: Job, *, token: str | None = None) -> list[str]:
        """Return the faults of a job in words; empty when it is valid."""

    @abc.abstractmethod
    async def plan(self, job: Job, *, token: str | None = None) -> PlanResult:
        """Say what submitting this job would change, and change nothing."""

    @abc.abstractmethod
    async def submit(self, job: Job, *, token: str | None = None) -> None:
        """Register or update a parameterized job. Raises EngineError, EngineDenied."""

    async def make_namespace(self, name: str, environment: str, *, token: str | None = None) -> None:
        """Make the namespace of an environment where there is none, if the engine has such.

        Raises:
            EngineDenied: there is none, and the caller may not make it; the text names the remedy.
        """
        return None

    async def drop_namespace(self, name: str, environment: str, *, token: str | None = None) -> None:
        """Remove a namespace that ``make_namespace`` made, once nothing runs in it; others stay."""
        return None

    @abc.abstractmethod
    async def stop(self, job_id: str, *, namespace: str = "default", token: str | None = None) -> None:
        """Stop a job and every container of it. Unknown jobs are no error."""

    @abc.abstractmethod
    async def start_container(self, request: ContainerRequest) -> None:
        """Ask for one container; idempotent by ``container_id``. Its fate arrives through ``watch``."""

    @abc.abstractmethod
    async def stop_container(self, container_id: str, *, force: bool = False) -> None:
        """End a container: SIGTERM and its kill timeout, or at once when ``force``. Unknown: no error."""

    @abc.abstractmethod
    def watch(self) -> AsyncIterator[ContainerEvent]:
        """Yield every change of every container, from now on, as it happens; ends with ``close``."""

    @abc.abstractmethod
    async def containers(self) -> Sequence[ContainerEvent]:
        """Return the last known event of each container that has not ended."""

    @abc.abstractmethod
    def capacities(self) -> AsyncIterator[Capacity]:
        """Yield the capacity now, where it is known, then each change; ends with ``close``."""

    @abc.abstractmethod
    def logs(
        self, container_id: str, *, stream: str = "stdout", follow: bool = False
    ) -> AsyncIterator[bytes]:
        """Yield a container's log from its beginning; with ``follow`` until it ends. KeyError if unknown."""

    @abc.abstractmethod
    async def exec(self, container_id: str, command: Sequence[str], *, stdin: bytes = b"") -> ExecResult:
        """Run a command inside a container, wait, return its output. KeyError if unknown."""

    @abc.abstractmethod
    async def stats(self, container_id: str) -> ContainerStats:
        """Return a container's use of resources. KeyError if unknown."""

    async def collect(self, keep: Collection[str], *, older_than: float) -> int:
        """Remove bundles that this engine laid out and that nothing needs any more; gives how many.

        Args:
            keep: SHA-256 of bundles in use.
            older_than: seconds; younger ones stay.
        """
        return 0
