"""Bodies of HTTP/1.1 messages, taken out of their framing as they come in."""

import re
from typing import List, Union

from .head import CHUNKED, UNTIL_CLOSE, Field, HttpError, parse_fields

MAX_CHUNK_LINE = 4096
MAX_TRAILER_BYTES = 16 * 1024
LAST_CHUNK = b"0\r\n\r\n"

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class LengthBody:
    """A body whose length was said.

    Attributes:
        done: all of it came.
        rest: what came behind it.
        trailers: none.
    """

    __slots__ = ("done", "left", "rest", "trailers")

    def __init__(self, length: int) -> None:
        self.left = length
        self.done = length == 0
        self.rest = b""
        self.trailers: List[Field] = []

    def feed(self, data: bytes) -> bytes:
        """Take what came in; return what of it belongs to the body."""
        size = len(data)
        if size < self.left:
            self.left -= size
            return data
        self.done = True
        if size == self.left:
            self.left = 0
            return data
        self.rest = data[self.left :]
        data = data[: self.left]
        self.left = 0
        return data


class CloseBody:
    """A body that lasts until its sender closes the connection."""

    __slots__ = ("done", "rest", "trailers")

    def __init__(self) -> None:
        self.done = False
        self.rest = b""
        self.trailers: List[Field] = []

    def feed(self, data: bytes) -> bytes:
        """Take what came in; all of it belongs to the body."""
        return data


class ChunkedBody:
    """A body in chunks. Chunk extensions are dropped; trailers are kept.

    Args:
        status: of the HttpError that a malformed one raises.
    """

    __slots__ = ("_buffer", "_left", "_status", "_trailing", "done", "rest", "trailers")

    def __init__(self, status: int) -> None:
        self.done = False
        self.rest = b""
        self.trailers: List[Field] = []
        self._status = status
        self._buffer = b""
        # Bytes of the current chunk still to come; -1: its size line is next, 0: its line end.
        self._left = -1
        self._trailing = False

    def feed(self, data: bytes) -> bytes:
        """Take what came in; return what of it belongs to the body. Raises HttpError."""
        if self._left > 0 and len(data) < self._left:
            self._left -= len(data)
            return data
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        parts: List[bytes] = []
        at = 0
        while not self.done:
            if self._left > 0:
                part = data[at : at + self._left]
                parts.append(part)
                at += len(part)
                self._left -= len(part)
                if self._left:
                    break
            elif self._left == 0:
                end = data[at : at + 2]
                if end != b"\r\n"[: len(end)]:
                    raise HttpError(self._status, "a chunk does not end where it should")
                if len(end) < 2:
                    self._buffer = end
                    break
                at += 2
                self._left = -1
            elif self._trailing:
                at = self._trailer(data, at)
                if not self.done:
                    break
            else:
                end_of_line = data.find(b"\r\n", at, at + MAX_CHUNK_LINE)
                if end_of_line < 0:
                    self._keep(data[at:])
                    break
                found = _SIZE.fullmatch(data, at, end_of_line)
                if found is None:
                    raise HttpError(self._status, "a chunk's size is malformed")
                self._left = int(found.group(1), 16)
                at = end_of_line + 2
                if self._left == 0:
                    self._left = -1
                    self._trailing = True
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _keep(self, line: bytes) -> None:
        if len(line) >= MAX_CHUNK_LINE or b"\n" in line:
            raise HttpError(self._status, "a chunk's size is malformed")
        self._buffer = line

    def _trailer(self, data: bytes, at: int) -> int:
        if data[at : at + 2] == b"\r\n":
            end, block = at + 2, b""
        else:
            found = data.find(b"\r\n\r\n", at, at + MAX_TRAILER_BYTES)
            if found < 0:
                if len(data) - at >= MAX_TRAILER_BYTES:
                    raise HttpError(self._status, "the trailers are too large")
                self._buffer = data[at:]
                return at
            end, block = found + 4, data[at:found]
        if block:
            lines = block.split(b"\r\n")
            if _CONTROL.search(b"".join(lines)) is not None:
                raise HttpError(self._status, "the trailers hold control characters")
            self.trailers = parse_fields(lines, self._status)
        self.done = True
        self.rest = data[end:]
        return end


Body = Union[LengthBody, CloseBody, ChunkedBody]


def body_of(length: int, status: int) -> Body:
    """Return what takes a body out of its framing; ``status`` is that of its errors."""
    if length == CHUNKED:
        return ChunkedBody(status)
    if length == UNTIL_CLOSE:
        return CloseBody()
    return LengthBody(length)


def chunk(data: bytes) -> bytes:
    """Return one chunk that holds this; data must not be empty."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def last_chunk(trailers: List[Field]) -> bytes:
    """Return the end of a body in chunks, with trailers that may stand there."""
    lines = [
        name + b": " + value
        for key, name, value in trailers
        if key not in _NO_TRAILERS and not key.startswith((b"x-forwarded-", b"x-modal-"))
    ]
    if not lines:
        return LAST_CHUNK
    return b"0\r\n" + b"\r\n".join(lines) + b"\r\n\r\n"


# What decides over framing, routing or rights has to be known before the body.
_NO_TRAILERS = frozenset(
    (
        b"transfer-encoding",
        b"content-length",
        b"host",
        b"connection",
        b"keep-alive",
        b"te",
        b"trailer",
        b"upgrade",
        b"expect",
        b"authorization",
        b"proxy-authorization",
        b"cookie",
        b"set-cookie",
        b"content-type",
        b"content-encoding",
        b"content-range",
        b"cache-control",
        b"location",
        b"range",
    )
)
