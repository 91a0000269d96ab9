"""A request on its way through: where it came from, where it went, what is kept of it.

``Client`` is the connection that it came on, ``Upstream`` the one that it goes out on. Everything happens in
the callbacks of these: there is no task per request, nothing is collected, and each side is read no faster
than the other takes it.
"""

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any, FrozenSet, List, Optional, Set

from .head import Request, Response, end_to_end

if TYPE_CHECKING:
    from .client import Client
    from .upstream import Upstream

KEPT_BYTES = 64 * 1024
"""So much of a request is kept while nobody takes it, and for another try."""
IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"))
FOREVER = float("inf")
NOTHING: FrozenSet[bytes] = frozenset()
LENGTH: FrozenSet[bytes] = frozenset((b"content-length",))
"""Not for what has no body: some readers would wait for one."""


class Limits:
    """Times and sizes that a client is held to; infinite where it is trusted.

    Args:
        head_seconds: for a request's head to come in.
        idle_seconds: that a connection is kept between requests.
        stall_seconds: that a body may make no progress.
        answer_seconds: until ``Router.late`` is told that an answer has not begun.
        max_body: bytes of a request's body.
    """

    def __init__(
        self,
        head_seconds: float = FOREVER,
        idle_seconds: float = FOREVER,
        stall_seconds: float = FOREVER,
        answer_seconds: float = FOREVER,
        max_body: int = 4 << 30,
    ) -> None:
        self.head_seconds = head_seconds
        self.idle_seconds = idle_seconds
        self.stall_seconds = stall_seconds
        self.answer_seconds = answer_seconds
        self.max_body = max_body


class Router:
    """Decides where requests go. What serves a port subclasses it.

    Attributes:
        limits: for its clients.
        clients: the open connections.
        half_closing: clients may shut their writing side down and wait for the answer.
    """

    half_closing = False

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.clients: Set[Client] = set()

    def begin(self, exchange: "Exchange") -> None:
        """Take a request: now or later ``exchange.send`` or ``exchange.refuse`` is called."""
        raise NotImplementedError

    def failed(self, exchange: "Exchange", again: bool) -> None:
        """Its connection broke unanswered: ``exchange.send`` it again where that may be, or refuse it."""
        exchange.refuse(502, "the container ended before it answered")

    def refused(self, exchange: "Exchange", proof: bytes) -> bool:
        """Say whether a container's word that it did not take a request is its own; ``failed`` is next."""
        return False

    def ended(self, exchange: "Exchange") -> None:
        """All is over: answered, failed or left. Said once for each ``begin``."""

    def late(self, exchange: "Exchange") -> None:
        """No answer has begun for ``answer_seconds``."""

    def sweep(self, now: float) -> None:
        """Hold the clients to their times; to be called about every second."""
        for client in list(self.clients):
            client.check(now)


class Exchange:
    """One request and its answer.

    Attributes:
        request: the head.
        client: who gets the answer; None while nobody waits on a connection.
        upstream: the connection it was sent on.
        complete: all of the request came in.
        answered: the head of the answer came.
        over: nothing more will happen.
        state: the router's own.
    """

    __slots__ = (
        "_kept",
        "_kept_size",
        "answered",
        "client",
        "complete",
        "over",
        "replayable",
        "request",
        "router",
        "since",
        "state",
        "upstream",
    )

    def __init__(self, request: Request, client: "Client") -> None:
        self.request = request
        self.router = client.router
        self.client: Optional[Client] = client
        self.upstream: Optional[Upstream] = None
        self.complete = request.length == 0
        self.answered = False
        self.over = False
        self.replayable = True
        self.since = monotonic()
        self.state: Any = None
        self._kept: List[bytes] = []
        self._kept_size = 0

    # --- towards the container

    def send(self, upstream: "Upstream", head: bytes) -> None:
        """Send the request on a connection that is free."""
        if upstream.gone:
            # Lost between its making and now, and so it told nobody.
            asyncio.get_running_loop().call_soon(self._unsent)
            return
        self.upstream = upstream
        upstream.exchange = self
        if self.client is not None:
            self.client.resume()
        kept = self._kept
        upstream.transport.write(b"".join([head, *kept]) if kept else head)
        if self._kept_size > KEPT_BYTES:
            self._forget()

    def _unsent(self) -> None:
        if not self.over:
            self.router.failed(self, self.replayable)

    def body(self, data: bytes) -> None:
        """Pass a part of the body on, as the container is to see it."""
        upstream = self.upstream
        if upstream is None or self.replayable:
            self._kept.append(data)
            self._kept_size += len(data)
            if self._kept_size > KEPT_BYTES:
                if upstream is None:
                    if self.client is not None:
                        self.client.pause()
                else:
                    self._forget()
        if upstream is not None:
            upstream.transport.write(data)

    def _forget(self) -> None:
        self.replayable = False
        self._kept = []
        self._kept_size = 0

    # --- towards the client

    def refuse(self, status: int, text: str, fields: bytes = b"") -> None:
        """Answer in the container's place, and end."""
        client = self.client
        self.end()
        if client is not None:
            client.answer(status, text, fields)

    def interim(self, response: Response) -> None:
        client = self.client
        if client is None or client.minor == 0:
            return
        if response.status == 100 and not self.request.expects:
            return
        lines = end_to_end(response.fields, response.nominated, LENGTH)
        client.transport.write(
            b"\r\n".join([b"HTTP/1.1 %d %b" % (response.status, response.reason), *lines]) + b"\r\n\r\n"
        )

    def end(self) -> None:
        """Be over: the connection to the container is closed unless it was given back before."""
        if self.over:
            return
        self.over = True
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.exchange = None
            upstream.abort()
        client, self.client = self.client, None
        if client is not None and client.exchange is self:
            client.exchange = None
        self._kept = []
        self.router.ended(self)

    def lost(self) -> None:
        """The connection to the container broke."""
        self.upstream = None
        client = self.client
        if self.answered:
            self.end()
            if client is not None:
                client.transport.abort()
            return
        again = self.replayable and self.request.method in IDEMPOTENT
        self.router.failed(self, again)
