"""The containers of one Function and the requests that wait for them. No sockets, no clock of its own."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from typing import Any

from modal_nomad.wire.http1.exchange import Exchange
from modal_nomad.wire.http1.upstream import Upstream
from modal_nomad.wire.web import refusal

BLOCKED_SECONDS = 1.0
"""A container that took no connection is left alone for so long, while there are others."""


class Instance:
    """A container that takes requests.

    Attributes:
        running: requests that it has from us.
        elsewhere: those that it has from other gateways, as far as we have heard.
        out: it gets no more.
        blocked_until: it took no connection or had no place, and is not asked before.
        refusal: what it proves with that it did not take a request.
        unmet_since: when it first took no connection; None while it takes them.
        idle: open connections without a request, by the method of the class that they lead to.
    """

    __slots__ = (
        "blocked_until",
        "container_id",
        "elsewhere",
        "host",
        "idle",
        "key",
        "out",
        "port",
        "refusal",
        "running",
        "unmet_since",
    )

    def __init__(self, container_id: str, host: str, port: int, key: str) -> None:
        self.container_id = container_id
        self.host = host
        self.port = port
        self.key = key.encode()
        self.refusal = refusal(self.key)
        self.running = 0
        self.elsewhere = 0
        self.out = False
        self.unmet_since: float | None = None
        self.blocked_until = 0.0
        self.idle: dict[str, list[Upstream]] = {}

    def close_idle(self) -> None:
        """Close the connections that carry nothing."""
        for connections in self.idle.values():
            for connection in connections:
                connection.abort()
        self.idle = {}


class Service:
    """One Function.

    Attributes:
        limit: requests that one container takes at a time.
        single_use: a container takes one request in its life.
        shared: other gateways have had requests for it.
        instances: the containers that take requests, by id.
        waiting: requests that no container had room for, the oldest first.
        finished: requests that ended since this was last asked.
        seconds: how long these took.
        turns: requests of other gateways that ended lately: so many of ours may be sent to containers that
            have no room, and wait there in turn with those of the others.
    """

    def __init__(self, function_id: str, limit: int, single_use: bool) -> None:
        self.turns = 0
        self.shared = False
        self.function_id = function_id
        self.limit = limit
        self.single_use = single_use
        self.instances: dict[str, Instance] = {}
        self.waiting: deque[Exchange] = deque()
        self.finished = 0
        self.seconds = 0.0
        # Those out of rotation that still answer something.
        self.leaving: dict[str, Instance] = {}
        self._open: list[Instance] = []

    def add(self, instance: Instance) -> None:
        """Take a container into rotation."""
        self.take_out(instance.container_id)
        self.instances[instance.container_id] = instance
        self._open.append(instance)

    def take_out(self, container_id: str) -> Instance | None:
        """Give a container no more requests; what it has may end."""
        instance = self.instances.pop(container_id, None)
        if instance is None:
            return None
        instance.out = True
        self._open.remove(instance)
        instance.close_idle()
        if instance.running:
            self.leaving[container_id] = instance
        return instance

    def choose(self, now: float, tried: Any = ()) -> Instance | None:
        """Return the less busy of two containers picked at random, or any that has room; None for none.

        Args:
            now: the time.
            tried: containers that are chosen only where there are no others.
        """
        open_ = self._open
        if tried and all(x in tried for x in open_):
            tried = ()
        count = len(open_)
        if count == 1:
            only = open_[0]
            return only if self._free(only, now, tried) else None
        if count > 2:
            one, other = open_[random.randrange(count)], open_[random.randrange(count)]
            best = one if one.running + one.elsewhere <= other.running + other.elsewhere else other
            if self._free(best, now, tried):
                return best
        return min(
            (x for x in open_ if self._free(x, now, tried)),
            key=lambda x: x.running + x.elsewhere,
            default=None,
        )

    def _free(self, x: Instance, now: float, tried: Any) -> bool:
        # What other gateways send ends there as well: as many of ours may come in its place.
        others = x.elsewhere - self.turns if x.elsewhere > self.turns else 0
        return x.running + others < self.limit and x.blocked_until <= now and x not in tried

    def others(self, running: Mapping[str, int], finished: int) -> None:
        """Note what containers have from other gateways, and how many of those ended since the last time."""
        self.turns = finished
        if running or finished:
            self.shared = True
        for instance in self._open:
            instance.elsewhere = running.get(instance.container_id, 0)

    def begin(self, instance: Instance) -> bool:
        """Count a request that a container gets; True where it takes its turn there with those of others."""
        instance.running += 1
        in_turn = False
        if instance.elsewhere and instance.running + instance.elsewhere > self.limit and self.turns:
            self.turns -= 1
            in_turn = True
        if self.single_use:
            # Out of rotation after this one.
            self.instances.pop(instance.container_id, None)
            if instance in self._open:
                self._open.remove(instance)
            instance.out = True
            self.leaving[instance.container_id] = instance
        return in_turn

    def end(self, instance: Instance, seconds: float) -> None:
        """Count a request that a container no longer has."""
        self.finished += 1
        self.seconds += seconds
        self.back(instance)

    def back(self, instance: Instance) -> None:
        """Count a request that a container did not take."""
        instance.running -= 1
        if instance.out and not instance.running:
            self.leaving.pop(instance.container_id, None)
            instance.close_idle()

    def load(self) -> dict[str, int]:
        """Return how many requests each container has."""
        busy = {x.container_id: x.running for x in self.leaving.values()}
        for x in self.instances.values():
            if x.running:
                # Twice there where its worker lost its connection and came back amid a request.
                busy[x.container_id] = busy.get(x.container_id, 0) + x.running
        return busy
