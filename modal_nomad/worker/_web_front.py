"""The container's end of a gateway's connections: lets nobody else in, and knows when a client has gone."""

import asyncio
import hmac
from typing import TYPE_CHECKING, Any, Iterable, Optional

from ..wire.http1.client import Client
from ..wire.http1.head import MAX_HEAD_BYTES, HttpError, Request, parse_request
from ..wire.services import HEALTH
from ..wire.web import FULL, KEY, METHOD, REFUSED, refusal
from ._web_given import Given, Reader

if TYPE_CHECKING:
    from ._web import WebPool


class Front(asyncio.Protocol):
    """One connection. The first request on it says what serves it; what that is sees the bytes as they are.

    Attributes:
        transport: the connection.
        request: the request of an ASGI app that runs on it, to be told when its client has gone.
    """

    transport: asyncio.Transport

    def __init__(self, pool: "WebPool") -> None:
        self.request: Any = None
        self._pool = pool
        self._inner: Any = None
        self._buffer = b""
        self._key: Optional[bytes] = None
        self._reader: Optional[Reader] = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._pool.fronts[id(self)] = self

    def connection_lost(self, error: Optional[Exception]) -> None:
        self._pool.fronts.pop(id(self), None)
        if self._inner is not None:
            self._inner.connection_lost(error)
        if self.request is not None:
            self.request.client_left()

    def data_received(self, data: bytes) -> None:
        if self._inner is not None:
            if self._reader is not None:
                data = self._reader.feed(data)
            if data:
                self._inner.data_received(data)
            return
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                self._refuse()
            return
        try:
            request = parse_request(self._buffer[:end])
        except HttpError:
            self._refuse()
            return
        pool = self._pool
        if request.target == HEALTH:
            status = b"503 Service Unavailable" if pool.leaving else b"200 OK"
            self._answer(status)
            return
        key = self._key = request.value(KEY)
        known = key is not None and hmac.compare_digest(key, pool.key)
        if (not known and not pool.open_to_all) or (pool.single_use and pool.taken):
            self._refuse()
            return
        pool.taken = True
        if not known and not pool.alone:
            # An edge has one set of connections to this address, for requests to each of the endpoints.
            self._buffer = _last(self._buffer, end)
        self._begin(request, known)

    def _begin(self, request: Request, known: bool) -> None:
        method = (request.value(METHOD) or b"").decode("latin-1")
        if not method:
            # A proxy that is no gateway of ours does not say it.
            method = self._pool.only_method
        router = self._pool.servers.get(method)
        inner: Any
        if router is not None:
            inner = Client(router)
        elif method in self._pool.apps:
            inner = self._pool.apps[method].protocol(self._pool)
            if known:
                self._reader = Reader()
        else:
            self._refuse()
            return
        self.switch(inner)
        inner.connection_made(Seen(self))
        data, self._buffer = self._buffer, b""
        self.data_received(data)

    def given(self) -> Optional[Given]:
        """Return, once, what a gateway said of the request that came last, where its head does not say it."""
        return self._reader.take() if self._reader is not None else None

    def switch(self, inner: Any) -> None:
        """Have something else take what comes in."""
        self._inner = inner

    def _refuse(self) -> None:
        """Say that the request was not taken: it was for another container, which had this port before."""
        self._answer(b"421 Misdirected Request", self.refusal())

    def refuse_full(self) -> None:
        """Say that the request was not taken, past whoever read it: there is no place for it now."""
        self._answer(b"421 Misdirected Request", self.refusal(FULL))

    def refusal(self, why: bytes = b"") -> bytes:
        """Return the field that a gateway believes; nothing for whoever is none."""
        return REFUSED + b": " + refusal(self._key) + why + b"\r\n" if self._key else b""

    def _answer(self, status: bytes, fields: bytes = b"") -> None:
        head = b"HTTP/1.1 " + status + b"\r\n" + fields
        self.transport.write(head + b"Content-Length: 0\r\nConnection: close\r\n\r\n")
        self.transport.close()

    def eof_received(self) -> Any:
        return self._inner.eof_received() if self._inner is not None else None

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()


def _last(data: bytes, end: int) -> bytes:
    """Return a request, whose head ends at ``end``, as its connection's only one; a WebSocket is anyway."""
    lines = data[:end].split(b"\r\n")
    if any(line.lower().replace(b" ", b"") == b"upgrade:websocket" for line in lines):
        return data
    kept = [line for line in lines if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*kept, b"Connection: close"]) + data[end:]


class Seen:
    """The transport as the inner protocol has it: when it hands it on, for a WebSocket, we stay between.

    An answer's head goes out together with what is written right behind it, or in the loop's next round: each
    part by itself would cost everybody on its way as much as the whole.
    """

    def __init__(self, front: Front) -> None:
        self._front = front
        self._transport = front.transport
        self._loop = asyncio.get_running_loop()
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data[:7] == b"HTTP/1.":
            # Or a part of a body that looks like one, which is as well off.
            self._head = data
            self._loop.call_soon(self._flush)
            return
        self._transport.write(data)

    def writelines(self, parts: Iterable[bytes]) -> None:
        self.write(b"".join(parts))

    def _flush(self) -> None:
        if self._head:
            data, self._head = self._head, b""
            self._transport.write(data)

    def write_eof(self) -> None:
        self._flush()
        self._transport.write_eof()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def set_protocol(self, protocol: Any) -> None:
        self._front.switch(protocol)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        # What serves a request finds the connection it came on by this; see ``Request`` of _web_apps.
        if name == "socket":
            return None
        if name == "peername":
            return ("", id(self._front))
        return self._transport.get_extra_info(name, default)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
