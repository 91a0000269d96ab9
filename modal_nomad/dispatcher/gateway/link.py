"""A gateway's connection to the dispatcher: what is served comes in, what it is asked for goes out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import Any

import aiohttp

from modal_nomad import __version__
from modal_nomad.dispatcher._codec import decode, encode
from modal_nomad.dispatcher.gateway.directory import KEEP_SECONDS, Directory
from modal_nomad.dispatcher.gateway.discovery import ContainerAddress, container_key
from modal_nomad.dispatcher.gateway.routes import Route
from modal_nomad.dispatcher.gateway.tunnels import GatewayTunnels
from modal_nomad.dispatcher.gateway.wire import host_and_port, served_function
from modal_nomad.dispatcher.settings_files import SettingsError
from modal_nomad.dispatcher.store.base import hash_secret
from modal_nomad.wire import frames
from modal_nomad.wire.address import parse_address
from modal_nomad.wire.tls import client_context

logger = logging.getLogger("modal_nomad.dispatcher")

_AGAIN_SECONDS = (0.1, 0.3, 1.0, 2.0)
_BEAT_SECONDS = 15.0
_HELLO_SECONDS = 15.0
_TOKEN_SECONDS = 10.0
_CACHE_SECONDS = 30.0
_CACHE_SIZE = 10_000

Others = Callable[[str, Mapping[str, int], int], None]
"""Takes what a Function's containers have from other gateways: by container, and how many ended."""


class LinkError(Exception):
    """The dispatcher refuses this gateway; the text is one line that names the remedy."""


class Link:
    """Keeps a gateway connected with whichever of some dispatchers is at work.

    Attributes:
        peers: where other gateways are asked for pending results, by tag.
        tunnels: those that this gateway carries; None for none.

    Args:
        dispatchers: their addresses; standbys are among them.
        token: gives the gateways' token: read anew at each connection.
        tag: this gateway's.
        peer: where others ask it for pending results; None for nowhere.
        directory: is told what there is.
        others: is told how busy containers are with others.
        fail: answers requests that wait for a container.
        connected: is called when a dispatcher has said all that there is.
    """

    def __init__(
        self,
        dispatchers: tuple[str, ...],
        token: Callable[[], str],
        tag: str,
        peer: tuple[str, int] | None,
        directory: Directory,
        others: Others,
        fail: Callable[[str, int, str], None],
        connected: Callable[[], None],
    ) -> None:
        self.peers: dict[str, tuple[str, int]] = {}
        self.refused = ""
        self._dispatchers = dispatchers
        self._token = token
        self._secret = b""
        self._tag = tag
        self._peer = peer
        self._directory = directory
        self._others = others
        self._fail = fail
        self._connected = connected
        self._socket: aiohttp.ClientWebSocketResponse[Any] | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._asked: dict[int, asyncio.Future[bool]] = {}
        self._number = 0
        self._tokens: dict[tuple[str, str, str], float] = {}
        self._settling: asyncio.TimerHandle | None = None
        self.tunnels: GatewayTunnels | None = None

    # --- life -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Stay connected, for ever."""
        failures = 0
        while True:
            for address in self._dispatchers:
                try:
                    await self._serve(address)
                    failures = 0
                except LinkError as error:
                    if str(error) != self.refused:
                        self.refused = str(error)
                        logger.error("%s", error)
                except (aiohttp.ClientError, OSError, asyncio.TimeoutError, SettingsError) as error:
                    logger.info("the dispatcher at %s cannot be reached: %s", address, error)
                except Exception:
                    # One frame that is not understood must not leave the gateway alone for ever.
                    logger.exception("the dispatcher at %s is not understood", address)
            await asyncio.sleep(_AGAIN_SECONDS[min(failures, len(_AGAIN_SECONDS) - 1)])
            failures += 1

    async def _serve(self, address: str) -> None:
        where = parse_address(address)
        token = self._token()
        self._secret = token.encode()
        connector: aiohttp.BaseConnector
        if where.path:
            connector = aiohttp.UnixConnector(where.path)
        else:
            connector = aiohttp.TCPConnector(ssl=client_context() if where.tls else False)
        scheme = "https" if where.tls else "http"
        async with aiohttp.ClientSession(connector=connector) as http:
            try:
                socket = await asyncio.wait_for(
                    http.ws_connect(
                        f"{scheme}://{where.authority}/v1/connect",
                        headers={"Authorization": f"Bearer {token}"},
                        heartbeat=_BEAT_SECONDS,
                        max_msg_size=0,
                    ),
                    _HELLO_SECONDS,
                )
            except aiohttp.WSServerHandshakeError as error:
                if error.status == 401:
                    raise LinkError(
                        f"the dispatcher at {address} does not know this gateway's token: give both the "
                        "same gateway_token"
                    ) from None
                raise
            async with socket:
                try:
                    await self._talk(socket, address)
                finally:
                    self._lost()

    async def _talk(self, socket: aiohttp.ClientWebSocketResponse[Any], address: str) -> None:
        hello: frames.Header = {
            "t": "hello",
            "v": frames.PROTOCOL_VERSION,
            "version": __version__,
            "role": "gateway",
            "tag": self._tag,
            "peer": None if self._peer is None else list(self._peer),
            "tunnels": "" if self.tunnels is None else self.tunnels.inside,
        }
        await socket.send_bytes(encode(hello))
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.BINARY:
                return
            header, _ = decode(message.data)
            if header["t"] == "welcome":
                logger.info("connected with the dispatcher at %s", address)
                self.refused = ""
                self._socket = socket
                self._begin()
            elif header["t"] == "refused":
                raise LinkError(f"the dispatcher at {address} refuses this gateway: {header.get('e')}")
            else:
                self._take(header)

    def _begin(self) -> None:
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        self._directory.link_begins()
        if self.tunnels is not None:
            self.tunnels.link_begins()

    def _lost(self) -> None:
        self._socket = None
        self._directory.link_lost()
        waiting, self._asked = self._asked, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(ConnectionError())

    def close(self) -> None:
        """Forget what is still to be done."""
        if self._settling is not None:
            self._settling.cancel()
        for task in self._sending:
            task.cancel()

    def known(self) -> Mapping[str, tuple[str, int]]:
        """Return where other gateways are asked for pending results, by tag."""
        return self.peers

    # --- what comes in ----------------------------------------------------------------------------

    def _take(self, header: frames.Header) -> None:
        kind = header["t"]
        directory = self._directory
        if kind == "up":
            container_id = str(header["c"])
            host, port = host_and_port(header["a"])
            key = container_key(self._secret, container_id)
            directory.dispatcher.instance_up(
                str(header["f"]), ContainerAddress(container_id, host, port, key)
            )
        elif kind == "out":
            directory.dispatcher.instance_out(str(header["f"]), str(header["c"]))
        elif kind == "busy":
            self._others(str(header["f"]), header["r"], int(header["n"]))
        elif kind == "serve":
            function = served_function(header)
            directory.told(function.function_id)
            directory.dispatcher.serve(function)
        elif kind == "withdraw":
            directory.dispatcher.withdraw(str(header["f"]))
        elif kind == "fail":
            self._fail(str(header["f"]), int(header["s"]), str(header["x"]))
        elif kind == "synced":
            directory.synced()
            directory.forget_out()
            self._settling = asyncio.get_running_loop().call_later(KEEP_SECONDS, self._settled)
            self._connected()
        elif kind == "peers":
            self.peers = {str(tag): host_and_port(x) for tag, x in header["p"].items()}
        elif kind in ("tunnel", "untunnel", "absent") and self.tunnels is not None:
            self.tunnels.take(header)
        elif kind == "token":
            future = self._asked.pop(int(header["i"]), None)
            if future is not None and not future.done():
                future.set_result(bool(header["v"]))

    def _settled(self) -> None:
        self._directory.settled()
        if self.tunnels is not None:
            self.tunnels.settled()

    # --- what goes out ----------------------------------------------------------------------------

    def web_load(
        self, function_id: str, waiting: int, running: Mapping[str, int], finished: int, seconds: float
    ) -> None:
        """Say a Function's load; while there is no dispatcher nobody is there to be told."""
        self.say(
            {
                "t": "load",
                "f": function_id,
                "w": waiting,
                "r": dict(running),
                "n": finished,
                "d": round(seconds, 6),
            }
        )

    def say(self, header: frames.Header) -> bool:
        """Send a frame; False while there is no dispatcher."""
        socket = self._socket
        if socket is None:
            return False
        task = asyncio.get_running_loop().create_task(self._send(socket, encode(header)))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        return True

    async def _send(self, socket: aiohttp.ClientWebSocketResponse[Any], data: bytes) -> None:
        try:
            await socket.send_bytes(data)
        except (ConnectionError, aiohttp.ClientError):
            # The reader notices as well, and dials in again.
            return

    async def check_token(self, key: str, secret: str, route: Route) -> bool:
        """Say whether a proxy auth token opens an endpoint; without a dispatcher those seen before do.

        Raises:
            ConnectionError: nobody can say.
        """
        known = (key, hash_secret(secret), route.environment)
        until = self._tokens.get(known)
        if until is not None and (until > monotonic() or self._socket is None):
            return True
        answer: Awaitable[bool] = self._ask(key, secret, route.environment)
        opens = await asyncio.wait_for(answer, _TOKEN_SECONDS)
        if len(self._tokens) >= _CACHE_SIZE:
            self._tokens.clear()
        if opens:
            self._tokens[known] = monotonic() + _CACHE_SECONDS
        else:
            self._tokens.pop(known, None)
        return opens

    async def _ask(self, key: str, secret: str, environment: str) -> bool:
        self._number += 1
        number = self._number
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        try:
            if not self.say({"t": "token", "i": number, "k": key, "s": secret, "e": environment}):
                raise ConnectionError
            return bool(await future)
        finally:
            self._asked.pop(number, None)
