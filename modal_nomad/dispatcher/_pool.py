"""The containers and the queue of one Function, and how inputs are dealt out to containers.

This is the hot path of the whole system: no clock, no allocation per input beyond the tuples that
travel, and no walk over containers or inputs where an event concerns one container.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from modal_nomad.dispatcher._call import Call, Input
from modal_nomad.dispatcher._events import (
    Command,
    FunctionPolicy,
    Lease,
    LeasedInput,
)
from modal_nomad.dispatcher._views import ContainerState, ContainerView, PoolView

PREFETCH_SECONDS = 0.05
"""A worker holds about this much work beyond what it runs, so that it never waits for a round trip."""
MAX_PREFETCH = 256
MAX_CREDIT = 1024
QUANTUM_SECONDS = 0.001
"""Work below this is not split between containers: frames would shrink and nothing be gained."""
DEFAULT_START_SECONDS = 0.2
CPU_MEMORY_SECONDS = 2.0
"""Seconds of running inputs after which most of what was known of their use of a processor is forgotten."""
CPU_KNOWN_SECONDS = 0.02
FOREVER = float("inf")

_NOWHERE, _FREE, _ROOM = 0, 1, 2


class Container:
    """One container. ``leases`` is ordered: the first ``slots`` are those that run."""

    __slots__ = (
        "clock_from",
        "container_id",
        "credit",
        "deadline",
        "idle_since",
        "leases",
        "no_prefetch",
        "pending_reason",
        "place",
        "pool",
        "running_since",
        "since",
        "slots",
        "state",
        "version_key",
        "web",
    )

    def __init__(self, container_id: str, pool: Pool, version_key: str, now: float) -> None:
        self.container_id = container_id
        self.pool = pool
        self.version_key = version_key
        self.state: ContainerState = "starting"
        self.since = now
        self.clock_from = now
        self.idle_since = now
        self.deadline = FOREVER
        self.pending_reason = ""
        self.slots = 1
        self.credit = 1
        self.no_prefetch = False
        self.place = _NOWHERE
        self.web = 0
        self.leases: dict[int, Input] = {}
        self.running_since: dict[int, float] = {}

    def running(self) -> list[tuple[int, Input]]:
        """The leases that run now, going by their order."""
        return list(islice(self.leases.items(), self.slots))


class Pool:
    """One Function: its policy, queue and containers."""

    def __init__(self, function_id: str, policy: FunctionPolicy) -> None:
        self.function_id = function_id
        self.policy = policy
        self.removed: str | None = None
        self.containers: dict[str, Container] = {}
        self.counts: dict[ContainerState, int] = dict.fromkeys(
            ("starting", "ready", "draining", "stopping"), 0
        )
        self.requested: dict[str, int] = {}
        self.queue: deque[Input] = deque()
        self.delayed: list[tuple[float, int, Input]] = []
        # Ready containers with a free slot, and those full whose prefetch has run low.
        self.free: dict[str, Container] = {}
        self.room: dict[str, Container] = {}
        self.leased = 0
        self.busy = 0
        # Requests to its endpoints: those that wait, and those that run.
        self.web_waiting = 0
        self.web_running = 0
        self.average: float | None = None
        self.cpu_seconds = 0.0
        self.cpu_of = 0.0
        self.prefetch = 1
        self.quantum = policy.batch_size
        self.start_seconds = DEFAULT_START_SECONDS
        # The last sign of life while inputs wait, and when a silence may next be taken for a stall.
        self.stall_from = 0.0
        self.stall_next = 0.0
        # No container has been idle for its scaledown window before this time.
        self.idle_until = 0.0
        self.check_at = FOREVER
        self.failures = 0
        self.strikes = 0
        self.not_before = 0.0
        self.wake_at = FOREVER

    # ---- containers

    def add(self, container_id: str, version_key: str, now: float) -> Container:
        """Take note of a container that is starting."""
        container = Container(container_id, self, version_key, now)
        self.containers[container_id] = container
        self.counts["starting"] += 1
        return container

    def set_state(self, container: Container, state: ContainerState, now: float) -> None:
        """Move a container to another state; only ready ones are given inputs and counted as load."""
        old = container.state
        self.counts[old] -= 1
        self.counts[state] += 1
        container.state = state
        container.since = now
        if old == "ready":
            self._displace(container)
            self.leased -= len(container.leases)
            self.busy -= bool(container.leases)
        if state == "ready":
            container.idle_since = now
            self.leased += len(container.leases)
            self.busy += bool(container.leases)
            self.place(container)

    def discard(self, container: Container) -> None:
        """Forget a container, which holds no leases any more."""
        self._displace(container)
        self.counts[container.state] -= 1
        del self.containers[container.container_id]

    def take_leases(self, container: Container) -> list[Input]:
        """Take all leases from a container; gives the inputs somebody still waits for, in order."""
        if container.state == "ready":
            self.leased -= len(container.leases)
            self.busy -= bool(container.leases)
        inputs = [x for x in container.leases.values() if x.call is not None]
        container.leases.clear()
        container.running_since.clear()
        return inputs

    @property
    def queued(self) -> int:
        """Inputs and requests that no container has."""
        return len(self.queue) + self.web_waiting

    @property
    def busy_now(self) -> int:
        """Ready containers that have inputs or requests."""
        if not self.web_running:
            return self.busy
        return sum(1 for c in self.containers.values() if c.state == "ready" and (c.leases or c.web))

    @property
    def starting(self) -> int:
        """Containers of this version that were asked for and are not ready."""
        return self.counts["starting"] + sum(self.requested.values())

    @property
    def alive(self) -> int:
        """Containers that take inputs or will."""
        return self.counts["ready"] + self.starting

    # ---- dealing out

    def place(self, container: Container) -> None:
        """Put a ready container where inputs find it: free slots first, then low prefetch."""
        held = len(container.leases)
        if held < container.slots:
            place = _FREE
        elif held < container.credit and held <= container.credit >> 1:
            place = _ROOM
        else:
            place = _NOWHERE
        if place != container.place:
            self._displace(container)
            container.place = place
            if place == _FREE:
                self.free[container.container_id] = container
            elif place == _ROOM:
                self.room[container.container_id] = container

    def _displace(self, container: Container) -> None:
        if container.place == _FREE:
            del self.free[container.container_id]
        elif container.place == _ROOM:
            del self.room[container.container_id]
        container.place = _NOWHERE

    def set_credit(self, container: Container) -> None:
        """Say how many inputs a container may hold, from how long inputs take."""
        slots = container.slots
        if container.no_prefetch or self.policy.single_use:
            container.credit = slots
        else:
            container.credit = min(slots * self.prefetch, max(slots, MAX_CREDIT))

    def learn(self, inputs: int, busy_seconds: float) -> None:
        """Learn from a batch how long one input takes."""
        sample = max(busy_seconds, 0.0) / inputs
        if self.average is None:
            average = sample
        else:
            average = self.average + (sample - self.average) * (inputs / (inputs + 10))
        self.average = average
        if average * MAX_PREFETCH <= PREFETCH_SECONDS:
            self.prefetch = MAX_PREFETCH
        else:
            self.prefetch = max(1, int(PREFETCH_SECONDS / average))
        quantum = min(MAX_PREFETCH // 4, int(QUANTUM_SECONDS / max(average, 1e-6)))
        self.quantum = max(self.policy.batch_size, quantum)

    def learn_cpu(self, cpu_seconds: float, seconds: float) -> None:
        """Learn how much of a processor inputs use, mostly from the last seconds of them."""
        kept = CPU_MEMORY_SECONDS / (CPU_MEMORY_SECONDS + seconds)
        self.cpu_seconds = self.cpu_seconds * kept + min(cpu_seconds, seconds)
        self.cpu_of = self.cpu_of * kept + seconds

    @property
    def cpu_share(self) -> float | None:
        """How much of a processor one running input uses; None until inputs ran long enough to tell."""
        return self.cpu_seconds / self.cpu_of if self.cpu_of >= CPU_KNOWN_SECONDS else None

    def lease(self, container: Container, count: int, next_lease: int, out: list[Command]) -> int:
        """Lease the ``count`` oldest inputs to a container; gives the next unused lease number."""
        leases = container.leases
        if not leases:
            self.busy += 1
        take = self.queue.popleft
        frame: list[LeasedInput] = []
        add = frame.append
        for lease in range(next_lease, next_lease + count):
            item = take()
            leases[lease] = item
            add((lease, item.call.call_id, item.index, item.payload, item.flags))  # type: ignore[union-attr]
        self.leased += count
        out.append(Lease(container.container_id, frame))
        return next_lease + count

    def feed(self, next_lease: int, out: list[Command]) -> int:
        """Deal the queue out to all containers with credit; gives the next unused lease number."""
        queue, free, room = self.queue, self.free, self.room
        if not queue or not (free or room):
            return next_lease
        share = max(-(-len(queue) // (len(free) or len(room))), self.quantum)
        while queue:
            if free:
                # The container that was free last: its caches are warm, and the others can go idle.
                container = next(reversed(free.values()))
            elif room:
                container = next(iter(room.values()))
            else:
                break
            count = min(len(queue), container.credit - len(container.leases), share)
            next_lease = self.lease(container, count, next_lease, out)
            self.place(container)
        return next_lease

    def top_up(self, container: Container, next_lease: int, out: list[Command]) -> int:
        """Give a container that just returned outputs its next inputs, once its prefetch is half gone."""
        held = len(container.leases)
        slots = container.slots
        if self.queue and (held < slots or held <= container.credit >> 1):
            waiting = len(self.queue)
            share = max(slots - held, self.quantum, -(-waiting // self.counts["ready"]))
            count = min(waiting, container.credit - held, share)
            if count > 0:
                next_lease = self.lease(container, count, next_lease, out)
        self.place(container)
        return next_lease

    def drop_queued(self, calls: set[Call]) -> None:
        """Take the inputs of these calls, and those nobody wants, out of the queue."""
        self.queue = deque(x for x in self.queue if x.call is not None and x.call not in calls)
        kept = [x for x in self.delayed if x[2].call is not None and x[2].call not in calls]
        kept.sort()
        self.delayed = kept

    # ---- views

    def view(self) -> PoolView:
        """The pool as status and metrics show it."""
        reasons = [c.pending_reason for c in self.containers.values() if c.pending_reason]
        running = sum(min(len(c.leases), c.slots) for c in self.containers.values())
        free = sum(c.slots - len(c.leases) for c in self.free.values())
        return PoolView(
            function_id=self.function_id,
            version_key=self.policy.version_key,
            backlog=len(self.queue) + len(self.delayed),
            running=running,
            prefetched=sum(len(c.leases) for c in self.containers.values()) - running,
            headroom=free,
            starting=self.starting,
            idle=self.counts["ready"] - self.busy,
            busy=self.busy,
            draining=self.counts["draining"] + self.counts["stopping"],
            average_seconds=self.average,
            pending_reason=reasons[0] if reasons else "",
        )

    def container_views(self) -> list[ContainerView]:
        """Each container as status shows it."""
        return [
            ContainerView(
                container_id=c.container_id,
                function_id=self.function_id,
                version_key=c.version_key,
                state=c.state,
                since=c.since,
                busy=min(len(c.leases) + c.web, c.slots),
                pending_reason=c.pending_reason,
            )
            for c in self.containers.values()
        ]
