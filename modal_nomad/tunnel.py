"""Tunnels: a port of a container, reached from outside."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import exception
from ._bridge import blocking_function_context, io
from ._execution_context import in_snapshot, is_local
from .exception import InvalidError

if TYPE_CHECKING:
    from .client import Client
    from .wire._tunnel_client import TunnelClient

_HTTPS = 443


@dataclass(frozen=True)
class Tunnel:
    """Where a port of a container is reached from outside.

    Attributes:
        host: the host of the port that speaks TLS.
        port: that port.
        unencrypted_host: the host of the port that does not; empty where there is none.
        unencrypted_port: that port, or 0.

    Example:
        >>> Tunnel("tunnels.example.com", 443, "", 0).url
        'https://tunnels.example.com'
    """

    host: str
    port: int
    unencrypted_host: str
    unencrypted_port: int

    @property
    def url(self) -> str:
        """The address for a browser, as ``https://HOST:PORT``; 443 is not said."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}" if self.port == _HTTPS else f"https://{host}:{self.port}"

    @property
    def tls_socket(self) -> tuple[str, int]:
        """Host and port to connect to with TLS."""
        return self.host, self.port

    @property
    def tcp_socket(self) -> tuple[str, int]:
        """Host and port to connect to without TLS.

        Raises:
            InvalidError: the tunnel has none.
        """
        if not self.unencrypted_host:
            raise InvalidError("this tunnel speaks TLS alone: use forward(port, unencrypted=True)")
        return self.unencrypted_host, self.unencrypted_port


@blocking_function_context
async def forward(
    port: int,
    *,
    unencrypted: bool = False,
    client: Client | None = None,
    h2_enabled: bool = False,
) -> AsyncIterator[Tunnel]:
    """Let a port of this container be reached from outside, for as long as the ``with`` block runs.

    Whoever knows the address gets through: what listens must see to who may use it. Connections are passed
    to the port on the container's loopback address.

    Args:
        port: what listens in the container, or will.
        unencrypted: also give a port that speaks no TLS, for ``ssh``, say.
        client: the client to use.
        h2_enabled: offer HTTP/2 to browsers; what listens must speak it without TLS (by prior knowledge).

    Raises:
        InvalidError: outside of a container, in an ``enter(snap=True)`` hook of a class with memory
            snapshots, with an impossible port, or where there are no tunnels.

    Example:
        >>> @app.function()
        ... def page():
        ...     with modal.forward(8000) as tunnel:
        ...         print("at", tunnel.url)
        ...         http.server.test(http.server.SimpleHTTPRequestHandler, port=8000)
    """
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
        raise InvalidError(f"port is {port!r}; give a number from 1 to 65535")
    if is_local():
        raise InvalidError(
            "modal.forward works inside a container alone, in the code of a Function that runs: there is no "
            "need for it on this machine"
        )
    if in_snapshot.get():
        raise InvalidError(
            "modal.forward opens no tunnel in an enter(snap=True) hook, whose memory other containers begin "
            "with: open it in an enter(snap=False) hook, or in a method"
        )
    relay, told = await io(_open(client, port, unencrypted, h2_enabled))
    try:
        yield Tunnel(told["host"], told["port"], told["unencrypted_host"], told["unencrypted_port"])
    finally:
        await io(relay.close())


async def _open(
    client: Client | None, port: int, unencrypted: bool, h2: bool
) -> tuple[TunnelClient, dict[str, Any]]:
    from .client import _container_token
    from .config import config
    from .wire._tunnel_client import Refused, TunnelClient

    async def address() -> tuple[str, str]:
        if client is not None:
            return await client._address()
        # Anew each time: the engine renews the token in place.
        return config["server_url"], _container_token()

    relay = TunnelClient(address, port, unencrypted=unencrypted, h2=h2)
    try:
        return relay, await relay.open()
    except Refused as error:
        raise InvalidError(str(error)) from None
    except OSError as error:
        raise exception.ConnectionError(f"the dispatcher makes no tunnel: {error}") from None
