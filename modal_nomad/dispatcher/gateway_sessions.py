"""Gateways in processes of their own: what they are told over a socket, and what they say."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from modal_nomad.dispatcher.gateway.discovery import ContainerAddress, ServedFunction
from modal_nomad.dispatcher.gateway.routes import Route
from modal_nomad.dispatcher.gateway.wire import host_and_port, served_frame
from modal_nomad.dispatcher.sessions import MAX_NUMBER, Session, integers, text
from modal_nomad.wire import frames
from modal_nomad.wire.address import parse_address

if TYPE_CHECKING:
    from modal_nomad.dispatcher._peer import Peer
    from modal_nomad.dispatcher.auth import Identity
    from modal_nomad.dispatcher.tunnels import AssignedTunnels
    from modal_nomad.dispatcher.web import Web

_TELL_SECONDS = 0.02
_TAG = re.compile("[0-9A-Za-z]{6}")
_MAX_SECONDS = 1e9


class GatewaySession(Session):
    """One gateway process.

    Attributes:
        tag: what the ids of its calls end in.
        inside: where containers come to it for connections through tunnels; empty where it carries none.
        address: where other gateways ask it for pending results; None for nowhere.

    Args:
        peer: its socket.
        identity: which proved that it is one.
        web: what is served.
        hello: its first frame.
        tunnels: those that gateways are to carry; None where they carry none.
    """

    def __init__(
        self,
        peer: Peer,
        identity: Identity,
        web: Web,
        hello: frames.Header,
        tunnels: AssignedTunnels | None = None,
    ) -> None:
        super().__init__(peer, identity)
        self.tag = text(hello.get("tag"))
        if not _TAG.fullmatch(self.tag):
            raise frames.FrameError("a gateway's tag has six letters or digits")
        self.address = None if hello.get("peer") is None else host_and_port(hello["peer"])
        self.inside = _inside(hello.get("tunnels", ""))
        self._tunnels = tunnels if self.inside else None
        self._web = web
        self._all = web.gateways
        self._jobs: dict[str, str] = {}
        self._functions: dict[str, str] = {}
        self._finished: dict[str, int] = {}
        self._told: asyncio.TimerHandle | None = None
        self._end: Callable[[], None] | None = None

    # --- begin and end ----------------------------------------------------------------------------

    def begin(self) -> None:
        """Tell it all that there is."""
        before = self._all.get(self.tag)
        if before is not None:
            # The same gateway again: its old connection broke without our noticing.
            before.peer.abort()
            before.end()
        self._all[self.tag] = self
        self._end = self._web.registry.follow(self)
        if self._tunnels is not None:
            self._tunnels.gateway_up(self)
        self.send_frame({"t": "synced"})
        self._introduce()

    def end(self) -> None:
        """Forget it: its requests are over, or said anew when it dials in again."""
        if self._end is None:
            return
        self._end()
        self._end = None
        if self._told is not None:
            self._told.cancel()
        if self._all.get(self.tag) is self:
            del self._all[self.tag]
        self._web.gateway_gone(self.tag)
        if self._tunnels is not None:
            self._tunnels.gateway_gone(self)
        self._introduce()

    def _introduce(self) -> None:
        known = {x.tag: list(x.address) for x in self._all.values() if x.address is not None}
        for session in self._all.values():
            session.send_frame({"t": "peers", "p": known})

    # --- what it is told --------------------------------------------------------------------------

    def serve(self, function: ServedFunction) -> None:
        self._jobs[function.function_id] = function.job
        self._functions[function.job] = function.function_id
        self.send_frame(served_frame(function))

    def withdraw(self, function_id: str) -> None:
        job = self._jobs.pop(function_id, None)
        if job is not None and self._functions.get(job) == function_id:
            del self._functions[job]
            self.send_frame({"t": "withdraw", "f": job})

    def instance_up(self, function_id: str, address: ContainerAddress) -> None:
        # Not its key: gateways make it themselves.
        where = [address.host, address.port]
        self.send_frame({"t": "up", "f": self._jobs[function_id], "c": address.container_id, "a": where})

    def instance_out(self, function_id: str, container_id: str) -> None:
        self.send_frame({"t": "out", "f": self._jobs[function_id], "c": container_id})

    def fail(self, function_id: str, status: int, words: str) -> None:
        job = self._jobs.get(function_id)
        if job is not None:
            self.send_frame({"t": "fail", "f": job, "s": status, "x": words})

    def others(self, function_id: str, finished: int) -> None:
        """Have it told, soon, what containers have from other gateways."""
        self._finished[function_id] = self._finished.get(function_id, 0) + finished
        if self._told is None:
            self._told = asyncio.get_running_loop().call_later(_TELL_SECONDS, self._tell)

    def _tell(self) -> None:
        self._told = None
        changed, self._finished = self._finished, {}
        for function_id, finished in changed.items():
            job = self._jobs.get(function_id)
            if job is not None:
                running = dict(self._web.loads.elsewhere(self.tag, function_id))
                self.send_frame({"t": "busy", "f": job, "r": running, "n": finished})

    # --- what it says -----------------------------------------------------------------------------

    def take(self, header: frames.Header, background: Callable[[Any], None]) -> None:
        """Take a frame. Raises FrameError."""
        kind = header["t"]
        if kind == "load":
            self._load(header)
        elif kind == "token":
            background(self._check_token(header))
        elif kind == "tunnelled" and self._tunnels is not None:
            self._tunnels.listens(self, text(header.get("i")), text(header.get("e")))
        elif kind == "come" and self._tunnels is not None:
            (number,) = integers([header.get("n")])
            self._tunnels.came(self, text(header.get("i")), number, text(header.get("k")))
        else:
            raise frames.FrameError(f"a gateway sent a frame of type {kind!r}")

    def _load(self, header: frames.Header) -> None:
        running = header.get("r")
        waiting, finished = integers([header.get("w"), header.get("n")])
        seconds = header.get("d")
        if (
            not isinstance(running, dict)
            or not all(type(x) is int and 0 <= x <= MAX_NUMBER for x in running.values())
            or not isinstance(seconds, (int, float))
            or not 0 <= seconds <= _MAX_SECONDS
        ):
            raise frames.FrameError("a load counts something else than requests")
        function_id = self._functions.get(text(header.get("f")))
        if function_id is None:
            # Removed in this moment.
            return
        self._web.take_load(self.tag, function_id, waiting, running, finished, float(seconds))

    async def _check_token(self, header: frames.Header) -> None:
        key, secret = text(header.get("k")), text(header.get("s"))
        route = Route("", "", environment=text(header.get("e")))
        opens = await self._web.check_token(key, secret, route)
        self.send_frame({"t": "token", "i": header.get("i"), "v": opens})


def _inside(value: Any) -> str:
    url = text(value)
    if url:
        try:
            where = parse_address(url)
        except ValueError as error:
            raise frames.FrameError(f"a gateway says no usable address for containers: {error}") from None
        if where.path or where.tls:
            raise frames.FrameError("containers come to a gateway by http://")
    return url
