"""The tunnels of this process: it listens itself."""

from __future__ import annotations

import contextlib
import logging
import random
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modal_nomad.dispatcher.tunnels.listening import Handshakes, Listening, bound_socket
from modal_nomad.dispatcher.tunnels.names import Names
from modal_nomad.dispatcher.tunnels.room import ContainerTunnel, Fetch, check_room, host_of, told
from modal_nomad.dispatcher.tunnels.settings import TunnelSettings
from modal_nomad.dispatcher.tunnels.tickets import Place, Tickets
from modal_nomad.exception import InvalidError
from modal_nomad.wire.ids import new_id

if TYPE_CHECKING:
    from modal_nomad.dispatcher.gateway.certificates import Certificates

logger = logging.getLogger("modal_nomad.dispatcher")

_TRIES = 50


class Tunnel(Listening):
    """One tunnel.

    Attributes:
        container_id: the container that has it.
        name: the host name it is told apart by; empty for none.
    """

    container_id = ""
    name = ""

    def refuse(self, number: int, tag: str = "") -> None:
        super().refuse(number)


class Tunnels:
    """All tunnels of this dispatcher.

    Args:
        settings: where they may be.
        key: what proves to us that a container had a tunnel's ports before.
        home: has the certificate that is shown where the operators gave none.
    """

    def __init__(self, settings: TunnelSettings, key: bytes, home: Path) -> None:
        self.settings = settings
        self.handshakes = Handshakes(settings.max_handshakes)
        self._tickets = Tickets(key)
        self._home = home
        self._certificates: Certificates | None = None
        self._names = Names(self.certificates, self.handshakes)
        self._tunnels: dict[str, Tunnel] = {}

    async def start(self, certificates: Certificates | None, stack: contextlib.AsyncExitStack) -> None:
        """Begin, with certificates that the operators gave.

        Raises:
            OSError: the port of all names is taken.
        """
        self._certificates = certificates
        if self.settings.domain:
            sock = bound_socket(self.settings.listen, self.settings.tls_port)
            stack.callback((await self._names.listen(sock)).close)

    def certificates(self) -> Certificates:
        """Return what is shown: what the operators gave, else this home's own."""
        if self._certificates is None:
            from modal_nomad.dispatcher.tunnels.tls import own_certificates

            self._certificates = own_certificates(self._home, self.settings.domain)
        return self._certificates

    def __len__(self) -> int:
        return len(self._tunnels)

    async def open(
        self,
        container_id: str,
        fetch: Fetch,
        *,
        unencrypted: bool,
        h2: bool,
        ticket: str = "",
    ) -> tuple[Tunnel, dict[str, Any]]:
        """Make a tunnel, as ``Room`` says."""
        check_room(self.settings, self._tunnels)
        before = self._tickets.read(container_id, ticket)
        old = self._tunnels.get(before.tunnel_id)
        if old is not None:
            # Its container has lost the connection that it came over, before we noticed.
            self.close(old)
        tunnel = Tunnel(
            before.tunnel_id or new_id("tn"),
            lambda number: fetch({"come": number}),
            self.settings.max_connections,
            h2=h2,
        )
        tunnel.container_id = container_id
        self._tunnels[tunnel.tunnel_id] = tunnel
        port = plain_port = 0
        try:
            if self.settings.domain:
                tunnel.name = host_of(self.settings, self._tickets, tunnel.tunnel_id)
                # What clients trust must be there before they come.
                self.certificates()
                self._names.put(tunnel.name, tunnel)
            else:
                sock = self._bound(before.port)
                port = sock.getsockname()[1]
                await tunnel.listen_securely(sock, self.certificates(), self.handshakes)
            if unencrypted:
                sock = self._bound(before.plain_port)
                plain_port = sock.getsockname()[1]
                await tunnel.listen(sock)
        except OSError as error:
            self.close(tunnel)
            raise InvalidError(
                f"no port is free for the tunnel ({error.strerror or error}): widen ports under [tunnels] in "
                "the dispatcher's settings"
            ) from None
        except BaseException:
            self.close(tunnel)
            raise
        logger.info("tunnel %s of %s is at port %d", tunnel.tunnel_id, container_id, port or plain_port)
        place = Place(tunnel.tunnel_id, port, plain_port)
        return tunnel, told(self.settings, self._tickets, container_id, place)

    def find(self, tunnel_id: str, container_id: str) -> Tunnel | None:
        """Return a tunnel of a container, or None."""
        tunnel = self._tunnels.get(tunnel_id)
        return tunnel if tunnel is not None and tunnel.container_id == container_id else None

    def close(self, tunnel: ContainerTunnel) -> None:
        """End a tunnel."""
        assert isinstance(tunnel, Tunnel)
        if self._tunnels.get(tunnel.tunnel_id) is tunnel:
            del self._tunnels[tunnel.tunnel_id]
            self._names.drop(tunnel.name)
        tunnel.close()

    def close_all(self) -> None:
        """End every tunnel."""
        for tunnel in list(self._tunnels.values()):
            self.close(tunnel)

    def _bound(self, wanted: int) -> socket.socket:
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
                return bound_socket(self.settings.listen, port)
            except OSError as error:
                failure = error
        assert failure is not None
        raise failure
