"""What a container shows to have the tunnel again that it had at an earlier dispatcher process."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

_NAME_LENGTH = 20


@dataclass(frozen=True)
class Place:
    """A tunnel's id and ports outside.

    Attributes:
        tunnel_id: ``tn-…``; empty for none.
        port: the one with TLS, or 0.
        plain_port: the one without, or 0.
    """

    tunnel_id: str = ""
    port: int = 0
    plain_port: int = 0


class Tickets:
    """Writes tickets, and reads those that are its own.

    Args:
        key: of the dispatchers of an installation.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def write(self, container_id: str, place: Place) -> str:
        """Return the ticket of a container for a tunnel."""
        text = f"{place.tunnel_id}.{place.port}.{place.plain_port}"
        return f"{text}.{self._mac(f'tunnel:{container_id}:{text}')}"

    def read(self, container_id: str, ticket: str) -> Place:
        """Return what a container's ticket says; an empty place where it is not its own."""
        text, _, mac = ticket.rpartition(".")
        if not hmac.compare_digest(mac.encode(), self._mac(f"tunnel:{container_id}:{text}").encode()):
            return Place()
        tunnel_id, port, plain_port = text.split(".")
        return Place(tunnel_id, int(port), int(plain_port))

    def name(self, tunnel_id: str) -> str:
        """Return the host name of a tunnel, without its domain: nobody guesses it."""
        return self._mac(f"tunnel-name:{tunnel_id}")[:_NAME_LENGTH]

    def _mac(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()
