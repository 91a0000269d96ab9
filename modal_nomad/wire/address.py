"""Where a dispatcher listens: ``http://host:port``, ``https://…`` or ``unix:///path.sock``."""

from dataclasses import dataclass
from typing import Optional
from urllib.parse import parse_qs, urlsplit

from .websocket import NO_KEY


@dataclass(frozen=True)
class Address:
    """A parsed server URL.

    ``path`` is that of a Unix socket, or empty; ``name`` the host and port of the dispatcher behind it, if it
    is a relay's.
    """

    host: str
    port: int
    tls: bool = False
    path: str = ""
    name: str = ""

    @property
    def mask_key(self) -> Optional[bytes]:
        """With what WebSocket frames there are masked; None says a key by chance for each."""
        # A relay's socket goes on over a network.
        return NO_KEY if self.tls or (self.path and not self.name) else None

    @property
    def authority(self) -> str:
        """What stands in the Host header."""
        return (self.name or "localhost") if self.path else f"{self.host}:{self.port}"


def parse_address(url: str) -> Address:
    """Read a server URL.

    Raises:
        ValueError: the text says what is wrong and what a right one looks like.

    Example:
        >>> parse_address("http://127.0.0.1:8520").port
        8520
    """
    parts = urlsplit(url)
    remedy = "use http://HOST:PORT, https://HOST:PORT or unix:///PATH.sock"
    if parts.scheme == "unix":
        path = parts.path or parts.netloc
        if not path.startswith("/"):
            raise ValueError(f"server URL {url!r} names no absolute socket path; {remedy}")
        return Address("localhost", 0, False, path, parse_qs(parts.query).get("authority", [""])[0])
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"server URL {url!r} has no scheme that is known; {remedy}")
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError(f"server URL {url!r} has an impossible port; {remedy}") from error
    if not parts.hostname:
        raise ValueError(f"server URL {url!r} names no host; {remedy}")
    tls = parts.scheme == "https"
    return Address(parts.hostname, (443 if tls else 80) if port is None else port, tls)
