"""Tunnels through a gateway: it listens for all that the dispatcher names, and containers come to it.

Every gateway has the same tunnels at the same ports, so whoever was connected through one that ended finds
the others at the same address.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import hmac
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from modal_nomad.dispatcher.gateway.certificates import Certificates
from modal_nomad.dispatcher.settings_files import SettingsError
from modal_nomad.dispatcher.tunnels.listening import Handshakes, Listening, bound_socket
from modal_nomad.dispatcher.tunnels.names import Names
from modal_nomad.wire import frames
from modal_nomad.wire.address import Address, parse_address
from modal_nomad.wire.tunnels import PATH, UPGRADE, Framed, Half

logger = logging.getLogger("modal_nomad.dispatcher")

_HEAD_BYTES = 1 << 13
_HEAD_SECONDS = 15.0
_REQUEST = re.compile(rf"GET {PATH}/(tn-[0-9A-Za-z]{{1,60}})/([0-9]{{1,18}}) HTTP/1\.1\r\n".encode())
_KEY = re.compile(rb"\r\nauthorization: Bearer ([0-9a-f]{64})(?:\r\n|$)", re.IGNORECASE)
_GONE = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_COME_IN = f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: {UPGRADE}\r\nConnection: Upgrade\r\n\r\n".encode()

Say = Callable[[frames.Header], bool]
"""Says something to the dispatcher; False while there is none."""


@dataclass(frozen=True)
class GatewayTunnelSettings:
    """Where a gateway has tunnels.

    Attributes:
        listen: the address that their ports are listened for at; empty for none.
        tls_port: where all are that are told apart by host name; 0 for nowhere.
        inside_listen: where containers come for connections: an address and any free port.
        inside_host: how they reach it, where that is another host.
        max_handshakes: TLS handshakes under way at a time.
    """

    listen: str = ""
    tls_port: int = 0
    inside_listen: str = "http://127.0.0.1:0"
    inside_host: str = ""
    max_handshakes: int = 1000

    @classmethod
    def read(cls, given: Mapping[str, Any], *, processes: int = 1) -> GatewayTunnelSettings:
        """Read the table ``[tunnels]`` of a gateway. Raises SettingsError."""
        fields = {f.name: type(f.default) for f in dataclasses.fields(cls)}
        if unknown := sorted(set(given) - set(fields)):
            raise SettingsError(
                f"[tunnels] has no setting {unknown[0]!r}; known are {', '.join(sorted(fields))}"
            )
        for name, value in given.items():
            if type(value) is not fields[name]:
                raise SettingsError(f"[tunnels]: {name} must be of type {fields[name].__name__}")
        made = cls(**given)
        if not 0 <= made.tls_port < 65536:
            raise SettingsError(f"[tunnels]: tls_port is {made.tls_port}; give a port, such as 443")
        where = made.inside
        if where.path or where.tls:
            raise SettingsError('[tunnels]: inside_listen must be an address such as "http://10.0.0.5:0"')
        if processes > 1 and where.port:
            raise SettingsError(
                "[tunnels]: inside_listen must have port 0 with several processes: each has one of its own"
            )
        return made

    @property
    def inside(self) -> Address:
        """Where containers come. Raises SettingsError."""
        try:
            return parse_address(self.inside_listen)
        except ValueError as error:
            raise SettingsError(f"[tunnels]: inside_listen: {error}") from None


class GatewayTunnels:
    """The tunnels that a gateway carries.

    Attributes:
        inside: where containers come, as a URL.

    Args:
        settings: where they are.
        certificates: what is shown.
        say: says something to the dispatcher.
        shared: other processes of this gateway have the same ports.
    """

    def __init__(
        self, settings: GatewayTunnelSettings, certificates: Certificates, say: Say, *, shared: bool
    ) -> None:
        self.inside = ""
        self.handshakes = Handshakes(settings.max_handshakes)
        self._settings = settings
        self._certificates = certificates
        self._say = say
        self._shared = shared
        self._secret = os.urandom(32)
        self._names = Names(lambda: certificates, self.handshakes)
        self._servers: list[asyncio.AbstractServer] = []
        self._tunnels: dict[str, Listening] = {}
        self._headers: dict[str, frames.Header] = {}
        self._stale: set[str] = set()
        self._orders: asyncio.Queue[frames.Header] = asyncio.Queue()

    # --- life -------------------------------------------------------------------------------------

    async def open(self, stack: contextlib.AsyncExitStack) -> None:
        """Begin to listen for names, and for containers. Raises SettingsError: a port is taken."""
        settings, where = self._settings, self._settings.inside
        try:
            inside = bound_socket(where.host, where.port)
            if settings.tls_port:
                sock = bound_socket(settings.listen, settings.tls_port, shared=self._shared)
                self._servers.append(await self._names.listen(sock))
        except OSError as error:
            raise SettingsError(
                f"[tunnels]: a port cannot be listened at: {error.strerror or error}"
            ) from None
        server = await asyncio.get_running_loop().create_server(lambda: _Arrived(self), sock=inside)
        stack.callback(server.close)
        host = settings.inside_host or where.host
        self.inside = f"http://{f'[{host}]' if ':' in host else host}:{inside.getsockname()[1]}"
        stack.callback(self.close)

    async def run(self) -> None:
        """Do what the dispatcher says, in its order, for ever."""
        while True:
            header = await self._orders.get()
            if header["t"] == "tunnel":
                await self._put(header)
            else:
                self._drop(str(header["i"]))

    def leave(self) -> None:
        """Listen no more; what is open may go on."""
        for server in self._servers:
            server.close()
        for tunnel in self._tunnels.values():
            tunnel.leave()

    @property
    def busy(self) -> bool:
        """Whether there are connections."""
        return any(x.busy for x in self._tunnels.values())

    def close(self) -> None:
        """Break off all there is."""
        self.leave()
        for tunnel in self._tunnels.values():
            tunnel.close()
        self._tunnels.clear()

    # --- what the dispatcher says -----------------------------------------------------------------

    def link_begins(self) -> None:
        """A dispatcher begins to name tunnels; what an earlier one named holds for a while."""
        self._stale = set(self._headers)

    def settled(self) -> None:
        """Tunnels that it has not named are not coming back."""
        for tunnel_id in self._stale:
            self._orders.put_nowait({"t": "untunnel", "i": tunnel_id})
        self._stale = set()

    def take(self, header: frames.Header) -> None:
        """Take a frame."""
        tunnel_id = str(header["i"])
        self._stale.discard(tunnel_id)
        if header["t"] == "absent":
            tunnel = self._tunnels.get(tunnel_id)
            if tunnel is not None:
                tunnel.refuse(int(header["n"]))
        else:
            self._orders.put_nowait(header)

    async def _put(self, header: frames.Header) -> None:
        tunnel_id = str(header["i"])
        error = ""
        if self._headers.get(tunnel_id) == header:
            # Of before: who waits there has waited for this.
            self._tunnels[tunnel_id].fetch_again()
        else:
            self._drop(tunnel_id)
            try:
                await self._listen(tunnel_id, header)
            except OSError as failure:
                self._drop(tunnel_id)
                error = f"port {header['p'] or header['q']}: {failure.strerror or failure}"
                logger.warning("tunnel %s is not carried here: %s", tunnel_id, error)
        self._say({"t": "tunnelled", "i": tunnel_id, "e": error})

    async def _listen(self, tunnel_id: str, header: frames.Header) -> None:
        settings = self._settings

        def fetch(number: int) -> None:
            self._say({"t": "come", "i": tunnel_id, "n": number, "k": self.key(tunnel_id, number)})

        tunnel = Listening(tunnel_id, fetch, int(header["m"]), h2=bool(header["h"]))
        self._tunnels[tunnel_id], self._headers[tunnel_id] = tunnel, header
        if header["n"]:
            if not settings.tls_port:
                raise OSError(0, "[tunnels] of this gateway has no tls_port, and the dispatcher's a domain")
            self._names.put(str(header["n"]), tunnel)
        if header["p"]:
            sock = bound_socket(settings.listen, int(header["p"]), shared=self._shared)
            await tunnel.listen_securely(sock, self._certificates, self.handshakes)
        if header["q"]:
            await tunnel.listen(bound_socket(settings.listen, int(header["q"]), shared=self._shared))

    def _drop(self, tunnel_id: str) -> None:
        header = self._headers.pop(tunnel_id, None)
        if header is not None:
            self._names.drop(str(header["n"]))
            self._tunnels.pop(tunnel_id).close()

    # --- containers -------------------------------------------------------------------------------

    def key(self, tunnel_id: str, number: int) -> str:
        """Return what a container shows that was sent for a connection."""
        return hmac.new(self._secret, f"{tunnel_id}.{number}".encode(), hashlib.sha256).hexdigest()

    def arrived(self, tunnel_id: str, number: int, key: str) -> Half | None:
        """Return the connection that a container comes for; None where it is not there, or not for it."""
        tunnel = self._tunnels.get(tunnel_id)
        if tunnel is None or not hmac.compare_digest(key, self.key(tunnel_id, number)):
            return None
        return tunnel.take(number)


class _Arrived(Framed):
    """A connection that a container came with."""

    def __init__(self, tunnels: GatewayTunnels) -> None:
        super().__init__()
        self._tunnels = tunnels
        self._request: bytes | None = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._timer = asyncio.get_running_loop().call_later(_HEAD_SECONDS, self.abort)

    def data_received(self, data: bytes) -> None:
        if self._request is None:
            super().data_received(data)
            return
        self._request += data
        head, end, rest = self._request.partition(b"\r\n\r\n")
        if not end and len(self._request) <= _HEAD_BYTES:
            return
        self._request = None
        self._cancel()
        asked, key = _REQUEST.match(head), _KEY.search(head)
        half = None
        if end and asked is not None and key is not None:
            half = self._tunnels.arrived(asked[1].decode(), int(asked[2]), key[1].decode())
        if half is None:
            self.transport.write(_GONE)
            self.transport.close()
            return
        self.transport.write(_COME_IN)
        self._early = rest
        self.join(half)

    def pass_on(self, data: bytes) -> None:
        super().data_received(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._cancel()
        super().connection_lost(error)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
