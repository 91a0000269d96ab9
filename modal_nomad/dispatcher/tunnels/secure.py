"""The TLS side of a tunnel's connection.

It is spoken here, over memory, because a connection may end in one direction alone: asyncio's own TLS ends
both as soon as the peer says that it will send no more, and the answer would be lost.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import Any

from modal_nomad.wire.tunnels import Half

_READ = 1 << 14
"""One record has no more."""


def without_tickets(context: ssl.SSLContext) -> ssl.SSLContext:
    """Have a context for a listening socket send no session tickets.

    A client that only writes never reads them: its end of the connection would become a reset, and what it
    sent last be lost.
    """
    context.num_tickets = 0
    return context


class Secure(Half):
    """A half whose bytes are the stream's own, encrypted on their way.

    Attributes:
        ready: the handshake is over.
        tls: its TLS.

    Args:
        context: the certificate and protocols to show.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__()
        self.ready = False
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def secured(self) -> None:
        """The handshake is over."""

    # --- what comes in ----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        if not self.ready and not self._handshake():
            return
        self._read()

    def eof_received(self) -> bool:
        if not self.ready:
            return False
        # Many end without a farewell: what they sent is whole, as far as its own protocol says so.
        if not self.ended:
            self._peer_ended()
        return not self.closing

    def pass_on(self, data: bytes) -> None:
        if self.other is not None:
            self.other.write(data)

    def _handshake(self) -> bool:
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except (ssl.SSLError, OSError):
            # The alert says why.
            self._flush()
            self.transport.close()
            return False
        self._flush()
        self.ready = True
        self.secured()
        return True

    def _read(self) -> None:
        while not self.ended and not self.lost:
            try:
                data = self.tls.read(_READ)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                data = b""
            except (ssl.SSLError, OSError):
                self._flush()
                self.abort()
                return
            if not data:
                self._peer_ended()
            elif self.other is not None:
                self.other.write(data)
            else:
                self._keep(data)
        # Answers of the protocol's own, to a new key, say.
        self._flush()

    # --- what goes out ----------------------------------------------------------------------------

    def write(self, data: Any) -> None:
        if self.lost or self.finished:
            return
        view = memoryview(data)
        try:
            while view:
                view = view[self.tls.write(view) :]
        except (ssl.SSLError, OSError):
            self.abort()
            return
        self._flush()

    def finish(self) -> None:
        if self.finished or self.lost:
            return
        # All that came is read by now: what is left in memory would be taken for an attack here.
        with suppress(ssl.SSLError, OSError):
            self.tls.unwrap()
        self._flush()
        self.finished = True
        with suppress(OSError):
            self.transport.write_eof()

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data and not self.lost and not self.finished:
            self.transport.write(data)
