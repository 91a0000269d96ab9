"""A tunnel's connection in two halves, each joined to a framed one between container and dispatcher.

The dispatcher has the half that somebody outside made, the container the one to a port of its own. Between
them bytes travel in pieces with their length, so that an end of the stream (a piece of no bytes) is known
from a broken connection whatever lies between. Nothing is collected: who is not read is not read from.
"""

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Any, Callable, Optional

UPGRADE = "modal-nomad-tunnel"
"""What a framed connection's HTTP request upgrades to."""
PATH = "/v1/tunnels"
_SIZE = struct.Struct(">I")
_END = _SIZE.pack(0)
_ABORTED = struct.pack("ii", 1, 0)
MAX_PIECE = 1 << 20


def _nothing() -> None:
    """Nobody wants to know."""


class Half(asyncio.Protocol):
    """One of two joined connections.

    Attributes:
        other: what all that comes in goes to.
        ended: the peer will send no more.
        finished: we will send no more.
        closing: all is sent, and the connection about to close.
        lost: there is no connection any more.
        on_lost: called when that is so.
    """

    transport: Any = None

    def __init__(self) -> None:
        self.other: Optional[Half] = None
        self.ended = False
        self.finished = False
        self.closing = False
        self.lost = False
        self.on_lost: Callable[[], None] = _nothing
        self._early = b""

    def join(self, other: "Half") -> None:
        """Pass on to each other what comes in from now on."""
        self.other, other.other = other, self
        for half in (self, other):
            early, half._early = half._early, b""
            if early:
                half.pass_on(early)
            if half.ended and half.other is not None:
                # It ended before there was anybody to be told.
                half.other.finish()
            if half.lost:
                half._tell_lost()
            elif not half.ended:
                half.transport.resume_reading()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            # A host that is gone without a word is found out in the end.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def _keep(self, data: bytes) -> None:
        """Keep what comes before there is anybody to pass it on to, and read no more."""
        self._early += data
        # Not every loop heeds this when it is said in connection_made.
        self.transport.pause_reading()

    def pass_on(self, data: bytes) -> None:
        """Pass on what was kept."""
        raise NotImplementedError

    def write(self, data: Any) -> None:
        """Send something on."""
        raise NotImplementedError

    def finish(self) -> None:
        """Send no more; what comes in is still passed on."""
        raise NotImplementedError

    def abort(self) -> None:
        """Break the connection off, so that its peer can tell that from an end."""
        if self.lost or self.transport is None:
            return
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORTED)
        self.transport.abort()

    def pause_writing(self) -> None:
        other = self.other
        if other is not None and not other.lost:
            other.transport.pause_reading()

    def resume_writing(self) -> None:
        other = self.other
        if other is not None and not other.lost and not other.ended:
            other.transport.resume_reading()

    def connection_lost(self, error: Optional[Exception]) -> None:
        self.lost = True
        self._tell_lost()
        self.on_lost()

    def _tell_lost(self) -> None:
        other = self.other
        if other is not None and not other.lost:
            if self.ended or self.closing:
                other.finish_and_close()
            else:
                other.abort()

    def finish_and_close(self) -> None:
        """Send what there is, and close."""
        if not self.lost:
            self.finish()
            self.closing = True
            self.transport.close()

    def _peer_ended(self) -> None:
        self.ended = True
        if self.other is not None and not self.other.lost:
            self.other.finish()
            if self.finished:
                # Both directions are over.
                self.other.finish_and_close()
                self.finish_and_close()


class Plain(Half):
    """The half whose bytes are the stream's own."""

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.write(data)
        else:
            self._keep(data)

    pass_on = data_received

    def eof_received(self) -> bool:
        self._peer_ended()
        return not self.closing

    def write(self, data: Any) -> None:
        if not self.lost and not self.finished:
            self.transport.write(data)

    def finish(self) -> None:
        if self.finished or self.lost:
            return
        self.finished = True
        with suppress(OSError):
            self.transport.write_eof()


class Framed(Half):
    """The half between container and dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self._head = b""
        self._left = 0

    def data_received(self, data: bytes) -> None:
        other = self.other
        if other is None:
            self._keep(data)
            return
        view = memoryview(data)
        while view and not self.ended:
            if self._left:
                piece = view[: self._left]
                self._left -= len(piece)
                view = view[len(piece) :]
                other.write(piece)
                continue
            missing = _SIZE.size - len(self._head)
            self._head += bytes(view[:missing])
            view = view[missing:]
            if len(self._head) < _SIZE.size:
                return
            (self._left,) = _SIZE.unpack(self._head)
            self._head = b""
            if self._left > MAX_PIECE:
                self.abort()
                return
            if not self._left:
                self._peer_ended()

    pass_on = data_received

    def eof_received(self) -> bool:
        return False

    def write(self, data: Any) -> None:
        if self.lost or self.finished:
            return
        for start in range(0, len(data), MAX_PIECE):
            piece = bytes(data[start : start + MAX_PIECE])
            self.transport.write(_SIZE.pack(len(piece)) + piece)

    def finish(self) -> None:
        if not self.finished and not self.lost:
            self.finished = True
            self.transport.write(_END)
