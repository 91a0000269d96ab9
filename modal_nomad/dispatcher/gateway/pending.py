"""Results that another gateway has: who was redirected may come to any of them.

The id of a call ends in the tag of the gateway that has its request. What comes elsewhere is passed on to a
port of that one which gateways alone use.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
from collections.abc import Callable, Mapping
from time import time
from typing import TYPE_CHECKING

from modal_nomad.dispatcher.gateway.forwarding import claimed_call
from modal_nomad.wire.http1.client import Client
from modal_nomad.wire.http1.exchange import Exchange, Limits, Router
from modal_nomad.wire.http1.head import end_to_end
from modal_nomad.wire.http1.upstream import Upstream
from modal_nomad.wire.ids import ID_LENGTH, new_id, timed_id
from modal_nomad.wire.web import KEY

if TYPE_CHECKING:
    from modal_nomad.dispatcher.gateway.gateway import Gateway

logger = logging.getLogger("modal_nomad.dispatcher")

_TAG = 6
_CHANCE = 16
_AT_ONCE = 256
_CONNECT_SECONDS = 5.0
_GONE = "the gateway that had this result has ended"


def new_tag() -> str:
    """Return what the ids of a gateway's calls end in."""
    return new_id("fc")[-_TAG:]


class Calls:
    """Makes the ids of a gateway's calls. Chance is had for many at once: asking for it costs a system call.

    Args:
        tag: what they end in.
    """

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self._chance = b""
        self._at = 0

    def new(self) -> str:
        """Return a new id, which nobody can guess."""
        at = self._at
        if at >= len(self._chance):
            at, self._chance = 0, os.urandom(_CHANCE * _AT_ONCE)
        self._at = at + _CHANCE
        return timed_id("fc", int(time()), self._chance[at : self._at])[:-_TAG] + self._tag


def tag_of(call_id: str) -> str:
    """Return the tag of the gateway that has a call, or nothing for what is no call's id."""
    return call_id[-_TAG:] if len(call_id) == ID_LENGTH + 3 else ""


def peer_key(secret: bytes) -> bytes:
    """Return what gateways prove themselves to each other with."""
    return hmac.new(secret, b"web:peers", hashlib.sha256).hexdigest().encode()


class Peers(Router):
    """The port that other gateways come to, and the way to theirs.

    Args:
        gateway: has the results.
        secret: of all gateways of an installation.

    Attributes:
        known: gives where the others are, by tag.
    """

    def __init__(self, gateway: Gateway, secret: bytes) -> None:
        super().__init__(Limits(answer_seconds=gateway.settings.answer_seconds))
        self.known: Callable[[], Mapping[str, tuple[str, int]]] = dict
        self._gateway = gateway
        self._key = peer_key(secret)

    def protocol(self) -> asyncio.Protocol:
        """Return what serves one connection."""
        return Client(self)

    # --- others come here -------------------------------------------------------------------------

    def begin(self, exchange: Exchange) -> None:
        key = exchange.request.value(KEY)
        if key is None or not hmac.compare_digest(key, self._key):
            exchange.refuse(403, "only gateways may ask here")
            return
        self._gateway.claim(exchange, claimed_call(exchange.request.target))

    def failed(self, exchange: Exchange, again: bool) -> None:
        self._gateway.failed(exchange, again)

    def ended(self, exchange: Exchange) -> None:
        self._gateway.ended(exchange)

    def late(self, exchange: Exchange) -> None:
        self._gateway.late(exchange)

    # --- we go there ------------------------------------------------------------------------------

    def has(self, call_id: str) -> bool:
        """Say whether another gateway that we know has a call."""
        return tag_of(call_id) in self.known()

    async def ask(self, exchange: Exchange, call_id: str) -> None:
        """Have another gateway answer a request for its result."""
        request = exchange.request
        host, port = self.known()[tag_of(call_id)]
        lines = [b"%b %b HTTP/1.1" % (request.method, request.target), b"Host: " + request.host.encode()]
        lines += end_to_end(request.fields, request.nominated, frozenset((b"host", KEY)))
        lines.append(KEY + b": " + self._key)
        loop = asyncio.get_running_loop()
        try:
            _, upstream = await asyncio.wait_for(
                loop.create_connection(lambda: Upstream(Upstream.abort, lambda _: None), host, port),
                _CONNECT_SECONDS,
            )
        except (OSError, asyncio.TimeoutError) as error:
            logger.info("the gateway at %s:%d takes no connection: %s", host, port, error)
            exchange.refuse(502, _GONE)
            return
        if exchange.over:
            upstream.abort()
        else:
            exchange.send(upstream, b"\r\n".join(lines) + b"\r\n\r\n")
