"""The two policies that the simulator compares: ours, as the dispatcher runs it, and Knative's default."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from benchmarks.autoscaler_world import Controller, Simulated, World
from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher.call_engine import CallEngine

GIVE_BACK_SECONDS = 0.02
"""A worker whose slots have been busy for this long gives back what it holds beyond them."""


class Ours(Controller):
    """The call engine itself, with every event and command that the dispatcher would pass on.

    Args:
        name: in tables and pictures.
        policy: changes to the Function's policy.
    """

    name = "modal-nomad"

    def __init__(self, name: str = name, **policy: object) -> None:
        self.name = name
        self._changes = policy
        self._engine = CallEngine(default_max_containers=100)
        self._leases: dict[str, dict[int, int]] = {}
        self._tick_at = math.inf

    def begin(self, world: World) -> None:
        """Make the Function known."""
        super().begin(world)
        trace = world.trace
        values: dict[str, object] = {
            "max_concurrent_inputs": trace.slots,
            "max_containers": trace.max_containers,
            **self._changes,
        }
        self._do(ev.FunctionAdded("fu", ev.FunctionPolicy("v1", **values)))  # type: ignore[arg-type]

    def arrived(self, indexes: Sequence[int]) -> None:
        """Submit the inputs."""
        self._do(ev.InputsSubmitted("fc", "fu", False, None, [(i, b"", 0) for i in indexes]))

    def ready(self, container: Simulated) -> None:
        """Take the container into service."""
        self._leases[container.name] = {}
        self._do(ev.WorkerReady(container.name, "fu", "v1", self.world.trace.slots))

    def finished(self, container: Simulated, index: int) -> None:
        """Return the output."""
        lease = self._leases[container.name].pop(index)
        seconds = self.world.trace.arrivals[index].seconds
        self._do(ev.OutputsReturned(container.name, [(lease, 0, b"", 0)], seconds))
        self._watch(container)

    def ended(self, container: Simulated) -> None:
        """Tell of the container's end."""
        self._do(ev.WorkerLost(container.name, "drained"))

    def _do(self, event: ev.Event) -> None:
        world = self.world
        for command in self._engine.handle(event, world.now):
            if isinstance(command, ev.StartContainers):
                names = [world.start().name for _ in range(command.count)]
                self._do(ev.ContainersStarting("fu", "v1", names))
            elif isinstance(command, ev.Lease):
                container = world.containers[command.container_id]
                for lease, _, index, _, _ in command.inputs:
                    self._leases[container.name][index] = lease
                    world.queued -= 1
                    world.give(container, index)
                self._watch(container)
            elif isinstance(command, (ev.DrainContainer, ev.StopContainer)):
                world.drain(world.containers[command.container_id])
        wakeup = self._engine.next_wakeup()
        if wakeup is not None and (wakeup < self._tick_at or self._tick_at < world.now):
            self._tick_at = wakeup
            world.at(wakeup, lambda: self._tick(wakeup))

    def _tick(self, when: float) -> None:
        if when == self._tick_at:
            self._tick_at = math.inf
            self._do(ev.Tick())

    def _watch(self, container: Simulated) -> None:
        if container.waiting:
            held = set(container.running)
            self.world.at(self.world.now + GIVE_BACK_SECONDS, lambda: self._give_back(container, held))

    def _give_back(self, container: Simulated, held: set[int]) -> None:
        if container.waiting and held <= container.running:
            back = self.world.take_back(container)
            leases = [self._leases[container.name].pop(i) for i in back]
            self._do(ev.InputsGivenBack(container.name, leases))


class Knative(Controller):
    """Knative's pod autoscaler with its published defaults.

    Every two seconds the average concurrency (running and waiting inputs) of a stable and of a panic window
    is divided by the target per container. From zero it acts at once. When the panic window asks for twice
    what is ready it panics: it only grows until a stable window has passed without cause. Between its limits
    the baseline is given the benefit of every doubt: waiting inputs go to the first free slot, first in,
    first out, and idle containers are the first to end.
    """

    name = "Knative KPA"

    TICK = 2.0
    STABLE_WINDOW = 60.0
    PANIC_WINDOW = 6.0
    PANIC_THRESHOLD = 2.0
    TARGET_UTILIZATION = 0.7
    MAX_SCALE_UP_RATE = 1000.0
    MAX_SCALE_DOWN_RATE = 2.0
    SCALE_TO_ZERO_GRACE = 30.0

    def __init__(self) -> None:
        self._queue: deque[int] = deque()
        self._buckets: deque[tuple[float, float]] = deque()
        self._level_since = 0.0
        self._level = 0
        self._panic_at: float | None = None
        self._panic_most = 0
        self._idle_from: float | None = None
        self._ticking = False
        self._next_bucket = 0.0
        self._free: dict[str, Simulated] = {}

    def arrived(self, indexes: Sequence[int]) -> None:
        """Queue the inputs; from zero, decide at once."""
        self._account()
        self._queue.extend(indexes)
        self._feed()
        if not self._ticking:
            self._ticking = True
            self._next_bucket = self.world.now
            self._buckets.clear()
            self._tick()

    def ready(self, container: Simulated) -> None:
        """Give it what waits."""
        self._account()
        self._free[container.name] = container
        self._feed()

    def finished(self, container: Simulated, index: int) -> None:
        """Give it what waits."""
        self._account()
        if not container.draining:
            self._free[container.name] = container
            self._feed()

    def _concurrency(self) -> int:
        return len(self._queue) + self.world.busy

    def _account(self) -> None:
        """Close the books up to now: concurrency times seconds, in buckets of a second."""
        now = self.world.now
        if self._ticking and now > self._level_since:
            self._buckets.append((now, self._level * (now - self._level_since)))
        self._level_since = now

    def _feed(self) -> None:
        slots = self.world.trace.slots
        while self._queue and self._free:
            name, container = next(iter(self._free.items()))
            if container.draining or len(container.running) >= slots:
                del self._free[name]
                continue
            self.world.queued -= 1
            self.world.give(container, self._queue.popleft())
        self._level = self._concurrency()

    def _average(self, window: float) -> float:
        now = self.world.now
        span = max(min(window, now - self._next_bucket), 1.0)
        return sum(amount for at, amount in self._buckets if at > now - window) / span

    def _tick(self) -> None:
        world = self.world
        now = world.now
        self._account()
        while self._buckets and self._buckets[0][0] <= now - self.STABLE_WINDOW:
            self._buckets.popleft()
        alive = [c for c in world.containers.values() if not c.draining]
        ready = max(1, sum(c.ready_at is not None for c in alive))
        target = world.trace.slots * self.TARGET_UTILIZATION
        stable, panic = self._average(self.STABLE_WINDOW), self._average(self.PANIC_WINDOW)
        if now == self._next_bucket:
            # From zero the first input is reported as it comes.
            stable = panic = float(self._concurrency())
        low, high = ready // self.MAX_SCALE_DOWN_RATE, math.ceil(self.MAX_SCALE_UP_RATE * ready)
        want_stable, want_panic = math.ceil(stable / target), math.ceil(panic / target)
        wanted = int(min(max(want_stable, low), high))
        hurried = int(min(max(want_panic, low), high))
        if want_panic / ready >= self.PANIC_THRESHOLD:
            self._panic_at = now
        elif self._panic_at is not None and now - self._panic_at > self.STABLE_WINDOW:
            self._panic_at, self._panic_most = None, 0
        if self._panic_at is not None:
            self._panic_most = wanted = max(wanted, hurried, self._panic_most)
        wanted = min(wanted, world.trace.max_containers)
        if wanted or self._concurrency():
            self._idle_from = None
            wanted = max(wanted, 1)
        else:
            # The last one stays until the grace is over.
            self._idle_from = now if self._idle_from is None else self._idle_from
            wanted = 0 if now - self._idle_from >= self.SCALE_TO_ZERO_GRACE else min(1, len(alive))
        room = world.trace.max_containers - len(world.containers)
        for _ in range(min(wanted - len(alive), room)):
            world.start()
        if wanted < len(alive):
            unneeded = sorted(alive, key=lambda c: (len(c.running), c.ready_at is not None, -c.begun))
            for container in unneeded[: len(alive) - wanted]:
                self._free.pop(container.name, None)
                world.drain(container)
        if not world.containers and not self._queue:
            self._ticking = False
            return
        world.at(now + self.TICK, self._tick)
