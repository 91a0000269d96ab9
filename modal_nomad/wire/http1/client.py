"""The connection that requests come on, one after the other."""

import asyncio
from time import monotonic
from typing import Optional, Tuple

from .body import Body, body_of, chunk, last_chunk
from .exchange import FOREVER, KEPT_BYTES, LENGTH, NOTHING, Exchange, Router
from .half_close import HalfClosed
from .head import (
    CHUNKED,
    KEPT_HEAD_BYTES,
    MAX_HEAD_BYTES,
    UNTIL_CLOSE,
    HttpError,
    Request,
    Response,
    end_to_end,
    parse_request,
)

_DISCARD_SECONDS = 2.0
_REASONS = {
    200: b"OK",
    303: b"See Other",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    409: b"Conflict",
    413: b"Content Too Large",
    414: b"URI Too Long",
    417: b"Expectation Failed",
    421: b"Misdirected Request",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    505: b"HTTP Version Not Supported",
}
# SETTINGS, then GOAWAY with HTTP_1_1_REQUIRED: what a client that insists on HTTP/2 understands.
_NO_HTTP2 = b"\0\0\0\4\0\0\0\0\0" + b"\0\0\x08\7\0\0\0\0\0" + b"\0\0\0\0" + b"\0\0\0\x0d"


class Client(asyncio.Protocol):
    """A connection that requests come on.

    Args:
        router: decides where they go.
    """

    transport: asyncio.Transport

    def __init__(self, router: Router) -> None:
        self.router = router
        self.exchange: Optional[Exchange] = None
        self.peer = ""
        self.minor = 1
        self.secure = False
        self._buffer = b""
        self._last_head = b""
        # The last head with its end: most clients send it alone, and many send it again.
        self._again = b""
        self._last: Optional[Request] = None
        self._body: Optional[Body] = None
        self._chunked = False
        self._counted = 0
        self._method = b""
        self._keep_alive = True
        self._tunnelled = False
        self._discarding = False
        self._paused = False
        self._parsing = False
        self._closing = False
        self._half: Optional[HalfClosed] = None
        self._stuck_since = FOREVER
        self._deadline = monotonic() + router.limits.head_seconds

    # --- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple) and peer:
            self.peer = str(peer[0])
        self.secure = transport.get_extra_info("ssl_object") is not None
        self.router.clients.add(self)

    def connection_lost(self, error: Optional[Exception]) -> None:
        self._closing = True
        self.router.clients.discard(self)
        if self._half is not None:
            self._half.ended()
        exchange = self.exchange
        if exchange is not None:
            exchange.end()

    def eof_received(self) -> bool:
        """Nothing more will come; tell whether the connection is kept for what is to be answered."""
        exchange = self.exchange
        if self.secure or not self.router.half_closing or self._tunnelled or self._closing:
            return False
        if exchange is None or not exchange.complete:
            return False
        if self._half is None:
            self._half = HalfClosed(self.transport)
            self.transport = self._half  # type: ignore[assignment]
            self._half.look(self)
        self._keep_alive = self._keep_alive and bool(self._buffer)
        return True

    def pause_writing(self) -> None:
        exchange = self.exchange
        self._stuck_since = monotonic()
        if exchange is not None and exchange.upstream is not None:
            exchange.upstream.transport.pause_reading()

    def resume_writing(self) -> None:
        exchange = self.exchange
        self._stuck_since = FOREVER
        if exchange is not None and exchange.upstream is not None:
            exchange.upstream.transport.resume_reading()

    def pause(self) -> None:
        """Read no more for now."""
        if not self._paused and not self._closing:
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused and not self._closing:
            self._paused = False
            if self._body is not None:
                self._deadline = monotonic() + self.router.limits.stall_seconds
            self.transport.resume_reading()

    def check(self, now: float) -> None:
        """Hold the client to its times."""
        exchange = self.exchange
        if now - self._stuck_since >= self.router.limits.stall_seconds:
            self.transport.abort()
            return
        if exchange is not None:
            if not exchange.complete:
                if not self._paused and not self._tunnelled and now >= self._deadline:
                    exchange.end()
                    self.answer(408, "the request's body did not come", close=True)
                return
            if not exchange.answered and now - exchange.since >= self.router.limits.answer_seconds:
                self.router.late(exchange)
            return
        if now >= self._deadline:
            if self._buffer and not self._discarding:
                self.answer(408, "the request's head did not come", close=True)
            else:
                self.transport.abort()

    # --- what comes in

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        last = self._last
        if data == self._again and last is not None and exchange is None and self._expects_head():
            self._begin(last)
            return
        if self._tunnelled:
            if exchange is not None and exchange.upstream is not None:
                exchange.upstream.transport.write(data)
            return
        if self._discarding or self._closing:
            return
        if self._body is not None:
            self._deadline = monotonic() + self.router.limits.stall_seconds
            self._take_body(data)
            return
        if self._buffer:
            self._buffer += data
        else:
            self._buffer = data
            if exchange is None:
                self._deadline = monotonic() + self.router.limits.head_seconds
        if exchange is None:
            self._parse()
        elif len(self._buffer) > KEPT_BYTES:
            self.pause()

    def _parse(self) -> None:
        """Take requests from the buffer, one after the other as they are answered."""
        if self._parsing:
            return
        self._parsing = True
        try:
            while self.exchange is None and self._body is None and self._buffer and not self._stopped():
                if not self._next():
                    return
        finally:
            self._parsing = False

    def _expects_head(self) -> bool:
        return self._body is None and not self._buffer and not self._stopped()

    def _stopped(self) -> bool:
        return self._closing or self._discarding or self._tunnelled

    def _next(self) -> bool:
        data = self._buffer
        # A client may send an empty line behind its last body.
        if data[:2] == b"\r\n":
            data = self._buffer = data[2:]
        end = data.find(b"\r\n\r\n")
        if 0 <= end <= MAX_HEAD_BYTES:
            self._buffer = data[end + 4 :]
            if data[:end] == b"PRI * HTTP/2.0":
                self.transport.write(_NO_HTTP2)
                self._close()
                return False
            head = data[:end]
            if head == self._last_head and self._last is not None:
                self._begin(self._last)
                return True
            try:
                request = parse_request(head)
                if request.length > self.router.limits.max_body:
                    raise HttpError(413, "the request's body is too large")
            except HttpError as error:
                self.answer(error.status, error.text, close=True)
                return False
            if end <= KEPT_HEAD_BYTES:
                self._last_head, self._last, self._again = head, request, head + b"\r\n\r\n"
            self._begin(request)
            return True
        if end >= 0 or len(data) > MAX_HEAD_BYTES:
            self.answer(431, f"the request's head is larger than {MAX_HEAD_BYTES >> 10} KiB", close=True)
        elif data[:1].isdigit() or (data and not 0x21 <= data[0] <= 0x7E and data[:1] != b"\r"):
            self.answer(400, "this is no HTTP request", close=True)
        return False

    def _begin(self, request: Request) -> None:
        self.minor = request.minor
        self._method = request.method
        self._keep_alive = request.keep_alive and (self._half is None or bool(self._buffer))
        self._deadline = FOREVER
        self.exchange = exchange = Exchange(request, self)
        if request.length:
            self._body = body_of(request.length, 400)
            self._chunked = request.length == CHUNKED
            self._counted = 0
            self._deadline = monotonic() + self.router.limits.stall_seconds
        self.router.begin(exchange)
        if self._body is not None and self._buffer:
            data, self._buffer = self._buffer, b""
            self._take_body(data)

    def _take_body(self, data: bytes) -> None:
        body, exchange = self._body, self.exchange
        assert body is not None
        try:
            data = body.feed(data)
        except HttpError as error:
            self._body = None
            if exchange is not None:
                begun = exchange.answered
                exchange.end()
                if begun:
                    self.transport.abort()
                    return
            self.answer(error.status, error.text, close=True)
            return
        if exchange is not None:
            if data:
                if self._chunked:
                    self._counted += len(data)
                    if self._counted > self.router.limits.max_body:
                        self._body = None
                        exchange.end()
                        self.answer(413, "the request's body is too large", close=True)
                        return
                    data = chunk(data)
                exchange.body(data)
            if body.done:
                exchange.complete = True
                exchange.since = monotonic()
                if self._chunked:
                    exchange.body(last_chunk(body.trailers))
        if body.done:
            self._body = None
            self._deadline = FOREVER
            self._buffer = body.rest
            if exchange is None and self.exchange is None:
                self._parse()

    # --- what goes out

    def takes_as_is(self) -> bool:
        """Say whether the head of an answer that needs no change needs none for this client either."""
        return self._keep_alive and self.minor == 1

    def begin_answer(self, exchange: Exchange, response: Response) -> Tuple[bytes, bool]:
        """Return the head of an answer to write, and whether its body is to be written in chunks."""
        keep = self._keep_alive and exchange.complete
        plain = keep and self.minor == 1
        if plain and response.written is not None:
            return response.written
        chunked = False
        lines = [b"HTTP/1.1 %d %b" % (response.status, response.reason)]
        dropped = LENGTH if response.status == 204 else NOTHING
        length = response.length
        if length in (CHUNKED, UNTIL_CLOSE):
            dropped = LENGTH
            if self.minor == 0:
                keep = False
            else:
                chunked = True
        lines += end_to_end(response.fields, response.nominated, dropped)
        if chunked:
            lines.append(b"Transfer-Encoding: chunked")
        if not keep:
            self._keep_alive = False
            lines.append(b"Connection: close")
        head = b"\r\n".join(lines) + b"\r\n\r\n"
        if plain:
            response.written = head, chunked
        return head, chunked

    def end_answer(self, complete: bool) -> None:
        """The answer is written: go on with the next request, or close."""
        if self._closing:
            return
        if not complete:
            self._discard()
        elif not self._keep_alive:
            self._close()
        else:
            self._deadline = monotonic() + self.router.limits.idle_seconds
            if self._paused:
                self.resume()
            if self._buffer:
                self._parse()
            if self._half is not None and not self._closing:
                self._end_of_half()

    def _end_of_half(self) -> None:
        """Close where no whole request is left: what there is of another one is all that will be."""
        exchange = self.exchange
        if exchange is None:
            self._close()
        elif not exchange.complete:
            exchange.end()
            self._close()

    def answer(self, status: int, text: str, fields: bytes = b"", close: bool = False) -> None:
        """Answer in words of our own."""
        if self._closing:
            return
        complete = self._body is None and not close
        if not complete:
            self._keep_alive = False
        reason = _REASONS.get(status, b"")
        # A browser shows the text alone.
        data = b"%d %b: %b\n" % (status, reason, text.encode()) if text else b""
        head = b"HTTP/1.1 %d %b\r\n%bContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n" % (
            status,
            reason,
            fields,
            len(data),
        )
        head += b"\r\n" if self._keep_alive else b"Connection: close\r\n\r\n"
        self.transport.write(head + data if self._method != b"HEAD" else head)
        self.end_answer(complete)

    def tunnel(self, exchange: Exchange, response: Response, data: bytes) -> None:
        """Say that the protocol changes; from now on all is passed on as it is."""
        lines = end_to_end(response.fields, response.nominated, LENGTH)
        upgrade = [v for k, _, v in response.fields if k == b"upgrade"][:1] or [b"websocket"]
        lines += [b"Upgrade: " + upgrade[0], b"Connection: Upgrade"]
        self.transport.write(b"\r\n".join([b"HTTP/1.1 101 " + response.reason, *lines]) + b"\r\n\r\n" + data)
        self._tunnelled = True
        early, self._buffer = self._buffer, b""
        if early and exchange.upstream is not None:
            exchange.upstream.transport.write(early)

    def take_over(self, exchange: Exchange) -> None:
        """Have a request that was left waiting answered here; this connection's own one is over."""
        self.exchange = exchange
        exchange.client = self
        exchange.since = monotonic()
        if exchange.upstream is not None and exchange.answered:
            exchange.upstream.claim()

    def leave(self) -> Optional[Exchange]:
        """Give the request away, unanswered, so that this connection can say something else."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client = None
        return exchange

    def _discard(self) -> None:
        """Say no more, and close when the client has had time to read it."""
        self._discarding = True
        self._body = None
        self._buffer = b""
        self._deadline = monotonic() + _DISCARD_SECONDS
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.resume()

    def _close(self) -> None:
        self._closing = True
        self.transport.close()
