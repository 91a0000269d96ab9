"""What both kinds of tunnels have in common: where they are, who may have one, what a container is told."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sized
from typing import TYPE_CHECKING, Any, Protocol

from modal_nomad.dispatcher.tunnels.settings import TunnelSettings
from modal_nomad.dispatcher.tunnels.tickets import Place, Tickets
from modal_nomad.exception import InvalidError

if TYPE_CHECKING:
    from modal_nomad.dispatcher.gateway.certificates import Certificates
    from modal_nomad.dispatcher.tunnels.tunnels import Tunnel

Fetch = Callable[[dict[str, Any]], None]
"""Says to a container that it is to come for a connection."""


class ContainerTunnel(Protocol):
    """One tunnel, as its container's connection to the dispatcher sees it."""

    @property
    def tunnel_id(self) -> str:
        """``tn-…``."""

    def refuse(self, number: int, tag: str = "") -> None:
        """Break off a connection that the container does not take: its number, where a gateway's its tag."""


class Room(Protocol):
    """The tunnels of a dispatcher."""

    settings: TunnelSettings

    async def start(self, certificates: Certificates | None, stack: contextlib.AsyncExitStack) -> None:
        """Begin, with certificates that the operators gave. Raises OSError: a port is taken."""

    async def open(
        self, container_id: str, fetch: Fetch, *, unencrypted: bool, h2: bool, ticket: str = ""
    ) -> tuple[ContainerTunnel, dict[str, Any]]:
        """Make a tunnel; gives it and what its container is told.

        Args:
            container_id: the container.
            fetch: has the container come for a connection.
            unencrypted: listen without TLS as well.
            h2: offer HTTP/2 to who asks by TLS; what the container serves must speak it then.
            ticket: of an earlier dispatcher process, for the place that it had there.

        Raises:
            InvalidError: there can be none; the text says why.
        """

    def find(self, tunnel_id: str, container_id: str) -> Tunnel | None:
        """Return a tunnel of a container whose connections are here, or None."""

    def close(self, tunnel: ContainerTunnel) -> None:
        """End a tunnel."""

    def close_all(self) -> None:
        """End every tunnel: this process ends."""

    def __len__(self) -> int: ...


def check_room(settings: TunnelSettings, tunnels: Sized) -> None:
    """Check that there may be one more. Raises InvalidError."""
    if not settings.reached_at:
        raise InvalidError(
            "this cluster has no tunnels: its operators name a host under [tunnels] in the dispatcher's "
            "settings"
        )
    if len(tunnels) >= settings.max_tunnels:
        raise InvalidError(
            f"there are {len(tunnels)} tunnels here by now, and may be no more: close one, or "
            "raise max_tunnels under [tunnels]"
        )


def host_of(settings: TunnelSettings, tickets: Tickets, tunnel_id: str) -> str:
    """Return the host name that TLS clients reach a tunnel by."""
    if settings.domain:
        return f"{tickets.name(tunnel_id)}.{settings.domain}"
    return settings.reached_at


def told(settings: TunnelSettings, tickets: Tickets, container_id: str, place: Place) -> dict[str, Any]:
    """Return what a container is told of its tunnel."""
    return {
        "id": place.tunnel_id,
        "host": host_of(settings, tickets, place.tunnel_id),
        "port": settings.tls_port if settings.domain else place.port,
        "unencrypted_host": settings.reached_at if place.plain_port else "",
        "unencrypted_port": place.plain_port,
        "ticket": tickets.write(container_id, place),
    }
