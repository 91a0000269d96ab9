"""The SDK's socket on asyncio: a handshake, then messages for the connection that owns it."""

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any, List, Optional

from . import frames, websocket

if TYPE_CHECKING:
    from .connection import Connection


class Socket(asyncio.Protocol):
    """One attempt at a connection, from its handshake to its end.

    Attributes:
        upgraded: done when the handshake is.
        heard: when the last bytes came, on the monotonic clock.
        descriptor: the socket's.
        plain: not encrypted, so that any thread may read and write the descriptor.
        full: the transport still has something to write.
        torn: a caller's thread writes, or was interrupted as it did, and nobody knows how far it came.
        queued: what other threads have for the loop to write, before anything else.
    """

    def __init__(self, owner: "Connection", decoder: websocket.Decoder, request: bytes) -> None:
        self.owner = owner
        self.decoder = decoder
        self.request = request
        self.transport: Any = None
        self.upgraded: "asyncio.Future[None]" = asyncio.get_running_loop().create_future()
        self.heard = 0.0
        self.descriptor = -1
        self.plain = False
        self.full = False
        self.torn = False
        self.queued: List[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.plain = transport.get_extra_info("sslcontext") is None
        self.descriptor = transport.get_extra_info("socket").fileno()
        # Any byte left over is told, and when the last one has gone: the size of the transport's buffer,
        # asked in another thread, is wrong while the loop shortens it.
        transport.set_write_buffer_limits(high=0)
        transport.write(self.request)

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False

    def data_received(self, data: bytes) -> None:
        try:
            self.take(data)
        except (websocket.WebSocketError, frames.FrameError) as error:
            self.connection_lost(error)
            self.transport.abort()
            return
        if self.decoder.open and not self.upgraded.done():
            self.upgraded.set_result(None)

    def take(self, data: bytes) -> None:
        """Handle what came from the socket, on the loop or in the thread of the caller that read it."""
        self.heard = monotonic()
        for opcode, payload in self.decoder.feed(data):
            if opcode == websocket.BINARY:
                self.owner._received(payload)
            elif opcode == websocket.PING:
                self.owner._write_raw(self, websocket.encode(payload, websocket.PONG))
            elif opcode == websocket.CLOSE:
                raise websocket.WebSocketError("the dispatcher closed the connection")

    def connection_lost(self, error: Optional[BaseException]) -> None:
        if not self.upgraded.done():
            self.upgraded.set_exception(error or ConnectionError("the server closed the connection"))
            self.upgraded.exception()
        with self.owner._write_lock:
            # The transport closes its descriptor next, whose number may soon be another file's.
            self.plain = False
        self.owner._lost(self)
