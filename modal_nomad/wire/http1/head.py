"""Heads of HTTP/1.1 messages: parsed strictly, their framing decided once, written anew."""

import re
from typing import Any, Dict, FrozenSet, Iterable, List, Optional, Sequence, Tuple

MAX_HEAD_BYTES = 64 * 1024
MAX_FIELDS = 256
KEPT_HEAD_BYTES = 2048
"""A head up to this long is kept, to know it when it comes again on its connection."""
MAX_TARGET_BYTES = 32 * 1024
UNTIL_CLOSE = -2
CHUNKED = -1

Field = Tuple[bytes, bytes, bytes]
"""The name in lower case, the name as it was written, the value."""

HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    )
)
# A sender may name fields that end at the next hop, but not have these taken away.
_END_TO_END = frozenset(
    (b"host", b"content-length", b"content-type", b"authorization", b"cookie", b"set-cookie", b"trailer")
)
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}) ([!-~]+) HTTP/1\.([01])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_HOST = re.compile(rb"[A-Za-z0-9._~\-]+(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?")
_LENGTH = re.compile(rb"[0-9]{1,18}")


class HttpError(Exception):
    """A message that is not passed on.

    Attributes:
        status: what to answer with.
        text: why, in one line.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Request:
    """The head of a request.

    Attributes:
        method: as it was written.
        target: in origin form: a path, perhaps with a query.
        host: from the target or the Host field, in lower case, with its port; empty for none.
        minor: of the version, 0 or 1.
        fields: all of them, in order.
        length: bytes of the body, or CHUNKED.
        keep_alive: the client wants the connection kept.
        upgrade: the client asks for a WebSocket.
        expects: the client waits for "100 Continue" before its body.
        passed: what the router made of it; who says the same again, byte for byte, has the same request.
        routed: where the router found that it leads.
    """

    __slots__ = (
        "expects",
        "fields",
        "host",
        "keep_alive",
        "length",
        "method",
        "minor",
        "nominated",
        "passed",
        "routed",
        "target",
        "upgrade",
    )

    def __init__(self, method: bytes, target: bytes, minor: int, fields: List[Field]) -> None:
        self.method = method
        self.minor = minor
        self.fields = fields
        self.passed: Any = None
        self.routed: Any = None
        values = _framing_fields(fields)
        self.length = _length(values, minor, 400) or 0
        self.host, self.target = _place(method, target, values.get(b"host", ()), minor)
        options = _options(values.get(b"connection", ()))
        self.nominated = options - _END_TO_END
        self.keep_alive = minor == 1 and b"close" not in options
        self.upgrade = (
            minor == 1
            and b"upgrade" in options
            and [x.lower() for x in values.get(b"upgrade", ())] == [b"websocket"]
            and method == b"GET"
            and self.length == 0
        )
        expect = [x.lower() for x in values.get(b"expect", ())]
        if expect and expect != [b"100-continue"]:
            raise HttpError(417, "the only expectation that can be met is 100-continue")
        self.expects = bool(expect) and minor == 1 and self.length != 0

    @property
    def has_body(self) -> bool:
        """Whether a body follows, of length zero at least where it is chunked."""
        return self.length != 0

    def value(self, name: bytes) -> Optional[bytes]:
        """Return the first value of a field by its name in lower case."""
        for key, _, value in self.fields:
            if key == name:
                return value
        return None


class Response:
    """The head of a response.

    Attributes:
        status: its code.
        reason: its phrase.
        fields: all of them, in order.
        length: bytes of the body, CHUNKED or UNTIL_CLOSE; 0 where there can be none.
        keep_alive: the connection may be used again.
        written: the head as it goes to a client of HTTP/1.1 whose connection stays, once it was written.
    """

    __slots__ = ("fields", "keep_alive", "length", "minor", "nominated", "reason", "status", "written")

    def __init__(self, status: int, reason: bytes, minor: int, fields: List[Field], method: bytes) -> None:
        self.status = status
        self.reason = reason
        self.written: Optional[Tuple[bytes, bool]] = None
        self.minor = minor
        self.fields = fields
        values = _framing_fields(fields)
        options = _options(values.get(b"connection", ()))
        self.nominated = options - _END_TO_END
        length = _length(values, 1, 502)
        self.keep_alive = minor == 1 and b"close" not in options
        if method == b"HEAD" or status < 200 or status in (204, 304):
            self.length = 0
        elif length is None:
            self.length = UNTIL_CLOSE
            self.keep_alive = False
        else:
            self.length = length


def parse_request(head: bytes) -> Request:
    """Read a request's head.

    Args:
        head: all before the empty line, without the line end before that.

    Raises:
        HttpError: it is malformed, or could be understood in two ways.
    """
    line, fields = _lines(head, 400)
    if len(line) > MAX_TARGET_BYTES:
        raise HttpError(414, "the request's address is too long")
    found = _REQUEST_LINE.fullmatch(line)
    if found is None:
        if re.fullmatch(rb"[!-~]+ [!-~]+ HTTP/[0-9.]+", line) and not line.endswith((b"/1.0", b"/1.1")):
            raise HttpError(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
        raise HttpError(400, "the request line is malformed")
    method, target, minor = found.groups()
    return Request(method, target, minor[0] - 48, fields)


def parse_response(head: bytes, method: bytes) -> Response:
    """Read the head of a response to a request of this method. Raises HttpError."""
    line, fields = _lines(head, 502)
    found = _STATUS_LINE.fullmatch(line)
    if found is None:
        raise HttpError(502, "the container did not answer in HTTP/1.1")
    minor, status, reason = found.groups()
    return Response(int(status), reason or b"", minor[0] - 48, fields, method)


def parse_fields(lines: Sequence[bytes], status: int) -> List[Field]:
    """Read lines of fields, of a head or of trailers. Raises HttpError with this status."""
    if len(lines) > MAX_FIELDS:
        raise HttpError(431 if status == 400 else status, f"more than {MAX_FIELDS} header fields")
    fields: List[Field] = []
    token = _TOKEN.fullmatch
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or token(name) is None:
            raise HttpError(status, "a header field is malformed")
        fields.append((name.lower(), name, value.strip(b" \t")))
    return fields


def end_to_end(
    fields: Iterable[Field], nominated: FrozenSet[bytes], dropped: FrozenSet[bytes]
) -> List[bytes]:
    """Return the lines of the fields that are passed on.

    Args:
        fields: of the message.
        nominated: what its sender named as meant for this hop alone.
        dropped: what is written anew, or not at all.
    """
    return [
        name + b": " + value
        for key, name, value in fields
        if key not in HOP_BY_HOP and key not in dropped and key not in nominated
    ]


def _lines(head: bytes, status: int) -> Tuple[bytes, List[Field]]:
    lines = head.split(b"\r\n")
    if _CONTROL.search(b"".join(lines)) is not None:
        raise HttpError(status, "the head holds control characters")
    return lines[0], parse_fields(lines[1:], status)


_FRAMING = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"expect"))


def _framing_fields(fields: Iterable[Field]) -> Dict[bytes, List[bytes]]:
    found: Dict[bytes, List[bytes]] = {}
    for key, _, value in fields:
        if key in _FRAMING:
            found.setdefault(key, []).append(value)
    return found


def _options(values: Iterable[bytes]) -> FrozenSet[bytes]:
    return frozenset(x.strip(b" \t").lower() for value in values for x in value.split(b","))


def _length(values: Dict[bytes, List[bytes]], minor: int, status: int) -> Optional[int]:
    lengths = values.get(b"content-length")
    codings = values.get(b"transfer-encoding")
    if codings is not None:
        if lengths is not None:
            raise HttpError(status, "a message has both Content-Length and Transfer-Encoding")
        if minor == 0:
            raise HttpError(status, "HTTP/1.0 has no Transfer-Encoding")
        if len(codings) != 1 or codings[0].lower() != b"chunked":
            raise HttpError(501 if status == 400 else status, "the only Transfer-Encoding known is chunked")
        return CHUNKED
    if lengths is None:
        return None
    if len(lengths) != 1 or _LENGTH.fullmatch(lengths[0]) is None:
        raise HttpError(status, "Content-Length is not one number")
    return int(lengths[0])


def _place(method: bytes, target: bytes, hosts: Sequence[bytes], minor: int) -> Tuple[str, bytes]:
    if len(hosts) > 1 or (minor == 1 and not hosts):
        raise HttpError(400, "a request needs one Host field")
    host = hosts[0] if hosts else b""
    if method == b"CONNECT":
        raise HttpError(405, "there is no CONNECT here")
    if target[:1] != b"/":
        scheme, separator, rest = target.partition(b"://")
        if not separator or scheme.lower() not in (b"http", b"https"):
            raise HttpError(400, "the request's address is no path")
        host, slash, path = rest.partition(b"/")
        target = slash + path or b"/"
        if b"?" in host:
            raise HttpError(400, "the request's address is no path")
    if host and _HOST.fullmatch(host) is None:
        raise HttpError(400, "the Host field is malformed")
    if b"#" in target:
        raise HttpError(400, "the request's address has a fragment")
    return host.decode("ascii").lower(), target
