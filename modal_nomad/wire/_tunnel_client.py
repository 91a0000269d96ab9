"""The container's side of a tunnel: a WebSocket to the dispatcher, and a connection for each that came in."""

import asyncio
import json
import sys
from contextlib import suppress
from typing import Any, Callable, Dict, Optional, Set
from urllib.parse import urlencode

from . import websocket
from .address import Address, parse_address
from .tunnels import PATH, UPGRADE, Framed, Plain

_ANSWER_SECONDS = 15.0
_SILENCE = 75.0
_FIRST_DELAY = 0.05
_LAST_DELAY = 2.0
_RETRY_SECONDS = 60.0
_HEAD_BYTES = 1 << 14
_HOSTS = ("127.0.0.1", "::1")


class Refused(Exception):
    """The dispatcher makes no tunnel; the text says why."""


class TunnelClient:
    """One tunnel. It lives on one event loop.

    When the connection to the dispatcher breaks it comes again, and asks for the same ports.

    Args:
        address: gives the server URL and the bearer token; it is awaited before every attempt.
        port: what the tunnel leads to.
        unencrypted: have a port without TLS as well.
        h2: offer HTTP/2 to who asks by TLS.

    Attributes:
        told: what the dispatcher said of the tunnel.
    """

    def __init__(
        self, address: Callable[[], Any], port: int, *, unencrypted: bool = False, h2: bool = False
    ) -> None:
        self.told: Dict[str, Any] = {}
        self._address = address
        self._port = port
        self._wanted = {"unencrypted": "1" if unencrypted else "0", "h2": "1" if h2 else "0"}
        self._control: Optional[_Control] = None
        self._tasks: "Set[asyncio.Task[None]]" = set()
        self._halves: Set[Any] = set()
        self._closed = False
        self._loop = asyncio.get_running_loop()

    async def open(self) -> Dict[str, Any]:
        """Have the dispatcher make the tunnel, and return what it says of it.

        Raises:
            Refused: it makes none.
            OSError: it cannot be reached.
        """
        await self._again()
        self._background(self._stay())
        return self.told

    async def close(self) -> None:
        """End the tunnel, and what goes through it."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._control is not None:
            self._control.close()
        for half in list(self._halves):
            half.abort()

    # --- the tunnel itself ------------------------------------------------------------------------

    async def _again(self) -> None:
        """Connect until the dispatcher is there."""
        give_up = self._loop.time() + _RETRY_SECONDS
        delay = _FIRST_DELAY
        while True:
            try:
                await self._connect()
                return
            except (OSError, asyncio.TimeoutError) as error:
                status = getattr(error, "status", 0)
                if status in (401, 403):
                    raise Refused(f"the dispatcher makes no tunnel: {error}") from None
                if self._loop.time() + delay > give_up:
                    raise
            await asyncio.sleep(delay)
            delay = min(_LAST_DELAY, delay * 2)

    async def _connect(self) -> None:
        url, token = await self._address()
        where = parse_address(url)
        query = dict(self._wanted, ticket=self.told.get("ticket", ""))
        request, accept = websocket.handshake(
            where.authority, f"{PATH}?{urlencode(query)}", {"Authorization": f"Bearer {token}"}
        )
        control = _Control(request, accept, self._come)
        await _dial(where, lambda: control)
        try:
            told = await asyncio.wait_for(control.told, _ANSWER_SECONDS)
        except BaseException:
            control.abort()
            raise
        if "refused" in told:
            control.abort()
            raise Refused(told["refused"])
        before, self.told, self._control = self.told, told, control
        for name in ("port", "unencrypted_port"):
            if before and before[name] != told[name]:
                sys.stderr.write(
                    f"modal-nomad worker: the tunnel to port {self._port} had to move from port "
                    f"{before[name]} to {told[name]}: the old one was taken when the dispatcher came back\n"
                )

    async def _stay(self) -> None:
        while not self._closed:
            control = self._control
            assert control is not None
            # Cancelling who waits must not be taken for its end.
            await asyncio.wait({control.gone})
            try:
                await self._again()
            except (OSError, asyncio.TimeoutError, Refused) as error:
                sys.stderr.write(f"modal-nomad worker: the tunnel to port {self._port} is lost: {error}\n")
                return

    # --- connections through it -------------------------------------------------------------------

    def _come(self, said: Dict[str, Any]) -> None:
        self._background(self._serve(said))

    async def _serve(self, said: Dict[str, Any]) -> None:
        """Join a connection that somebody made outside to one to the port."""
        number, (gateway, tag, key) = said["come"], said.get("at", ("", "", ""))
        tunnel_id, control = self.told["id"], self._control
        inside = Plain()
        try:
            await self._connect_inside(inside)
        except OSError:
            if control is not None:
                control.send(f"{number} {tag}".rstrip().encode())
            return
        inside.transport.pause_reading()
        self._keep(inside)
        try:
            # A gateway has those that came there, and gave a key for each.
            url, token = (gateway, key) if gateway else await self._address()
            where = parse_address(url)
            framed = _Fetched(where, f"{PATH}/{tunnel_id}/{number}", token)
            await _dial(where, lambda: framed)
            self._keep(framed)
            await asyncio.wait_for(framed.upgraded, _ANSWER_SECONDS)
        except (OSError, asyncio.TimeoutError):
            inside.abort()
            return
        except BaseException:
            inside.abort()
            raise
        framed.join(inside)

    async def _connect_inside(self, inside: Plain) -> None:
        failure: Optional[OSError] = None
        for host in _HOSTS:
            try:
                await self._loop.create_connection(lambda: inside, host, self._port)
                return
            except OSError as error:
                failure = failure or error
        assert failure is not None
        raise failure

    def _keep(self, half: Any) -> None:
        self._halves.add(half)
        half.on_lost = lambda: self._halves.discard(half)
        if half.lost:
            self._halves.discard(half)

    def _background(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _dial(where: Address, factory: Callable[[], asyncio.Protocol]) -> None:
    loop = asyncio.get_running_loop()
    if where.path:
        await loop.create_unix_connection(factory, where.path)
    elif where.tls:
        from .tls import client_context

        await loop.create_connection(factory, where.host, where.port, ssl=client_context())
    else:
        await loop.create_connection(factory, where.host, where.port)


class _Control(asyncio.Protocol):
    """The WebSocket that a tunnel lives as long as.

    Attributes:
        told: what the dispatcher says of the tunnel.
        gone: done when there is no connection any more.
    """

    def __init__(self, request: bytes, accept: str, come: Callable[[Dict[str, Any]], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self.told: "asyncio.Future[Dict[str, Any]]" = self._loop.create_future()
        self.gone: "asyncio.Future[None]" = self._loop.create_future()
        self._request = request
        self._decoder = websocket.Decoder(accept)
        self._come = come
        self._transport: Any = None
        self._heard = self._loop.time()
        self._timer = self._loop.call_later(_SILENCE / 3, self._watch)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        try:
            messages = self._decoder.feed(data)
            for opcode, payload in messages:
                if opcode == websocket.BINARY:
                    self._take(json.loads(payload))
                elif opcode == websocket.PING:
                    self._transport.write(websocket.encode(payload, websocket.PONG))
                elif opcode == websocket.CLOSE:
                    self._transport.close()
        except websocket.WebSocketError as error:
            self._fail(error)
            self._transport.abort()

    def _take(self, message: Dict[str, Any]) -> None:
        if not self.told.done():
            self.told.set_result(message)
        else:
            self._come(message)

    def send(self, data: bytes) -> None:
        """Send a message."""
        if not self.gone.done():
            self._transport.write(websocket.encode(data))

    def close(self) -> None:
        """Say that this is the end."""
        if not self.gone.done():
            self._transport.write(websocket.encode(b"\x03\xe8", websocket.CLOSE))
            self._transport.close()

    def abort(self) -> None:
        """Break it off."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, error: Optional[Exception]) -> None:
        self._timer.cancel()
        self._fail(error or ConnectionError("the dispatcher closed the connection"))
        if not self.gone.done():
            self.gone.set_result(None)

    def _fail(self, error: Exception) -> None:
        if not self.told.done():
            self.told.set_exception(error)
            # Nobody may be there to read it by now.
            self.told.exception()

    def _watch(self) -> None:
        if self._loop.time() - self._heard > _SILENCE:
            self.abort()
        else:
            self._timer = self._loop.call_later(_SILENCE / 3, self._watch)


class _Fetched(Framed):
    """The framed half, from its handshake on.

    Attributes:
        upgraded: done when the handshake is.
    """

    def __init__(self, where: Address, path: str, token: str) -> None:
        super().__init__()
        self.upgraded: "asyncio.Future[None]" = asyncio.get_running_loop().create_future()
        self._answer: Optional[bytes] = b""
        lines = (
            f"GET {path} HTTP/1.1",
            f"Host: {where.authority}",
            f"Authorization: Bearer {token}",
            f"Upgrade: {UPGRADE}",
            "Connection: Upgrade",
        )
        self._request = ("\r\n".join(lines) + "\r\n\r\n").encode()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            super().data_received(data)
            return
        self._answer += data
        head, end, rest = self._answer.partition(b"\r\n\r\n")
        if not end and len(self._answer) <= _HEAD_BYTES:
            return
        self._answer = None
        if not head.startswith(b"HTTP/1.1 101 "):
            self._failed(ConnectionError("the dispatcher has this connection no more"))
            self.abort()
            return
        # Until it is joined to the other half.
        self.transport.pause_reading()
        self._early = rest
        if not self.upgraded.done():
            self.upgraded.set_result(None)

    def connection_lost(self, error: Optional[Exception]) -> None:
        self._failed(error or ConnectionError("the dispatcher closed the connection"))
        super().connection_lost(error)

    def _failed(self, error: Exception) -> None:
        if not self.upgraded.done():
            self.upgraded.set_exception(error)
            with suppress(Exception):
                self.upgraded.exception()
