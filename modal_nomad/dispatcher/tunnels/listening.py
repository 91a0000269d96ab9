"""The ports that a tunnel listens at, and the connections that came there."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from modal_nomad.dispatcher.tunnels.secure import Secure, without_tickets
from modal_nomad.wire.tunnels import Half, Plain

if TYPE_CHECKING:
    from modal_nomad.dispatcher.gateway.certificates import Certificates

logger = logging.getLogger("modal_nomad.dispatcher")

HANDSHAKE_SECONDS = 15.0
_FETCH_SECONDS = 15.0
_BACKLOG = 128


def bound_socket(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Return a socket at a port; where it is shared, other processes may have one there, too.

    Raises:
        OSError: the port is not free.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


class Handshakes:
    """Bounds the TLS handshakes that are under way, in all tunnels of a process.

    Args:
        limit: how many there may be at a time.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        self._said = False

    def __len__(self) -> int:
        return self._count

    def begin(self) -> bool:
        """Count one more; False where it is one too many."""
        if self._count >= self._limit:
            if not self._said:
                self._said = True
                logger.warning("%d TLS handshakes with tunnels are under way; more are refused", self._count)
            return False
        self._count += 1
        return True

    def end(self) -> None:
        """Count one less."""
        self._count -= 1
        self._said = False


class Listening:
    """One tunnel, where it is listened for.

    Attributes:
        tunnel_id: ``tn-…``.
        h2: HTTP/2 is on offer by TLS.

    Args:
        tunnel_id: of the tunnel.
        fetch: has the container come for a connection of a number.
        max_connections: how many there may be at a time.
        h2: offer HTTP/2 by TLS.
    """

    def __init__(
        self, tunnel_id: str, fetch: Callable[[int], None], max_connections: int, *, h2: bool = False
    ) -> None:
        self.tunnel_id = tunnel_id
        self.h2 = h2
        self._fetch = fetch
        self._max_connections = max_connections
        self._servers: list[asyncio.AbstractServer] = []
        self._waiting: dict[int, Outside] = {}
        self._open: set[Outside] = set()
        self._last = 0

    async def listen(self, sock: socket.socket) -> None:
        """Take connections at a socket."""
        loop = asyncio.get_running_loop()
        self._servers.append(await loop.create_server(lambda: Open(self), sock=sock, backlog=_BACKLOG))

    async def listen_securely(
        self, sock: socket.socket, certificates: Certificates, handshakes: Handshakes
    ) -> None:
        """Take connections with TLS at a socket."""
        loop, context = asyncio.get_running_loop(), without_tickets(certificates.context(self.h2))
        self._servers.append(
            await loop.create_server(
                lambda: Sealed(context, handshakes, lambda _: self), sock=sock, backlog=_BACKLOG
            )
        )

    def came(self, outside: Outside) -> None:
        """Have the container come for a connection."""
        if len(self._open) >= self._max_connections:
            logger.info("tunnel %s has too many connections; one more was refused", self.tunnel_id)
            outside.half.abort()
            return
        self._last += 1
        number = self._last
        self._open.add(outside)
        self._waiting[number] = outside
        outside.half.transport.pause_reading()
        outside.timer = asyncio.get_running_loop().call_later(_FETCH_SECONDS, self.refuse, number)
        self._fetch(number)

    def fetch_again(self) -> None:
        """Have the container come for all that wait, once more."""
        for number in list(self._waiting):
            self._fetch(number)

    def take(self, number: int) -> Half | None:
        """Return the connection of a number, which nobody else gets then; None for none."""
        outside = self._waiting.pop(number, None)
        if outside is None or outside.half.lost:
            return None
        if outside.timer is not None:
            outside.timer.cancel()
        return outside.half

    def refuse(self, number: int) -> None:
        """Break off a connection that the container does not take."""
        half = self.take(number)
        if half is not None:
            half.abort()

    def went(self, outside: Outside) -> None:
        """Forget a connection."""
        self._open.discard(outside)

    @property
    def busy(self) -> bool:
        """Whether there are connections."""
        return bool(self._open)

    def leave(self) -> None:
        """Listen no more; what is open may go on."""
        for server in self._servers:
            server.close()

    def close(self) -> None:
        """Listen no more, and break off what is open."""
        self.leave()
        for outside in list(self._open):
            outside.half.abort()
            if outside.half.other is not None:
                outside.half.other.abort()
        self._waiting.clear()


class Outside:
    """What a tunnel knows of a connection that somebody made.

    Attributes:
        half: the connection.
        timer: breaks it off unless the container comes.

    Args:
        half: the connection.
    """

    __slots__ = ("half", "timer")

    def __init__(self, half: Half) -> None:
        self.half = half
        self.timer: asyncio.TimerHandle | None = None

    def cancel(self) -> None:
        """Forget the time."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Open(Plain):
    """A connection to a tunnel's port without TLS."""

    def __init__(self, tunnel: Listening) -> None:
        super().__init__()
        self._tunnel = tunnel
        self._outside = Outside(self)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._tunnel.came(self._outside)

    def connection_lost(self, error: Exception | None) -> None:
        self._outside.cancel()
        self._tunnel.went(self._outside)
        super().connection_lost(error)


class Sealed(Secure):
    """A connection to a port where tunnels speak TLS.

    Args:
        context: shows the certificate.
        handshakes: bounds those that are under way.
        tunnel: says, when the handshake is over, what was asked for; None for nothing that there is.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        handshakes: Handshakes,
        tunnel: Callable[[Sealed], Listening | None],
    ) -> None:
        super().__init__(context)
        self._handshakes = handshakes
        self._find = tunnel
        self._tunnel: Listening | None = None
        self._counted = False
        self._outside = Outside(self)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._counted = self._handshakes.begin()
        if not self._counted:
            self.abort()
            return
        self._outside.timer = asyncio.get_running_loop().call_later(HANDSHAKE_SECONDS, self.abort)

    def secured(self) -> None:
        self._over()
        self._tunnel = self._find(self)
        if self._tunnel is None:
            self.abort()
        else:
            self._tunnel.came(self._outside)

    def connection_lost(self, error: Exception | None) -> None:
        self._over()
        if self._tunnel is not None:
            self._tunnel.went(self._outside)
        super().connection_lost(error)

    def _over(self) -> None:
        self._outside.cancel()
        if self._counted:
            self._counted = False
            self._handshakes.end()
