"""Tunnels that gateways of other processes listen for: which ports they have, and who is told of whom."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from modal_nomad.dispatcher.tunnels.room import ContainerTunnel, Fetch, check_room, host_of, told
from modal_nomad.dispatcher.tunnels.settings import TunnelSettings
from modal_nomad.dispatcher.tunnels.tickets import Place, Tickets
from modal_nomad.exception import InvalidError
from modal_nomad.wire import frames
from modal_nomad.wire.ids import new_id

if TYPE_CHECKING:
    from modal_nomad.dispatcher.gateway.certificates import Certificates

logger = logging.getLogger("modal_nomad.dispatcher")

_TRIES = 4
_ANSWER_SECONDS = 5.0
_FIRST_SECONDS = 10.0


class TunnelGateway(Protocol):
    """A gateway that carries tunnels.

    Attributes:
        tag: which one it is.
        inside: where containers come to it, a URL.
    """

    tag: str
    inside: str

    def send_frame(self, header: frames.Header) -> None:
        """Tell it something."""


@dataclass(eq=False)
class AssignedTunnel:
    """One tunnel.

    Attributes:
        container_id: the container that has it.
        place: its ports.
        header: what gateways are told.
        fetch: has the container come for a connection.
    """

    container_id: str
    place: Place
    header: frames.Header
    fetch: Fetch
    gateways: dict[str, TunnelGateway]

    @property
    def tunnel_id(self) -> str:
        """``tn-…``."""
        return self.place.tunnel_id

    def refuse(self, number: int, tag: str = "") -> None:
        """Have a gateway break off a connection that the container does not take."""
        gateway = self.gateways.get(tag)
        if gateway is not None:
            gateway.send_frame({"t": "absent", "i": self.tunnel_id, "n": number})


class AssignedTunnels:
    """All tunnels of this dispatcher: every gateway has the same.

    Args:
        settings: where they may be.
        key: what proves to us that a container had a tunnel's ports before.
    """

    def __init__(self, settings: TunnelSettings, key: bytes) -> None:
        self.settings = settings
        self._tickets = Tickets(key)
        self._tunnels: dict[str, AssignedTunnel] = {}
        self._gateways: dict[str, TunnelGateway] = {}
        self._answers: dict[tuple[str, str], asyncio.Future[str]] = {}
        self._any = asyncio.Event()
        self._leaving = False

    async def start(self, certificates: Certificates | None, stack: contextlib.AsyncExitStack) -> None:
        """Gateways have certificates of their own."""

    def __len__(self) -> int:
        return len(self._tunnels)

    # --- gateways ---------------------------------------------------------------------------------

    def gateway_up(self, gateway: TunnelGateway) -> None:
        """Have a gateway listen as well."""
        self._gateways[gateway.tag] = gateway
        self._any.set()
        for tunnel in self._tunnels.values():
            gateway.send_frame(tunnel.header)

    def gateway_gone(self, gateway: TunnelGateway) -> None:
        """Forget a gateway: the others have its tunnels, too."""
        if self._gateways.get(gateway.tag) is not gateway:
            return
        del self._gateways[gateway.tag]
        if not self._gateways:
            self._any.clear()
        for tag, tunnel_id in list(self._answers):
            if tag == gateway.tag:
                self._answers.pop((tag, tunnel_id)).set_result("it ended")

    def listens(self, gateway: TunnelGateway, tunnel_id: str, error: str) -> None:
        """Take a gateway's word on whether it listens for a tunnel: nothing, or why it does not."""
        future = self._answers.pop((gateway.tag, tunnel_id), None)
        if future is not None and not future.done():
            future.set_result(error)
        elif error:
            logger.warning("gateway %s does not carry tunnel %s: %s", gateway.tag, tunnel_id, error)

    def came(self, gateway: TunnelGateway, tunnel_id: str, number: int, key: str) -> None:
        """Have a container come to a gateway for a connection that somebody made there."""
        tunnel = self._tunnels.get(tunnel_id)
        if tunnel is not None:
            tunnel.fetch({"come": number, "at": [gateway.inside, gateway.tag, key]})

    # --- containers -------------------------------------------------------------------------------

    async def open(
        self,
        container_id: str,
        fetch: Fetch,
        *,
        unencrypted: bool,
        h2: bool,
        ticket: str = "",
    ) -> tuple[AssignedTunnel, dict[str, Any]]:
        """Make a tunnel, as ``Room`` says."""
        check_room(self.settings, self._tunnels)
        before = self._tickets.read(container_id, ticket)
        if before.tunnel_id:
            # Gateways that have it go on, and those to come are told.
            tunnel = self._new(container_id, before, fetch, h2)
            self._tunnels[tunnel.tunnel_id] = tunnel
            for gateway in self._gateways.values():
                gateway.send_frame(tunnel.header)
        else:
            tunnel = await self._assign(container_id, fetch, unencrypted, h2)
        return tunnel, told(self.settings, self._tickets, container_id, tunnel.place)

    async def _assign(self, container_id: str, fetch: Fetch, unencrypted: bool, h2: bool) -> AssignedTunnel:
        try:
            await asyncio.wait_for(self._any.wait(), _FIRST_SECONDS)
        except asyncio.TimeoutError:
            raise InvalidError(
                "no gateway that carries tunnels is connected with the dispatcher: give one a listen under "
                "[tunnels], and start it (modal-nomad gateway)"
            ) from None
        tunnel_id, said = new_id("tn"), ""
        for last in (*[False] * (_TRIES - 1), True):
            # A port that one of them has not free: others are tried, until what some have must do.
            place = self._place(tunnel_id, unencrypted)
            tunnel = self._new(container_id, place, fetch, h2)
            self._tunnels[tunnel_id] = tunnel
            try:
                errors = await self._ask_all(tunnel)
            except BaseException:
                self.close(tunnel)
                raise
            failed = [x for x in errors if x]
            if len(failed) < len(errors) and (last or not failed):
                if failed:
                    logger.warning(
                        "tunnel %s: %d gateways do not carry it: %s", tunnel_id, len(failed), failed[0]
                    )
                logger.info("tunnel %s of %s is at the gateways", tunnel_id, container_id)
                return tunnel
            said = failed[0] if failed else "they ended"
            self.close(tunnel)
        raise InvalidError(
            f"no gateway can listen for the tunnel ({said}): widen ports under [tunnels] in the dispatcher's "
            "settings"
        )

    async def _ask_all(self, tunnel: AssignedTunnel) -> list[str]:
        loop = asyncio.get_running_loop()
        waiting: list[asyncio.Future[str]] = []
        for gateway in self._gateways.values():
            future: asyncio.Future[str] = loop.create_future()
            self._answers[gateway.tag, tunnel.tunnel_id] = future
            waiting.append(future)
            gateway.send_frame(tunnel.header)
        if waiting:
            await asyncio.wait(waiting, timeout=_ANSWER_SECONDS)
        return [x.result() if x.done() and not x.cancelled() else "it does not answer" for x in waiting]

    def _place(self, tunnel_id: str, unencrypted: bool) -> Place:
        low, high = self.settings.port_range
        taken = {y for x in self._tunnels.values() for y in (x.place.port, x.place.plain_port)}
        free = [x for x in range(low, high + 1) if x not in taken]
        count = int(not self.settings.domain) + int(unencrypted)
        if len(free) < count:
            raise InvalidError(
                "no port is free for the tunnel: widen ports under [tunnels] in the dispatcher's settings"
            )
        ports = random.sample(free, count)
        return Place(tunnel_id, 0 if self.settings.domain else ports[0], ports[-1] if unencrypted else 0)

    def _new(self, container_id: str, place: Place, fetch: Fetch, h2: bool) -> AssignedTunnel:
        header: frames.Header = {
            "t": "tunnel",
            "i": place.tunnel_id,
            "p": place.port,
            "q": place.plain_port,
            "h": int(h2),
            "n": host_of(self.settings, self._tickets, place.tunnel_id) if self.settings.domain else "",
            "m": self.settings.max_connections,
        }
        return AssignedTunnel(container_id, place, header, fetch, self._gateways)

    def find(self, tunnel_id: str, container_id: str) -> None:
        """Connections are at the gateways: here is none."""

    def close(self, tunnel: ContainerTunnel) -> None:
        """End a tunnel."""
        if self._tunnels.get(tunnel.tunnel_id) is not tunnel:
            return
        del self._tunnels[tunnel.tunnel_id]
        for key in [x for x in self._answers if x[1] == tunnel.tunnel_id]:
            self._answers.pop(key).cancel()
        if not self._leaving:
            for gateway in self._gateways.values():
                gateway.send_frame({"t": "untunnel", "i": tunnel.tunnel_id})

    def close_all(self) -> None:
        """Leave the tunnels to the gateways: our successor is told of them again."""
        self._leaving = True
        for tunnel in list(self._tunnels.values()):
            self.close(tunnel)
