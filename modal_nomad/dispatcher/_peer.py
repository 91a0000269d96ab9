"""A peer's WebSocket: aiohttp shakes hands, then frames go straight between the transport and us.

A task, a queue and a future per message would cost a short call more than all else that is done for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from aiohttp import web

from modal_nomad.wire import frames, websocket

logger = logging.getLogger("modal_nomad.dispatcher")

_BEAT_SECONDS = 20.0
NORMAL, UNSUPPORTED, MALFORMED, POLICY, INTERNAL = 1000, 1003, 1007, 1008, 1011

Take = Callable[[bytes], None]


class Peer(asyncio.Protocol):
    """The server's half of one WebSocket, from the handshake on.

    Attributes:
        take: gets each binary message; what comes before it is set waits.
        closed: done when the socket is gone.
        close_code: the code that the peer closed with, or 0.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.close_code = 0
        self._take: Take | None = None
        self._early: list[bytes] = []
        self._messages = websocket.Messages(masked=True, limit=frames.MAX_FRAME_BYTES * 2)
        self._transport: Any = None
        self._http: Any = None
        self._closing = False
        self._heard = True
        self._loop = loop
        self._beat = loop.call_later(_BEAT_SECONDS, self._ping)

    async def accept(self, request: web.Request) -> web.StreamResponse:
        """Answer the handshake and take the connection over from aiohttp.

        Raises:
            HTTPBadRequest: the request asks for no WebSocket.
        """
        headers = request.headers
        key = headers.get("Sec-WebSocket-Key", "")
        if (
            headers.get("Upgrade", "").lower() != "websocket"
            or headers.get("Sec-WebSocket-Version") != "13"
            or not key
        ):
            self._beat.cancel()
            raise web.HTTPBadRequest(text="this address speaks WebSocket, version 13")
        answer = web.StreamResponse(
            status=101,
            headers={
                "Upgrade": "websocket",
                "Connection": "Upgrade",
                "Sec-WebSocket-Accept": websocket.accept_key(key),
            },
        )
        await answer.prepare(request)
        transport = request.transport
        if transport is None:
            self._beat.cancel()
            raise ConnectionResetError("the peer left during the handshake")
        self._http = request.protocol
        self._transport = transport
        transport.set_protocol(self)
        # What a hasty peer sent right behind its request; aiohttp kept it unread.
        tail = getattr(self._http, "_message_tail", b"")
        if tail:
            self.data_received(tail)
        return answer

    def start(self, take: Take) -> None:
        """Have every message passed to ``take``, those first that came before."""
        self._take = take
        early, self._early = self._early, []
        for message in early:
            self._guarded(take, message)

    def send(self, frame: bytes) -> None:
        """Send a binary message; the transport keeps what the peer does not take yet."""
        if not self._closing:
            self._transport.write(websocket.encode(frame, masked=False))

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Say why and close, after what was sent."""
        if not self._closing:
            self._closing = True
            text = reason.encode()[:120].decode(errors="ignore").encode()
            self._transport.write(
                websocket.encode(code.to_bytes(2, "big") + text, websocket.CLOSE, masked=False)
            )
            self._transport.close()

    def abort(self) -> None:
        """Break the connection without a word, so that the peer dials in again."""
        self._closing = True
        self._transport.abort()

    # --- asyncio's side ---------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._heard = True
        try:
            messages = self._messages.feed(data)
        except websocket.WebSocketError as error:
            logger.info("a peer broke the WebSocket protocol: %s", error)
            self.close(MALFORMED, str(error))
            return
        take = self._take
        for opcode, payload in messages:
            if self._closing:
                return
            if opcode == websocket.BINARY:
                if take is None:
                    self._early.append(payload)
                else:
                    self._guarded(take, payload)
                    take = self._take
            elif opcode == websocket.PING:
                self._transport.write(websocket.encode(payload, websocket.PONG, masked=False))
            elif opcode == websocket.CLOSE:
                self.close_code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else NORMAL
                self.close(NORMAL)
            elif opcode != websocket.PONG:
                self.close(UNSUPPORTED, "a message that is not binary is no frame")

    def _guarded(self, take: Take, message: bytes) -> None:
        if self._closing:
            return
        try:
            take(message)
        except frames.FrameError as error:
            logger.info("a peer sent a malformed frame: %s", error)
            self.close(MALFORMED, str(error))
        except Exception:
            logger.exception("a frame could not be handled")
            self.close(INTERNAL, "the dispatcher failed on a frame; its log says why")

    def connection_lost(self, error: Exception | None) -> None:
        self._closing = True
        self._beat.cancel()
        if not self.closed.done():
            self.closed.set_result(None)
        # aiohttp's half of the connection ends with ours.
        self._http.connection_lost(error)

    def pause_writing(self) -> None:
        """Nothing to do: what we send is bounded by credit, and the transport keeps it."""

    def resume_writing(self) -> None:
        """Nothing to do."""

    def _ping(self) -> None:
        if not self._heard:
            self.abort()
            return
        self._heard = False
        if not self._closing and self._transport is not None:
            self._transport.write(websocket.encode(b"", websocket.PING, masked=False))
        self._beat = self._loop.call_later(_BEAT_SECONDS, self._ping)
