"""How many containers a Function should have: a pure function of its policy and its load.

A container is worth starting only when the queue will outlive the start. So the work at hand
(outstanding inputs times their average duration) decides, not the number of inputs: ten thousand
inputs of a microsecond start nothing, ten of a minute start ten.
"""

from __future__ import annotations

from dataclasses import dataclass

from modal_nomad.dispatcher._events import FunctionPolicy

STALL_SECONDS = 0.05
"""A queue that waits this long without any output anywhere is stalled: its containers run something long,
or wait for a child call that stands in this very queue."""

FIRST_BURST = 4
"""Containers started at least for a burst of inputs whose duration nobody knows yet."""

LARGEST_BURST = 16
"""The same where the cores are known: one container a core, up to this many."""

UNKNOWN_SECONDS = 0.002
"""What an input is taken to last while nobody knows: a large burst starts more than ``FIRST_BURST``."""

PATIENCE_FACTOR = 2.0
"""Inputs that have run for t without an output are taken to last this many t: durations have long tails."""

BLIND_FACTOR = 2
"""Containers per core while nobody knows how much of a processor an input uses."""

SATURATION = 0.8
"""The part of the cores that one Function's inputs may keep busy. Below 1, because inputs that share a
processor seem to use less of it the more they are, and each estimate would then ask for more."""

IDLE_SHARE = 0.001
"""An input that uses less of a processor than this is taken to use this much."""

BLOCKED_FACTOR = 16
"""Containers that wait for child calls may be replaced up to this multiple of the default ceiling."""


@dataclass(slots=True)
class Load:
    """What the autoscaler looks at.

    Attributes:
        queued: inputs not leased to any container.
        leased: inputs leased to ready containers.
        ready: routable containers; ``busy`` of them hold inputs.
        starting: containers asked for and not ready yet.
        winding_down: containers that drain or stop.
        average: seconds one input takes, None until known.
        start_seconds: seconds a container takes to be ready.
        silent: seconds that inputs have waited without an output, though containers are ready.
        stalled: the queue waited STALL_SECONDS without an output.
        blocked: busy containers that wait for calls they made.
        cpu_share: how much of a processor one running input uses, None until known.
    """

    queued: int
    leased: int
    ready: int
    busy: int
    starting: int
    winding_down: int
    average: float | None
    start_seconds: float
    silent: float = 0.0
    stalled: bool = False
    blocked: int = 0
    cpu_share: float | None = None


class Autoscaler:
    """Decides starts and drains.

    Args:
        default_max_containers: the ceiling of Functions that name none. Containers blocked on child
            calls do not count against it, else a Function that calls itself could wait for ever.
        cores: of the nodes that containers are placed on. Functions that name no ceiling get no more
            containers than these can feed. None: not known, and not asked.
    """

    __slots__ = ("cores", "default_max_containers")

    def __init__(self, default_max_containers: int, cores: int | None = None) -> None:
        if default_max_containers < 1:
            raise ValueError("default_max_containers must be at least 1")
        self.default_max_containers = default_max_containers
        self.cores = cores

    def ceiling(self, policy: FunctionPolicy, blocked: int = 0) -> int:
        """The most containers the Function may have."""
        if policy.max_containers is not None:
            return policy.max_containers
        default = max(self.default_max_containers, policy.min_containers)
        return min(default + blocked, default * BLOCKED_FACTOR)

    def worthwhile(self, policy: FunctionPolicy, load: Load) -> int:
        """How many containers are worth having: more would only share the same processors.

        The inputs' own use of a processor decides: a Function that waits for the network gets many
        containers a core, one that computes gets one.
        """
        ceiling = self.ceiling(policy, load.blocked)
        cores = self.cores
        if cores is None or policy.max_containers is not None:
            return ceiling
        least = max(2, int(cores / policy.cpu) if policy.cpu else cores)
        if load.cpu_share is None:
            fed = BLIND_FACTOR * cores
        else:
            slots = 1 if policy.single_use else policy.max_concurrent_inputs
            fed = int(SATURATION * cores / max(load.cpu_share * slots, IDLE_SHARE))
        return min(ceiling, max(least, fed) + load.blocked)

    def to_start(self, policy: FunctionPolicy, load: Load) -> int:
        """How many containers to start now."""
        alive = load.ready + load.starting
        wanted = policy.min_containers
        if load.queued or load.leased:
            demand = min(self._for_demand(policy, load, alive), self.worthwhile(policy, load))
            wanted = max(wanted, demand + policy.buffer_containers)
        room = self.ceiling(policy, load.blocked) - alive
        if policy.max_containers is not None:
            # A ceiling the user named holds for containers that are on their way out, too.
            room -= load.winding_down
        return max(0, min(wanted - alive, room))

    def to_drain(self, policy: FunctionPolicy, load: Load) -> int:
        """How many of the containers idle beyond their window may drain now."""
        active = load.queued or load.leased
        keep = max(policy.min_containers, load.busy + (policy.buffer_containers if active else 0))
        return max(0, load.ready - keep)

    def over_ceiling(self, policy: FunctionPolicy, load: Load) -> int:
        """How many idle containers to drain at once, because there are more than may be."""
        return max(0, load.ready + load.starting - self.ceiling(policy, load.blocked))

    def _for_demand(self, policy: FunctionPolicy, load: Load, alive: int) -> int:
        slots = 1 if policy.single_use else policy.target_inputs or policy.max_concurrent_inputs
        outstanding = load.queued + load.leased
        needed = -(-outstanding // slots)
        if policy.single_use:
            return needed
        if load.average is None and not load.silent:
            return min(needed, self._first_burst(outstanding / slots, load.start_seconds))
        average = load.average or 0.0
        # No need to wait for outputs: what has run this long takes longer than that. Where outputs have
        # come before, one long input is no news before the silence has outlasted a container's start.
        if load.average is None or load.silent >= load.start_seconds:
            average = max(average, PATIENCE_FACTOR * load.silent)
        work = outstanding * average
        full = load.queued or outstanding > alive * slots
        if not full or (alive and work <= alive * slots * load.start_seconds):
            wanted = load.busy
        else:
            wanted = max(1, min(needed, int(work / (slots * load.start_seconds)) + 1))
        if load.stalled and load.queued and load.starting < max(1, load.ready):
            wanted = max(wanted, alive + min(max(1, load.ready), -(-load.queued // slots)))
        return wanted

    def _first_burst(self, rounds: float, start_seconds: float) -> int:
        """How many containers to start for inputs of which nothing is known; ``rounds`` of one container."""
        guess = int(rounds * UNKNOWN_SECONDS / start_seconds) + 1
        if self.cores is None:
            return max(FIRST_BURST, guess)
        return max(min(self.cores, LARGEST_BURST), min(self.cores, guess))
