"""A client that has shut its writing side down: it may still read, or it may have gone.

On the wire both look the same, so what is sent to it afterwards tells: where it has gone, its system answers
with a reset.
"""

import asyncio
import socket
from contextlib import suppress
from typing import Any, Optional

_LOOK_SECONDS = 0.25
_INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


class HalfClosed:
    """The transport of such a client, in the place of its own one.

    Args:
        transport: its own one.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._looking: Optional[asyncio.TimerHandle] = None
        self.sent = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self.sent = True
        self._transport.write(data)

    def look(self, client: Any) -> None:
        """Close the connection as soon as it is known that nobody reads.

        Args:
            client: whose transport it is.
        """
        self._looking = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look, client)

    def ended(self) -> None:
        """Look no more: the connection is closed."""
        if self._looking is not None:
            self._looking.cancel()

    def _look(self, client: Any) -> None:
        exchange = client.exchange
        if self._reset():
            self._transport.abort()
            return
        if not self.sent and exchange is not None:
            if exchange.answered or client.minor == 0:
                # There is nothing that could be said to it meanwhile.
                self._transport.abort()
                return
            self.write(_INTERIM)
        self.look(client)

    def _reset(self) -> bool:
        # Nothing is read any more, so nobody else notices until the next part is written.
        sock = self._transport.get_extra_info("socket")
        with suppress(OSError):
            return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        return True
