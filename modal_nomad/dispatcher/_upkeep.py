"""What the call engine does to containers, and what time does to both: starts, drains, losses, timers."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop

from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher._call import Input
from modal_nomad.dispatcher._pool import FOREVER, Container, Pool
from modal_nomad.dispatcher._state import State
from modal_nomad.dispatcher.autoscaler import STALL_SECONDS, Load
from modal_nomad.wire.spec import CLEANUP_SECONDS

GRACE_SECONDS = 10.0
"""A worker enforces its own limits; beyond them by this much it is taken for dead."""
EXIT_SECONDS = 30.0
"""A container without work has this long to run its exit hooks once told to end."""
CHECK_SECONDS = 5.0
"""How often running inputs are looked at; the start of a prefetched one is known no better."""
MAX_LOSSES = 8
MAX_STRIKES = 3
MAX_BACKOFF = 30.0
FIRST_BACKOFF = 0.25


class Upkeep(State):
    """The half of the engine that concerns containers and time."""

    def _tick(self, event: ev.Tick) -> None:
        timers = self._timers
        while timers and timers[0][0] <= self._now:
            when, _, pool = heappop(timers)
            if pool.wake_at == when:
                pool.wake_at = FOREVER
                if self._now >= pool.check_at:
                    self._review(pool)
                else:
                    self._react(pool, [])
        # Timers that were replaced by earlier ones stay in the heap; they must not pile up.
        if len(timers) > 64 + 4 * len(self._pools):
            live = {id(x[2]): x for x in timers if x[2].wake_at == x[0]}
            timers[:] = live.values()
            heapify(timers)

    # ---- containers

    def _containers_starting(self, event: ev.ContainersStarting) -> None:
        pool = self._pools.get(event.function_id)
        if pool is None:
            for container_id in event.container_ids:
                self._out.append(ev.StopContainer(container_id, True, "its Function is gone"))
            return
        asked = event.asked if event.asked is not None else len(event.container_ids)
        left = pool.requested.get(event.version_key, 0) - asked
        if left > 0:
            pool.requested[event.version_key] = left
        else:
            pool.requested.pop(event.version_key, None)
        added: list[Container] = []
        for container_id in event.container_ids:
            if container_id not in self._containers:
                container = pool.add(container_id, event.version_key, self._now)
                self._containers[container_id] = container
                self._started += 1
                added.append(container)
                if pool.removed is not None or event.version_key != pool.policy.version_key:
                    self._retire(container, pool.removed or "a new version was deployed")
        if asked > len(event.container_ids):
            self._start_failed(pool, "the engine did not start a container")
        self._react(pool, added)

    def _container_pending(self, event: ev.ContainerPending) -> None:
        container = self._containers.get(event.container_id)
        if container is not None and container.state == "starting":
            container.pending_reason = event.reason
            container.clock_from = self._now
            self._react(container.pool, [container])

    def _worker_ready(self, event: ev.WorkerReady) -> None:
        container = self._containers.get(event.container_id)
        if container is None:
            pool = self._pools.get(event.function_id)
            if pool is None:
                reason = "its Function is not known here"
                self._out.append(ev.StopContainer(event.container_id, False, reason))
                return
            container = pool.add(event.container_id, event.version_key, self._now)
            self._containers[event.container_id] = container
        elif container.state == "starting":
            pool = container.pool
            taken = self._now - container.clock_from
            pool.start_seconds += (max(taken, 0.001) - pool.start_seconds) * 0.3
        else:
            return
        if pool.removed is not None or event.version_key != pool.policy.version_key:
            pool.set_state(container, "ready", self._now)
            self._drain(container, pool.removed or "a new version was deployed")
            self._react(pool, [container])
            return
        container.slots = 1 if pool.policy.single_use else max(1, event.slots)
        container.pending_reason = ""
        pool.failures = pool.strikes = 0
        pool.not_before = 0.0
        if not pool.counts["ready"]:
            pool.stall_from = self._now
        pool.stall_next = self._now + STALL_SECONDS
        pool.set_credit(container)
        pool.set_state(container, "ready", self._now)
        self._react(pool, [container])

    def _worker_init_failed(self, event: ev.WorkerInitFailed) -> None:
        container = self._containers.get(event.container_id)
        if container is None:
            return
        pool = container.pool
        if container.state == "starting":
            self._to_stopping(container, self._now + GRACE_SECONDS)
            if container.version_key == pool.policy.version_key:
                self._back_off(pool)
                if not pool.counts["ready"]:
                    self._fail_queue(pool, ev.INIT_FAILURE, event.payload)
                    self._fail_requests(pool, "its container could not start")
        self._react(pool, [container])

    def _worker_draining(self, event: ev.WorkerDraining) -> None:
        container = self._containers.get(event.container_id)
        if container is not None and container.state in ("starting", "ready"):
            container.pool.set_state(container, "draining", self._now)
            container.deadline = FOREVER
            self._react(container.pool, [container])

    def _container_gone(self, event: ev.WorkerLost | ev.ContainerFailed) -> None:
        container = self._containers.pop(event.container_id, None)
        if container is None:
            return
        pool = container.pool
        was = container.state
        running = [item for _, item in container.running()]
        error = event.error if isinstance(event, ev.WorkerLost) else b""
        if error and len(running) == 1:
            self._fail(pool, running[0], error)
        else:
            # Of several, nobody knows whose work it was.
            self._count_losses(running, event.reason)
        items = pool.take_leases(container)
        pool.web_running -= container.web
        pool.discard(container)
        self._requeue(pool, items)
        if was == "starting" and container.version_key == pool.policy.version_key:
            self._start_failed(pool, event.reason)
        self._react(pool, [])

    def _fail(self, pool: Pool, item: Input, error: bytes) -> None:
        """End an input that would end its next container as well, once its retries are used up."""
        retries = pool.policy.retries
        if item.call is not None and retries is not None and item.attempts < retries.max_retries:
            item.attempts += 1
            self._retries += 1
            self._keep_tries([item])
        else:
            self._finish(item, ev.FAILURE, error)

    def _count_losses(self, items: list[Input], reason: str) -> None:
        for item in items:
            item.losses += 1
            self._losses += item.call is not None
            if item.losses > MAX_LOSSES:
                text = f"the input's container was lost {item.losses} times, the last time: {reason}"
                self._finish(item, ev.INTERNAL, text.encode())
        self._keep_tries(items)

    def _keep_tries(self, items: Iterable[Input]) -> None:
        """Have the store know, of inputs that a durable call still waits for, how often they were tried."""
        counted: dict[str, dict[int, ev.Tries]] = {}
        for item in items:
            call = item.call
            if call is not None and call.durable:
                counted.setdefault(call.call_id, {})[item.index] = (item.losses, item.attempts)
        self._out.extend(ev.KeepTries(call_id, tries) for call_id, tries in counted.items())

    def _start_failed(self, pool: Pool, reason: str) -> None:
        self._back_off(pool)
        pool.strikes += 1
        if pool.strikes >= MAX_STRIKES and not pool.counts["ready"]:
            text = f"{pool.strikes} containers in a row ended before they were ready, the last: {reason}"
            self._fail_queue(pool, ev.INTERNAL, text.encode())
            self._fail_requests(pool, text)

    def _fail_requests(self, pool: Pool, reason: str) -> None:
        if pool.web_waiting:
            pool.web_waiting = 0
            self._out.append(ev.FailRequests(pool.function_id, reason))

    def _back_off(self, pool: Pool) -> None:
        pool.failures += 1
        tries = pool.strikes if pool.queued else pool.failures - 1
        pool.not_before = self._now + min(MAX_BACKOFF, FIRST_BACKOFF * 2.0 ** min(tries, 10))

    def _drain(self, container: Container, reason: str) -> None:
        container.pool.set_state(container, "draining", self._now)
        container.deadline = FOREVER
        self._out.append(ev.DrainContainer(container.container_id, reason))

    def _retire(self, container: Container, reason: str) -> None:
        """End a container that is not wanted any more; a running input is let finish."""
        if container.state == "starting":
            self._to_stopping(container, self._now + EXIT_SECONDS)
            self._out.append(ev.StopContainer(container.container_id, False, reason))
        elif container.state == "ready":
            self._drain(container, reason)

    def _force_stop(self, container: Container, reason: str) -> None:
        items = container.pool.take_leases(container)
        self._to_stopping(container, self._now + EXIT_SECONDS)
        self._out.append(ev.StopContainer(container.container_id, True, reason))
        self._requeue(container.pool, items)

    def _to_stopping(self, container: Container, deadline: float) -> None:
        container.pool.set_state(container, "stopping", self._now)
        container.deadline = deadline
        container.pending_reason = ""

    # ---- the review of a pool: its containers against their limits, its queue against its containers

    def _review(self, pool: Pool) -> None:
        """Look at all of a pool: when its time has come, and after what concerns many containers."""
        pool.check_at = FOREVER
        self._react(pool, list(pool.containers.values()))

    def _react(self, pool: Pool, touched: list[Container]) -> None:
        """Look at the containers that an event touched, and at the queue; costs nothing for the others."""
        now = self._now
        if pool.delayed and pool.delayed[0][0] <= now:
            if not pool.queue:
                pool.stall_from = now
            while pool.delayed and pool.delayed[0][0] <= now:
                pool.queue.append(heappop(pool.delayed)[2])
        for container in touched:
            pool.check_at = min(pool.check_at, self._check(pool, container))
        wake = pool.delayed[0][0] if pool.delayed else FOREVER
        self._next_lease = pool.feed(self._next_lease, self._out)
        if pool.removed is not None:
            if not pool.containers and not pool.requested:
                self._pools.pop(pool.function_id, None)
                pool.wake_at = FOREVER
                return
        else:
            wake = min(wake, self._scale(pool))
        if pool.leased:
            pool.check_at = min(pool.check_at, now + CHECK_SECONDS)
        wake = min(wake, pool.check_at)
        if wake < FOREVER:
            self._arm(pool, max(wake, now + 0.001))

    def _check(self, pool: Pool, container: Container) -> float:
        """Hold one container to its time limits; gives when to look again."""
        now = self._now
        policy = pool.policy
        state = container.state
        if state == "starting":
            if container.pending_reason:
                idle = not (pool.queued or pool.delayed or pool.leased or pool.web_running)
                if idle and pool.counts["ready"] + pool.starting > policy.min_containers:
                    self._retire(container, "not needed any more")
                    return container.deadline
                return now + CHECK_SECONDS
            limit = policy.startup_timeout if policy.startup_timeout is not None else policy.timeout
            end = container.clock_from + limit + GRACE_SECONDS
            if now >= end:
                reason = f"not ready after {limit:g} s: raise startup_timeout if it needs longer"
                self._force_stop(container, reason)
                self._start_failed(pool, reason)
                return container.deadline
            return end
        if state == "stopping":
            if now >= container.deadline:
                container.deadline = now + EXIT_SECONDS
                self._out.append(ev.StopContainer(container.container_id, True, "it did not end in time"))
            return container.deadline
        if container.leases:
            container.deadline = FOREVER
            return self._check_inputs(pool, container)
        if container.web:
            # Its worker holds requests to their time.
            container.deadline = FOREVER
            return FOREVER
        if state == "draining":
            if container.deadline == FOREVER:
                container.deadline = now + policy.linger + EXIT_SECONDS
            if now >= container.deadline:
                self._force_stop(container, "it did not end after its drain")
            return container.deadline
        return FOREVER

    def _check_inputs(self, pool: Pool, container: Container) -> float:
        now = self._now
        # A batch may have to wait for the one before it.
        turns = 1 if pool.policy.batch_size == 1 else 2
        limit = turns * pool.policy.timeout + CLEANUP_SECONDS + GRACE_SECONDS
        seen: dict[int, float] = {}
        stuck: list[Input] = []
        for lease, item in container.running():
            since = seen[lease] = container.running_since.get(lease, now)
            if now - since >= limit:
                stuck.append(item)
        container.running_since = seen
        if not stuck:
            return min(min(seen.values()) + limit, now + min(CHECK_SECONDS, limit / 4))
        text = f"the input ran longer than its timeout of {pool.policy.timeout:g} s and its worker is silent"
        retries = pool.policy.retries
        for item in stuck:
            if item.call is not None and retries is not None and item.attempts < retries.max_retries:
                item.attempts += 1
                self._retries += 1
            else:
                self._finish(item, ev.TIMEOUT, text.encode())
        self._force_stop(container, text)
        return container.deadline

    def _capacity_changed(self, event: ev.CapacityChanged) -> None:
        self._autoscaler.cores = max(1, event.cores)
        self._autoscaler.default_max_containers = max(1, event.default_max_containers)
        for pool in self._pools.values():
            if pool.queued:
                self._review(pool)

    def _worker_usage(self, event: ev.WorkerUsage) -> None:
        container = self._containers.get(event.container_id)
        if container is None or not container.leases:
            return
        pool = container.pool
        running = min(len(container.leases), container.slots)
        wanted, seconds = event.usage
        pool.learn_cpu(wanted, seconds * running)
        if pool.queue:
            self._review(pool)

    def _scale(self, pool: Pool) -> float:
        """Start and drain containers; gives when to look again."""
        now = self._now
        policy = pool.policy
        if policy.max_containers is not None and pool.alive > policy.max_containers:
            self._shrink(pool, pool.alive - policy.max_containers)
        queued = pool.queued
        if now < pool.not_before:
            return pool.not_before
        silent = now - pool.stall_from if queued and pool.counts["ready"] else 0.0
        stalled = bool(queued) and now - pool.stall_from >= STALL_SECONDS and now >= pool.stall_next
        load = Load(
            queued=queued,
            leased=pool.leased + pool.web_running,
            ready=pool.counts["ready"],
            busy=pool.busy_now,
            starting=pool.starting,
            winding_down=pool.counts["draining"] + pool.counts["stopping"],
            average=pool.average,
            start_seconds=pool.start_seconds,
            silent=silent,
            stalled=stalled,
            cpu_share=pool.cpu_share,
        )
        if stalled:
            pool.stall_next = now + STALL_SECONDS
            if policy.max_containers is None and pool.alive >= self._autoscaler.worthwhile(policy, load):
                load.blocked = self._blocked(pool)
        count = self._autoscaler.to_start(policy, load)
        if count:
            version = policy.version_key
            pool.requested[version] = pool.requested.get(version, 0) + count
            self._out.append(ev.StartContainers(pool.function_id, version, count))
        wake = max(now + STALL_SECONDS / 2, pool.stall_next) if queued else FOREVER
        if load.ready > load.busy and not queued:
            wake = min(wake, self._scale_in(pool, load))
        return wake

    def _scale_in(self, pool: Pool, load: Load) -> float:
        now = self._now
        at_once = self._autoscaler.over_ceiling(pool.policy, load)
        allowed = self._autoscaler.to_drain(pool.policy, load)
        if at_once <= 0:
            if allowed <= 0:
                return FOREVER
            if now < pool.idle_until:
                return pool.idle_until
        pool.idle_until = 0.0
        for since, container_id in self._idle(pool):
            if at_once > 0:
                self._drain(pool.containers[container_id], "more containers than may be")
                at_once -= 1
            elif allowed <= 0:
                break
            elif now - since >= pool.policy.scaledown_window:
                self._drain(pool.containers[container_id], "idle for its scaledown window")
            else:
                pool.idle_until = since + pool.policy.scaledown_window
                return pool.idle_until
            allowed -= 1
        return FOREVER

    def _idle(self, pool: Pool) -> list[tuple[float, str]]:
        return sorted(
            (c.idle_since, c.container_id) for c in pool.free.values() if not c.leases and not c.web
        )

    def _shrink(self, pool: Pool, count: int) -> None:
        """Go below a ceiling that was lowered: what starts is not needed, what runs may finish its inputs."""
        reason = "max_containers was lowered"
        starting = [c for c in pool.containers.values() if c.state == "starting"]
        for container in starting[:count]:
            self._retire(container, reason)
            pool.check_at = min(pool.check_at, container.deadline)
        count -= len(starting)
        if count > 0:
            ready = [c for c in pool.containers.values() if c.state == "ready"]
            for container in sorted(ready, key=lambda c: (len(c.leases) + c.web, c.idle_since))[:count]:
                self._drain(container, reason)
                pool.check_at = min(pool.check_at, self._check(pool, container))

    def _blocked(self, pool: Pool) -> int:
        """How many busy containers wait for calls that were made inside them."""
        return sum(
            1
            for c in pool.containers.values()
            if c.leases and any(self._calls[x].pending for x in self._owners.get(c.container_id, ()))
        )
