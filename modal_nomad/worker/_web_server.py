"""``@web_server``: requests go on to a port that user code listens at, byte by byte."""

import asyncio
import socket
from time import monotonic
from typing import TYPE_CHECKING, List, Optional

from ..exception import ExecutionError, FunctionTimeoutError
from ..wire.http1.exchange import Exchange, Limits, Router
from ..wire.http1.head import CHUNKED, end_to_end
from ..wire.http1.upstream import Upstream
from ..wire.spec import WebSpec
from ..wire.web import FIELDS, FULL, PATIENCE, REFUSED, patience_of, refusal

if TYPE_CHECKING:
    from ._web import WebPool

_LOOK_SECONDS = 0.02
_HOSTS = ("127.0.0.1", "::1")


class ServerRouter(Router):
    """Sends every request to one port of this machine.

    Args:
        pool: whose slots the requests take.
        spec: how it is served.
        name: of the Function, for messages.
    """

    def __init__(self, pool: "WebPool", spec: WebSpec, name: str) -> None:
        super().__init__(Limits(max_body=1 << 62))
        self._pool = pool
        self._spec = spec
        self._name = name
        self._host = _HOSTS[0]
        self._idle: List[Upstream] = []

    def check_free(self) -> None:
        """Check that nobody listens at the port before user code does. Raises ExecutionError."""
        for host in _HOSTS:
            if _accepts(host, self._spec.port):
                raise ExecutionError(
                    f"port {self._spec.port} of {self._name} is taken on this node, whose network containers "
                    "share here: use another port, or max_containers=1 where they meet each other"
                )

    async def wait(self) -> None:
        """Wait until user code listens. Raises FunctionTimeoutError."""
        deadline = monotonic() + self._spec.startup_timeout
        while True:
            for host in _HOSTS:
                try:
                    _, writer = await asyncio.open_connection(host, self._spec.port)
                except OSError:
                    continue
                writer.close()
                self._host = host
                return
            if monotonic() >= deadline:
                raise FunctionTimeoutError(
                    f"{self._name} did not listen on port {self._spec.port} within its startup_timeout of "
                    f"{self._spec.startup_timeout:g} s: raise startup_timeout"
                )
            await asyncio.sleep(_LOOK_SECONDS)

    def begin(self, exchange: Exchange) -> None:
        task = self._pool.loop.create_task(self._send(exchange))
        exchange.state = _Slot(self._pool, exchange, task)

    async def _send(self, exchange: Exchange) -> None:
        slot: _Slot = exchange.state
        patience = patience_of(exchange.request.value(PATIENCE))
        slot.entered = await self._pool.enter(slot, patience)
        if not slot.entered:
            proof = refusal(self._pool.key)
            exchange.refuse(421, "there is no place for it now", REFUSED + b": " + proof + FULL + b"\r\n")
            return
        if exchange.over:
            slot.end()
            return
        slot.timer = self._pool.loop.call_later(self._pool.timeout, slot.out_of_time)
        upstream = await self._connection()
        if exchange.over:
            if upstream is not None:
                self._keep(upstream)
        elif upstream is None:
            # Nobody can use this container any more.
            exchange.refuse(502, "the server of this endpoint does not listen any more")
            self._pool.request_drain()
        else:
            exchange.send(upstream, _head(exchange))

    async def _connection(self) -> Optional[Upstream]:
        if self._idle:
            return self._idle.pop()
        try:
            _, upstream = await self._pool.loop.create_connection(
                lambda: Upstream(self._keep, self._gone), self._host, self._spec.port
            )
        except OSError:
            return None
        return upstream

    def _keep(self, upstream: Upstream) -> None:
        self._idle.append(upstream)

    def _gone(self, upstream: Upstream) -> None:
        if upstream in self._idle:
            self._idle.remove(upstream)

    def failed(self, exchange: Exchange, again: bool) -> None:
        if again and not exchange.state.again:
            # Servers close idle connections just when they like.
            exchange.state.again = True
            exchange.state.resending = self._pool.loop.create_task(self._resend(exchange))
        else:
            exchange.refuse(502, "the server of this endpoint closed the connection unanswered")

    async def _resend(self, exchange: Exchange) -> None:
        for idle in list(self._idle):
            idle.abort()
        self._idle = []
        upstream = await self._connection()
        if exchange.over:
            if upstream is not None:
                self._keep(upstream)
        elif upstream is None:
            exchange.refuse(502, "the server of this endpoint does not listen any more")
        else:
            exchange.send(upstream, _head(exchange))

    def ended(self, exchange: Exchange) -> None:
        slot: Optional[_Slot] = exchange.state
        if slot is not None:
            slot.end()


class _Slot:
    """A request's place in the container."""

    def __init__(self, pool: "WebPool", exchange: Exchange, task: "asyncio.Task[None]") -> None:
        self.entered = False
        self.again = False
        self.resending: "Optional[asyncio.Task[None]]" = None
        self.timer: Optional[asyncio.TimerHandle] = None
        self._pool = pool
        self._exchange = exchange
        self._task = task

    def end(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        resending = self.resending
        if resending is not None and resending is not asyncio.current_task(self._pool.loop):
            resending.cancel()
        if self.entered:
            self.entered = False
            self._pool.leave(self)
        elif not self._task.done():
            self._task.cancel()

    def out_of_time(self) -> None:
        exchange, timeout = self._exchange, self._pool.timeout
        if exchange.answered or exchange.over:
            client = exchange.client
            exchange.end()
            if client is not None:
                client.transport.abort()
        else:
            exchange.refuse(504, f"the request ran longer than the Function's timeout of {timeout:g} s")

    def cancel(self) -> None:
        """Give the request up."""
        self._exchange.end()


def _head(exchange: Exchange) -> bytes:
    request = exchange.request
    lines = [b"%b %b HTTP/1.1" % (request.method, request.target)]
    lines += end_to_end(request.fields, request.nominated, FIELDS)
    if request.length == CHUNKED:
        lines.append(b"Transfer-Encoding: chunked")
    if request.upgrade:
        lines += [b"Connection: Upgrade", b"Upgrade: websocket"]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _accepts(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False
