"""The tunnels of this dispatcher: the ports that they listen at, and the connections that came there."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import random
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modal_nomad.dispatcher.tunnels.settings import TunnelSettings
from modal_nomad.dispatcher.tunnels.tls import gateway_context
from modal_nomad.exception import InvalidError
from modal_nomad.wire.ids import new_id
from modal_nomad.wire.tunnels import Plain

if TYPE_CHECKING:
    from modal_nomad.dispatcher.settings import Settings

logger = logging.getLogger("modal_nomad.dispatcher")

_HANDSHAKE_SECONDS = 15.0
_FETCH_SECONDS = 15.0
_BACKLOG = 128
_TRIES = 50
_ALPN = ["http/1.1"]
_ALPN_WITH_H2 = ["h2", "http/1.1"]


class Tunnel:
    """One tunnel.

    Attributes:
        tunnel_id: ``tn-…``.
        container_id: the container that has it.
        port: the encrypted one outside.
        plain_port: the one that is not encrypted, or 0.

    Args:
        owner: the tunnels of this dispatcher.
        container_id: the container that has it.
        fetch: has the container come for a connection of a number.
    """

    def __init__(self, owner: Tunnels, container_id: str, fetch: Callable[[int], None]) -> None:
        self.tunnel_id = new_id("tn")
        self.container_id = container_id
        self.port = self.plain_port = 0
        self._owner = owner
        self._fetch = fetch
        self._servers: list[asyncio.AbstractServer] = []
        self._waiting: dict[int, _Outside] = {}
        self._open: set[_Outside] = set()
        self._last = 0

    async def listen(self, port: int, context: ssl.SSLContext | None) -> int:
        """Listen at a port, with TLS where there is a context for it; gives the port.

        Args:
            port: the one to have, if it is free; 0 for any.
            context: the TLS to speak.

        Raises:
            OSError: there is no free one.
        """
        sock = self._owner.bound(port)
        server = await asyncio.get_running_loop().create_server(
            lambda: _Outside(self),
            sock=sock,
            backlog=_BACKLOG,
            ssl=context,
            ssl_handshake_timeout=_HANDSHAKE_SECONDS if context is not None else None,
        )
        self._servers.append(server)
        return int(sock.getsockname()[1])

    def came(self, outside: _Outside) -> None:
        """Have the container come for a connection."""
        if len(self._open) >= self._owner.settings.max_connections:
            logger.info("tunnel %s has too many connections; one more was refused", self.tunnel_id)
            outside.abort()
            return
        self._last += 1
        number = self._last
        self._open.add(outside)
        self._waiting[number] = outside
        outside.transport.pause_reading()
        outside.timer = asyncio.get_running_loop().call_later(_FETCH_SECONDS, self.refuse, number)
        self._fetch(number)

    def take(self, number: int) -> _Outside | None:
        """Return the connection of a number, which nobody else gets then; None for none."""
        outside = self._waiting.pop(number, None)
        if outside is None or outside.lost:
            return None
        if outside.timer is not None:
            outside.timer.cancel()
        return outside

    def refuse(self, number: int) -> None:
        """Break off a connection that the container does not take."""
        outside = self.take(number)
        if outside is not None:
            outside.abort()

    def went(self, outside: _Outside) -> None:
        """Forget a connection."""
        self._open.discard(outside)

    def close(self) -> None:
        """Listen no more, and break off what is open."""
        for server in self._servers:
            server.close()
        for outside in list(self._open):
            outside.abort()
            if outside.other is not None:
                outside.other.abort()
        self._waiting.clear()


class _Outside(Plain):
    """A connection that somebody made to a tunnel."""

    def __init__(self, tunnel: Tunnel) -> None:
        super().__init__()
        self.timer: asyncio.TimerHandle | None = None
        self._tunnel = tunnel

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._tunnel.came(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self._tunnel.went(self)
        super().connection_lost(error)


class Tunnels:
    """All tunnels of this dispatcher.

    Args:
        settings: where they may be.
        key: what proves to us that a container had a tunnel's ports before.
        context: gives the TLS that they speak.
    """

    def __init__(self, settings: TunnelSettings, key: bytes, context: Callable[[], ssl.SSLContext]) -> None:
        self.settings = settings
        self._key = key
        self._context = context
        self._tunnels: dict[str, Tunnel] = {}

    @classmethod
    def from_settings(cls, settings: Settings, key: bytes) -> Tunnels:
        """Return the tunnels of a dispatcher with these settings, under a key of its home."""
        home = Path(settings.home)
        return cls(
            settings.tunnel_settings(),
            key,
            lambda: gateway_context(home, settings.tls_cert, settings.tls_key),
        )

    def __len__(self) -> int:
        return len(self._tunnels)

    async def open(
        self,
        container_id: str,
        fetch: Callable[[int], None],
        *,
        unencrypted: bool,
        h2: bool,
        ticket: str = "",
    ) -> tuple[Tunnel, dict[str, Any]]:
        """Make a tunnel; gives it and what its container is told.

        Args:
            container_id: the container.
            fetch: has the container come for a connection of a number.
            unencrypted: listen without TLS as well.
            h2: offer HTTP/2 to who asks by TLS; what the container serves must speak it then.
            ticket: of an earlier dispatcher process, for the ports that it had there.

        Raises:
            InvalidError: there can be none; the text says why.
        """
        if not self.settings.host:
            raise InvalidError(
                "this cluster has no tunnels: its operators name a host under [tunnels] in the dispatcher's "
                "settings"
            )
        if len(self._tunnels) >= self.settings.max_tunnels:
            raise InvalidError(
                f"there are {len(self._tunnels)} tunnels here by now, and may be no more: close one, or "
                "raise max_tunnels under [tunnels]"
            )
        context = self._context()
        context.set_alpn_protocols(_ALPN_WITH_H2 if h2 else _ALPN)
        tunnel = Tunnel(self, container_id, fetch)
        before = self._known(container_id, ticket)
        self._tunnels[tunnel.tunnel_id] = tunnel
        try:
            tunnel.port = await tunnel.listen(before[0], context)
            if unencrypted:
                tunnel.plain_port = await tunnel.listen(before[1], None)
        except OSError as error:
            self.close(tunnel)
            raise InvalidError(
                f"no port is free for the tunnel ({error.strerror or error}): widen ports under [tunnels] in "
                "the dispatcher's settings"
            ) from None
        except BaseException:
            self.close(tunnel)
            raise
        host = self.settings.host
        return tunnel, {
            "id": tunnel.tunnel_id,
            "host": host,
            "port": tunnel.port,
            "unencrypted_host": host if unencrypted else "",
            "unencrypted_port": tunnel.plain_port,
            "ticket": self._ticket(container_id, tunnel.port, tunnel.plain_port),
        }

    def find(self, tunnel_id: str, container_id: str) -> Tunnel | None:
        """Return a tunnel of a container, or None."""
        tunnel = self._tunnels.get(tunnel_id)
        return tunnel if tunnel is not None and tunnel.container_id == container_id else None

    def close(self, tunnel: Tunnel) -> None:
        """End a tunnel."""
        self._tunnels.pop(tunnel.tunnel_id, None)
        tunnel.close()

    def close_all(self) -> None:
        """End every tunnel."""
        for tunnel in list(self._tunnels.values()):
            self.close(tunnel)

    def bound(self, wanted: int) -> socket.socket:
        """Return a socket at a port, the wanted one if it can be. Raises OSError when there is none."""
        low, high = self.settings.port_range
        tries = [wanted] if wanted and (not low or low <= wanted <= high) else []
        if low:
            some = random.sample(range(low, high + 1), min(_TRIES, high - low + 1))
            tries += some
        else:
            tries.append(0)
        failure: OSError | None = None
        for port in tries:
            try:
                return self._bind(port)
            except OSError as error:
                failure = error
        assert failure is not None
        raise failure

    def _bind(self, port: int) -> socket.socket:
        host = self.settings.listen
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def _ticket(self, container_id: str, port: int, plain_port: int) -> str:
        text = f"{port}.{plain_port}"
        mac = hmac.new(self._key, f"tunnel:{container_id}:{text}".encode(), hashlib.sha256).hexdigest()
        return f"{text}.{mac}"

    def _known(self, container_id: str, ticket: str) -> tuple[int, int]:
        port, _, rest = ticket.partition(".")
        plain = rest.partition(".")[0]
        if not (port.isascii() and port.isdigit() and plain.isascii() and plain.isdigit()):
            return 0, 0
        if not hmac.compare_digest(
            ticket.encode(), self._ticket(container_id, int(port), int(plain)).encode()
        ):
            return 0, 0
        return int(port), int(plain)
