"""What the gateway knows of one request on its way to a container, and whom it tells how many there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from modal_nomad.dispatcher.gateway.balancer import Instance, Service
from modal_nomad.dispatcher.gateway.routes import Route

NO_ROOM, GONE = "no room", "gone"
"""Why a container did not take a request."""
AT_ONCE, IN_TURN = b"30", b"500"
"""Milliseconds that a request may wait in a container: in one with room, and in turn with those of others."""


class Sink(Protocol):
    """Who is told what the gateway sees: the dispatcher, or the connection to one."""

    def web_load(
        self, function_id: str, waiting: int, running: Mapping[str, int], finished: int, seconds: float
    ) -> None:
        """Take a Function's load: requests that wait, those that each container has, those that ended."""


class State:
    """What the gateway knows of one request."""

    __slots__ = (
        "broken",
        "call_id",
        "call_since",
        "instance",
        "left_at",
        "patience",
        "prefix",
        "refused",
        "route",
        "service",
        "tried",
    )

    def __init__(self, route: Route, prefix: str, service: Service) -> None:
        self.route = route
        self.prefix = prefix
        self.service = service
        self.call_id = ""
        self.instance: Instance | None = None
        self.tried: list[Instance] = []
        # How often a container broke over it.
        self.broken = 0
        # Why the last one did not take it; empty where it did.
        self.refused = ""
        self.patience = AT_ONCE
        self.call_since = 0.0
        self.left_at = 0.0
