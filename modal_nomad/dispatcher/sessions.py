"""The two kinds of WebSocket peers, seen from the dispatcher."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator, Sequence
from typing import Any

from aiohttp import web

from modal_nomad.dispatcher.auth import Identity
from modal_nomad.wire import frames


class Session:
    """A peer: frames to it are queued and written by one task, in order."""

    def __init__(self, socket: web.WebSocketResponse, identity: Identity) -> None:
        self.socket = socket
        self.identity = identity
        self._outbox: list[bytes] = []
        self._wake = asyncio.Event()
        self._busy = False
        self._rest: asyncio.Future[None] | None = None
        self._writer = asyncio.ensure_future(self._write())

    def send(self, frame: bytes) -> None:
        """Send a frame now where the peer takes it, else queue it."""
        if not self._busy and not self._outbox:
            # Stepped by hand: a task's wake-up per frame would cost more than sending it.
            sending = self.socket.send_bytes(frame)
            try:
                step = sending.send(None)
            except StopIteration:
                return
            except (ConnectionError, RuntimeError):
                return
            self._busy = True
            self._rest = asyncio.ensure_future(self._finish(sending, step))
            return
        self._outbox.append(frame)
        self._wake.set()

    async def _finish(self, sending: Coroutine[Any, Any, None], step: Any) -> None:
        try:
            await _resumed(sending, step)
        except (ConnectionError, RuntimeError):
            return
        finally:
            self._busy = False
            self._wake.set()

    def send_frame(self, header: frames.Header, payloads: Sequence[bytes] = ()) -> None:
        """Encode and queue a frame."""
        self.send(frames.encode(header, payloads))

    async def close(self) -> None:
        """Write what is queued, then close."""
        self._writer.cancel()
        for frame in self._outbox:
            await self.socket.send_bytes(frame)
        await self.socket.close()

    def abandon(self) -> None:
        """Stop writing: the socket is gone."""
        self._writer.cancel()
        if self._rest is not None:
            self._rest.cancel()

    async def _write(self) -> None:
        socket = self.socket
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._busy:
                continue
            outbox, self._outbox = self._outbox, []
            if not outbox:
                continue
            self._busy = True
            for frame in outbox:
                try:
                    await socket.send_bytes(frame)
                except (ConnectionError, RuntimeError):
                    # The reading side sees the same end and cleans up.
                    return
            self._busy = False
            if self._outbox:
                self._wake.set()


class ClientSession(Session):
    """A caller: an SDK process, or a container that calls Functions.

    Attributes:
        owner: the client's id, made unique by its container for callers inside one.
        caller: whose calls these are for the call engine: the container, or the client outside of one.
    """

    def __init__(self, socket: web.WebSocketResponse, identity: Identity, owner: str) -> None:
        super().__init__(socket, identity)
        self.owner = owner
        self.caller = identity.container or owner


class WorkerSession(Session):
    """A container's worker."""

    def __init__(self, socket: web.WebSocketResponse, identity: Identity, container_id: str) -> None:
        super().__init__(socket, identity)
        self.container_id = container_id
        self.said_bye = False


@types.coroutine
def _resumed(coroutine: Coroutine[Any, Any, None], step: Any) -> Generator[Any, Any, None]:
    """Go on awaiting a coroutine whose first step was taken by hand and gave ``step``."""
    try:
        while True:
            try:
                value = yield step
            except BaseException as error:
                step = coroutine.throw(error)
            else:
                step = coroutine.send(value)
    except StopIteration:
        return


def integers(value: Any, count: int | None = None) -> list[int]:
    """Return a list of integers from a frame's header. Raises FrameError."""
    if type(value) is not list or (count is not None and len(value) != count):
        raise frames.FrameError("a list of numbers is missing or has the wrong length")
    for item in value:
        if type(item) is not int:
            raise frames.FrameError("a list of numbers holds something else")
    return value


def text(value: Any) -> str:
    """Return a string from a frame's header. Raises FrameError."""
    if type(value) is not str:
        raise frames.FrameError("a string is missing")
    return value
