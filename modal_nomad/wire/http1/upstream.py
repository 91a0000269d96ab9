"""The connection that a request goes out on, and its answer comes back on."""

import asyncio
from typing import Callable, Optional

from ..web import REFUSED
from .body import LAST_CHUNK, Body, body_of, chunk, last_chunk
from .exchange import Exchange
from .head import KEPT_HEAD_BYTES, MAX_HEAD_BYTES, UNTIL_CLOSE, HttpError, Response, parse_response

_MAX_INTERIM = 1000
"""Each costs those who wait a little; who has more of them than this will not come to an end."""


class Upstream(asyncio.Protocol):
    """A connection to a container, for one request at a time.

    Args:
        idle: is given the connection when it can be used again.
        closed: is told when it is gone.

    Attributes:
        used: it carried a request.
    """

    transport: asyncio.Transport

    def __init__(self, idle: Callable[["Upstream"], None], closed: Callable[["Upstream"], None]) -> None:
        self.exchange: Optional[Exchange] = None
        self.used = False
        self._idle = idle
        self._closed = closed
        self._buffer = b""
        self._response: Optional[Response] = None
        # The last head, and what was read in it: the same one again is not read again.
        self._last: Optional[Response] = None
        self._last_head = self._last_method = b""
        # The same with its end, and how long the whole answer is: where it is passed on just as it came.
        self._again = b""
        self._again_size = 0
        self._body: Optional[Body] = None
        self._chunked_out = False
        self._head_out = b""
        self._tunnel = False
        self._interim = 0
        self.gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Optional[Exception]) -> None:
        self.gone = True
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            response = self._response
            if self._tunnel:
                client = exchange.client
                exchange.upstream = None
                exchange.end()
                if client is not None:
                    client.transport.close()
            elif response is not None and response.length == UNTIL_CLOSE and error is None:
                self.exchange = exchange
                if exchange.client is not None and self._chunked_out:
                    exchange.client.transport.write(LAST_CHUNK)
                self._finish(exchange)
            else:
                exchange.lost()
        self._closed(self)

    def abort(self) -> None:
        """Close at once; who serves this learns that nobody waits."""
        if not self.gone:
            # From now on, not only when the loop says so: nobody may take it for free until then.
            self.gone = True
            self.transport.abort()

    def spare(self) -> None:
        """Give it back unused."""
        self._idle(self)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        exchange = self.exchange
        if exchange is not None and exchange.client is not None:
            exchange.client.pause()

    def resume_writing(self) -> None:
        exchange = self.exchange
        if exchange is not None and exchange.client is not None:
            exchange.client.resume()

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            # Nobody asked: what came could be taken for the answer to the next request.
            self.abort()
            return
        if len(data) == self._again_size and data.startswith(self._again) and self._whole(exchange, data):
            return
        if self._tunnel:
            if exchange.client is not None:
                exchange.client.transport.write(data)
            return
        try:
            if self._response is None:
                rest = self._head(exchange, self._buffer + data if self._buffer else data)
                if rest is None:
                    return
                data = rest
            self._pass(exchange, data)
        except HttpError as error:
            self._broken(exchange, error)

    def _whole(self, exchange: Exchange, data: bytes) -> bool:
        """Pass a whole answer on whose head came before; False where it is not as simple as that."""
        client = exchange.client
        if (
            client is None
            or not exchange.complete
            or self._response is not None
            or self._buffer
            or self._tunnel
            or exchange.request.method != self._last_method
            or not client.takes_as_is()
        ):
            return False
        exchange.answered = True
        client.transport.write(data)
        self._interim = 0
        exchange.upstream = self.exchange = None
        self._idle(self)
        exchange.end()
        client.end_answer(True)
        return True

    def _head(self, exchange: Exchange, data: bytes) -> Optional[bytes]:
        """Read heads until that of the answer is there; gives what follows it."""
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > MAX_HEAD_BYTES:
                    raise HttpError(502, "the head of the container's answer is too large")
                self._buffer = data
                return None
            if end > MAX_HEAD_BYTES:
                raise HttpError(502, "the head of the container's answer is too large")
            head, method = data[:end], exchange.request.method
            response = self._last
            if response is None or head != self._last_head or method != self._last_method:
                response = parse_response(head, method)
                if end <= KEPT_HEAD_BYTES:
                    self._last, self._last_head, self._last_method = response, head, method
                    self._again_size = 0
            data = data[end + 4 :]
            self._buffer = b""
            if response.status == 101:
                if not exchange.request.upgrade:
                    raise HttpError(502, "the container changed the protocol unasked")
                exchange.answered = True
                self._tunnel = True
                client = exchange.client
                if client is not None:
                    client.tunnel(exchange, response, data)
                return None
            if response.status == 421:
                proof = next((x for key, _, x in response.fields if key == REFUSED), None)
                if proof is not None and exchange.router.refused(exchange, proof):
                    self._refused(exchange)
                    return None
            if response.status >= 200:
                break
            self._interim += 1
            if self._interim > _MAX_INTERIM:
                raise HttpError(502, f"the container gave more than {_MAX_INTERIM} interim answers")
            exchange.interim(response)
        self._response = response
        self._body = body_of(response.length, 502)
        exchange.answered = True
        if exchange.client is not None:
            self._head_out, self._chunked_out = exchange.client.begin_answer(exchange, response)
            if response is self._last and response.keep_alive and response.length >= 0:
                again = self._last_head + b"\r\n\r\n"
                if again == self._head_out:
                    self._again, self._again_size = again, len(again) + response.length
        else:
            # Until somebody comes for it, it stays where it is.
            self.transport.pause_reading()
            self._buffer = data
            return None
        return data

    def claim(self) -> None:
        """Go on with an answer whose reader has come back."""
        exchange, response = self.exchange, self._response
        if exchange is None or exchange.client is None or response is None:
            return
        self._head_out, self._chunked_out = exchange.client.begin_answer(exchange, response)
        self.transport.resume_reading()
        data, self._buffer = self._buffer, b""
        try:
            self._pass(exchange, data)
        except HttpError as error:
            self._broken(exchange, error)

    def _pass(self, exchange: Exchange, data: bytes) -> None:
        body, client = self._body, exchange.client
        assert body is not None
        # One write for all that came together: the system's calls cost more than all else here.
        out, self._head_out = self._head_out, b""
        if not body.done:
            data = body.feed(data)
            if data:
                out += chunk(data) if self._chunked_out else data
            data = body.rest
        if body.done and self._chunked_out:
            out += last_chunk(body.trailers)
        if out and client is not None:
            client.transport.write(out)
        if body.done:
            if data:
                # More than was said: the connection is of no use any more, the answer is whole.
                assert self._response is not None
                self._response.keep_alive = False
            self._finish(exchange)

    def _finish(self, exchange: Exchange) -> None:
        response, client = self._response, exchange.client
        assert response is not None
        self._response = self._body = None
        self._interim = 0
        self._chunked_out = False
        complete = exchange.complete
        exchange.upstream = self.exchange = None
        # First: what waits for the container's next free place finds the connection there.
        if response.keep_alive and complete and not self.gone:
            self._idle(self)
        else:
            self.abort()
        exchange.end()
        if client is not None:
            client.end_answer(complete)

    def _refused(self, exchange: Exchange) -> None:
        """The container did not take the request."""
        self.exchange = None
        exchange.upstream = None
        self.abort()
        exchange.router.failed(exchange, exchange.replayable)

    def _broken(self, exchange: Exchange, error: HttpError) -> None:
        """The container answers what is no HTTP."""
        client = exchange.client
        begun = self._response is not None
        exchange.end()
        self.abort()
        if client is None:
            return
        if begun:
            client.transport.abort()
        else:
            client.answer(502, error.text)
