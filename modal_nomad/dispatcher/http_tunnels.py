"""A container's side of its tunnels: one WebSocket for each, and a connection for each that came in.

``GET /v1/tunnels?unencrypted=1&h2=1&ticket=…`` upgrades to a WebSocket that lives as long as the tunnel. Its
first message says where the tunnel is, each later one the number of a connection that somebody made. For
that the container comes with ``GET /v1/tunnels/{id}/{number}``, upgraded to the framed stream of
``wire/tunnels``, or says the number back when it has nothing that listens. Where a gateway has the connection
the message says so too, and the container goes there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from modal_nomad.dispatcher._peer import POLICY, Peer
from modal_nomad.dispatcher.auth import Identity
from modal_nomad.dispatcher.core import Dispatcher
from modal_nomad.dispatcher.tunnels.room import Room
from modal_nomad.exception import InvalidError
from modal_nomad.wire.tunnels import PATH, UPGRADE, Framed

logger = logging.getLogger("modal_nomad.dispatcher")

Identify = Callable[[web.Request], Awaitable[Identity]]

_NUMBER = re.compile(r"[0-9]{1,18}")
_REFUSED = re.compile(r"([0-9]{1,18})(?: ([0-9A-Za-z]{6}))?")


def add_routes(app: web.Application, dispatcher: Dispatcher, identify: Identify) -> None:
    """Add the paths of this module to an application.

    Args:
        app: the application.
        dispatcher: whose tunnels they are.
        identify: says who asks, and that its container is known.
    """

    async def container(request: web.Request) -> str:
        identity = await identify(request)
        if not identity.container:
            raise web.HTTPForbidden(text="only a container has tunnels")
        if identity.container not in dispatcher.containers.infos:
            raise web.HTTPServiceUnavailable(text="the dispatcher does not know this container by now")
        return identity.container

    controls: set[Peer] = set()

    async def open_tunnel(request: web.Request) -> web.StreamResponse:
        container_id = await container(request)
        peer = Peer()
        answer = await peer.accept(request)
        controls.add(peer)
        try:
            info = dispatcher.containers.infos.get(container_id)
            if info is not None and info.function.spec.restrict_modal_access:
                _refuse(
                    peer, "this Function has restrict_modal_access=True: its code may use nothing of modal"
                )
            else:
                await _serve(dispatcher.tunnels, peer, container_id, request.query)
        finally:
            controls.discard(peer)
        return answer

    async def take(request: web.Request) -> web.StreamResponse:
        container_id = await container(request)
        if request.headers.get("Upgrade", "").lower() != UPGRADE:
            raise web.HTTPBadRequest(text=f"this address speaks {UPGRADE}")
        tunnel = dispatcher.tunnels.find(request.match_info["tunnel"], container_id)
        number = request.match_info["number"]
        outside = tunnel.take(int(number)) if tunnel is not None and _NUMBER.fullmatch(number) else None
        if outside is None:
            raise web.HTTPNotFound(text="this connection is not there any more")
        try:
            answer = web.StreamResponse(status=101, headers={"Upgrade": UPGRADE, "Connection": "Upgrade"})
            await answer.prepare(request)
            framed = _Taken(request)
            framed.join(outside)
        except BaseException:
            outside.abort()
            raise
        await framed.gone
        return answer

    async def shutdown(app: web.Application) -> None:
        dispatcher.tunnels.close_all()
        for peer in list(controls):
            # Not a clean close: containers are to come again, to our successor.
            peer.abort()

    app.router.add_get(PATH, open_tunnel)
    app.router.add_get(f"{PATH}/{{tunnel}}/{{number}}", take)
    app.on_shutdown.append(shutdown)


def _refuse(peer: Peer, reason: str) -> None:
    peer.send(json.dumps({"refused": reason}).encode())
    peer.close()


async def _serve(tunnels: Room, peer: Peer, container_id: str, query: Mapping[str, str]) -> None:
    """Have a tunnel for as long as its container is connected."""

    def fetch(said: dict[str, Any]) -> None:
        peer.send(json.dumps(said).encode())

    try:
        tunnel, told = await tunnels.open(
            container_id,
            fetch,
            unencrypted=query.get("unencrypted") == "1",
            h2=query.get("h2") == "1",
            ticket=query.get("ticket", ""),
        )
    except InvalidError as error:
        _refuse(peer, str(error))
        return
    except OSError as error:
        logger.error("a tunnel cannot be encrypted: %s", error)
        _refuse(peer, f"the gateway's certificate cannot be used: {error}")
        return

    def take(message: bytes) -> None:
        found = _REFUSED.fullmatch(message.decode("latin-1"))
        if found is None:
            peer.close(POLICY, "a container says the number of a connection, or nothing")
            return
        tunnel.refuse(int(found[1]), found[2] or "")

    try:
        peer.send(json.dumps(told).encode())
        peer.start(take)
        await peer.closed
    finally:
        tunnels.close(tunnel)


class _Taken(Framed):
    """The framed stream on a connection that aiohttp has let go.

    Attributes:
        gone: done when there is no connection any more.
    """

    def __init__(self, request: web.Request) -> None:
        super().__init__()
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._http: Any = request.protocol
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the container left during the handshake")
        self.connection_made(transport)
        transport.set_protocol(self)
        # What a hasty container sent right behind its request; aiohttp kept it unread.
        self._early = getattr(self._http, "_message_tail", b"")

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        if not self.gone.done():
            self.gone.set_result(None)
        # aiohttp's half of the connection ends with ours.
        self._http.connection_lost(error)
