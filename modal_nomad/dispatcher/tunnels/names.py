"""One port for all tunnels that speak TLS: clients say by name (SNI) which one they mean."""

from __future__ import annotations

import asyncio
import socket
import ssl
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from modal_nomad.dispatcher.tunnels.listening import Handshakes, Listening, Sealed
from modal_nomad.dispatcher.tunnels.secure import without_tickets

if TYPE_CHECKING:
    from modal_nomad.dispatcher.gateway.certificates import Certificates

_BACKLOG = 1024


class Names:
    """The tunnels that are told apart by name.

    Args:
        certificates: gives what is shown.
        handshakes: bounds those that are under way.
    """

    def __init__(self, certificates: Callable[[], Certificates], handshakes: Handshakes) -> None:
        self._certificates = certificates
        self._handshakes = handshakes
        self._tunnels: dict[str, Listening] = {}
        # What each client asked for, until its handshake is over.
        self._asked: weakref.WeakKeyDictionary[ssl.SSLObject, Listening] = weakref.WeakKeyDictionary()
        self._context = without_tickets(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))
        self._context.sni_callback = self._choose

    async def listen(self, sock: socket.socket) -> asyncio.AbstractServer:
        """Take connections at a socket."""
        return await asyncio.get_running_loop().create_server(
            lambda: Sealed(self._context, self._handshakes, lambda half: self._asked.pop(half.tls, None)),
            sock=sock,
            backlog=_BACKLOG,
        )

    def put(self, name: str, tunnel: Listening) -> None:
        """Have a tunnel reached by a host name."""
        self._tunnels[name] = tunnel

    def drop(self, name: str) -> None:
        """Have a name lead nowhere."""
        self._tunnels.pop(name, None)

    def _choose(
        self, connection: ssl.SSLObject | ssl.SSLSocket, host: str | None, context: ssl.SSLContext
    ) -> int | None:
        tunnel = self._tunnels.get((host or "").lower().rstrip("."))
        if tunnel is None or not isinstance(connection, ssl.SSLObject):
            return int(ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME)
        self._asked[connection] = tunnel
        return self._certificates().show(connection, host, tunnel.h2)
