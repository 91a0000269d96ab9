"""A simulated cluster for autoscaling policies: a clock, arrivals, placement, containers that run inputs.

A policy is a ``Controller``: it hears of arrivals, ready containers and ended inputs, and starts, feeds and
ends containers through the ``World``. Nothing is random here: the same trace gives the same history.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

EXIT_SECONDS = 0.05
"""From an idle container being told to end to its end."""


@dataclass(frozen=True)
class Arrival:
    """One input: when it is submitted and how long it runs, in seconds."""

    at: float
    seconds: float


@dataclass(frozen=True)
class Trace:
    """Inputs of one Function, and how that Function is configured.

    Attributes:
        name: of the trace.
        arrivals: in order of time.
        slots: inputs one container runs at a time.
        max_containers: the ceiling.
    """

    name: str
    arrivals: tuple[Arrival, ...]
    slots: int = 1
    max_containers: int = 1000


@dataclass(frozen=True)
class Placement:
    """How an engine places containers: one takes ``seconds`` to be ready, ``rate`` of them begin a second."""

    seconds: float = 0.45
    rate: float = 200.0


@dataclass
class Simulated:
    """A container. ``running`` holds the inputs it runs now, ``waiting`` those it holds beyond them."""

    name: str
    begun: float
    ready_at: float | None = None
    ended_at: float | None = None
    draining: bool = False
    running: set[int] = field(default_factory=set)
    waiting: list[int] = field(default_factory=list)


class Controller(ABC):
    """An autoscaling policy and the way inputs get to containers under it."""

    name: str

    def begin(self, world: World) -> None:
        """Take hold of the world, before the first arrival."""
        self.world = world

    @abstractmethod
    def arrived(self, indexes: Sequence[int]) -> None:
        """These inputs were submitted, now."""

    @abstractmethod
    def ready(self, container: Simulated) -> None:
        """A container takes inputs from now on."""

    @abstractmethod
    def finished(self, container: Simulated, index: int) -> None:
        """A container ended an input; its slot is free (and may be taken by the next that it holds)."""

    def ended(self, container: Simulated) -> None:
        """A container is gone."""
        return


@dataclass(frozen=True)
class Sample:
    """The state from one moment on."""

    at: float
    alive: int
    busy: int
    queued: int


@dataclass
class History:
    """What happened.

    Attributes:
        waits: seconds from submission to start, by input.
        served: how often each input was run to its end.
        peak: the most containers that were alive at once.
        started: containers started.
        container_seconds: from each container's start to its end.
        busy_seconds: of user code.
        samples: the state after each change.
        end: when the last container was gone.
    """

    waits: list[float]
    served: list[int]
    peak: int
    started: int
    container_seconds: float
    busy_seconds: float
    samples: list[Sample]
    end: float

    @property
    def waste(self) -> float:
        """Container seconds beside those of user code (a container with one slot; else less)."""
        return self.container_seconds - self.busy_seconds

    def wait(self, share: float) -> float:
        """The wait that this share of the inputs does not exceed."""
        ordered = sorted(self.waits)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class World:
    """Runs one trace under one controller."""

    def __init__(self, trace: Trace, placement: Placement, controller: Controller) -> None:
        self.trace = trace
        self.placement = placement
        self.controller = controller
        self.now = 0.0
        self.containers: dict[str, Simulated] = {}
        self.queued = 0
        self.busy = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._names = count(1)
        self._placer_free = 0.0
        inputs = len(trace.arrivals)
        self._history = History([0.0] * inputs, [0] * inputs, 0, 0, 0.0, 0.0, [], 0.0)

    def run(self) -> History:
        """Run until nothing is left to happen."""
        self.controller.begin(self)
        batches: dict[float, list[int]] = {}
        for index, arrival in enumerate(self.trace.arrivals):
            batches.setdefault(arrival.at, []).append(index)
        for at, indexes in batches.items():
            self.at(at, lambda indexes=indexes: self._arrive(indexes))  # type: ignore[misc]
        while self._events:
            self.now, _, action = heapq.heappop(self._events)
            action()
            self._sample()
        self._history.end = max((x.at for x in self._history.samples), default=0.0)
        return self._history

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do something later."""
        heapq.heappush(self._events, (max(when, self.now), next(self._order), action))

    def start(self) -> Simulated:
        """Start a container; ``Controller.ready`` says when it takes inputs."""
        container = Simulated(f"ta-{next(self._names)}", self.now)
        self.containers[container.name] = container
        self._history.started += 1
        self._history.peak = max(self._history.peak, len(self.containers))
        self._placer_free = max(self.now, self._placer_free) + 1.0 / self.placement.rate
        self.at(self._placer_free + self.placement.seconds, lambda: self._ready(container))
        return container

    def give(self, container: Simulated, index: int) -> None:
        """Hand an input to a container, which runs it when a slot is free."""
        container.waiting.append(index)
        self._fill(container)

    def take_back(self, container: Simulated) -> list[int]:
        """Take from a container what it has not begun."""
        taken, container.waiting = container.waiting, []
        self.queued += len(taken)
        return taken

    def drain(self, container: Simulated) -> None:
        """Let a container finish what it runs, and end."""
        container.draining = True
        if not container.running:
            self.at(self.now + EXIT_SECONDS, lambda: self._end(container))

    def _arrive(self, indexes: list[int]) -> None:
        self.queued += len(indexes)
        self.controller.arrived(indexes)

    def _ready(self, container: Simulated) -> None:
        if container.ended_at is None and not container.draining:
            container.ready_at = self.now
            self.controller.ready(container)

    def _fill(self, container: Simulated) -> None:
        while container.waiting and len(container.running) < self.trace.slots:
            index = container.waiting.pop(0)
            arrival = self.trace.arrivals[index]
            self._history.waits[index] = self.now - arrival.at
            container.running.add(index)
            self.busy += 1
            self.at(self.now + arrival.seconds, lambda index=index: self._finish(container, index))  # type: ignore[misc]

    def _finish(self, container: Simulated, index: int) -> None:
        container.running.discard(index)
        self.busy -= 1
        self._history.served[index] += 1
        self._history.busy_seconds += self.trace.arrivals[index].seconds
        self._fill(container)
        self.controller.finished(container, index)
        if container.draining and not container.running:
            self.at(self.now + EXIT_SECONDS, lambda: self._end(container))

    def _end(self, container: Simulated) -> None:
        if container.ended_at is not None:
            return
        container.ended_at = self.now
        del self.containers[container.name]
        self._history.container_seconds += self.now - container.begun
        self.controller.ended(container)

    def _sample(self) -> None:
        samples = self._history.samples
        sample = Sample(self.now, len(self.containers), self.busy, self.queued)
        if samples and samples[-1].at == self.now:
            samples[-1] = sample
        elif not samples or (sample.alive, sample.busy, sample.queued) != (
            samples[-1].alive,
            samples[-1].busy,
            samples[-1].queued,
        ):
            samples.append(sample)
