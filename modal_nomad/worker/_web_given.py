"""What a gateway says of a request, taken off its head: the app's server reads the client's fields alone.

Gateways write it behind all else and, but for the call, alike for every request of a client's connection:
what was read once is known again by its bytes.
"""

from typing import List, Optional, Tuple

from ..wire.http1.body import Body, body_of
from ..wire.http1.head import KEPT_HEAD_BYTES, MAX_HEAD_BYTES, HttpError, parse_fields, parse_request
from ..wire.web import CALL, KEY, METHOD, PATIENCE, PREFIX, patience_of

_BEGIN = b"\r\nX-Forwarded-For: "
_CALL = b"\r\n" + CALL + b": "
_END = b"\r\n\r\n"
_NAMES = frozenset(
    (
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-forwarded-prefix",
        METHOD,
        PREFIX,
        CALL,
        KEY,
        PATIENCE,
    )
)

Header = Tuple[bytes, bytes]


class Given:
    """What a gateway says.

    Attributes:
        headers: those that the app sees.
        prefix: what of the path led here.
        client: the address of the client.
        encrypted: the client came by TLS.
        call_id: the call that the request is; empty where nothing is said.
        patience: seconds that it may wait for a place.
    """

    __slots__ = ("call_id", "client", "encrypted", "headers", "patience", "prefix")

    def __init__(self) -> None:
        self.headers: List[Header] = []
        self.prefix = ""
        self.client: Optional[Tuple[str, int]] = None
        self.encrypted = False
        self.call_id = ""
        self.patience: Optional[float] = None

    def take(self, name: bytes, value: bytes) -> bool:
        """Take a field; False for one that no gateway adds."""
        if name == CALL:
            self.call_id = value.decode("latin-1")
        elif name == PREFIX:
            self.prefix = value.decode("latin-1")
        elif name == PATIENCE:
            self.patience = patience_of(value)
        elif name not in (KEY, METHOD):
            if name == b"x-forwarded-for":
                self.client = (value.decode("latin-1").partition(",")[0].strip(), 0)
            elif name == b"x-forwarded-proto" and value == b"https":
                self.encrypted = True
            self.headers.append((name, value))
        return name in _NAMES


class Reader:
    """Reads the requests of one connection of a gateway's, which sends one after the other."""

    def __init__(self) -> None:
        self._given: Optional[Given] = None
        self._same = b""
        self._head = b""
        self._known: Optional[Given] = None
        self._buffer = b""
        self._body: Optional[Body] = None
        self._plain = False

    def take(self) -> Optional[Given]:
        """Return, once, what was said of the request that came last; None where its head still says it."""
        given, self._given = self._given, None
        return given

    def feed(self, data: bytes) -> bytes:
        """Take what came in; return what the server of the app is to read."""
        if self._plain:
            return data
        if self._body is not None:
            self._follow(data)
            return data
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        end = data.find(_END)
        if end < 0:
            if len(data) > MAX_HEAD_BYTES:
                return self._as_it_is(data)
            self._buffer = data
            return b""
        call = data.rfind(_CALL, 0, end)
        same = self._same
        if same and call == len(same) and data.startswith(same) and len(data) == end + 4:
            given = self._own(data[call + 2 : end])
            if given is not None:
                self._given = given
                return self._head
        return self._first(data, end, call)

    def _own(self, lines: bytes) -> Optional[Given]:
        """Return what is said in the fields of one call, and in those before that are known."""
        known = self._known
        assert known is not None
        given = Given()
        given.headers, given.prefix = known.headers, known.prefix
        given.client, given.encrypted = known.client, known.encrypted
        for line in lines.split(b"\r\n"):
            name, _, value = line.partition(b": ")
            if name not in (CALL, KEY, PATIENCE):
                return None
            given.take(name, value)
        return given

    def _first(self, data: bytes, end: int, call: int) -> bytes:
        """Read a head that is not known."""
        begin = data.rfind(_BEGIN, 0, end)
        try:
            if not 0 <= begin < call:
                raise HttpError(400, "no gateway says this")
            request = parse_request(data[:begin])
            fields = parse_fields(data[begin + 2 : end].split(b"\r\n"), 400)
        except HttpError:
            return self._as_it_is(data)
        given, known = Given(), Given()
        for key, _, value in fields:
            if not given.take(key, value):
                return self._as_it_is(data)
            if key not in (CALL, KEY, PATIENCE):
                known.take(key, value)
        if request.upgrade:
            # What follows is no HTTP.
            return self._as_it_is(data)
        self._given = given
        head = data[:begin] + _END
        if request.length:
            self._body = body_of(request.length, 400)
            self._same = b""
            rest = data[end + 4 :]
            if rest:
                self._follow(rest)
            return head + rest
        if len(data) > end + 4:
            return self._as_it_is(data)
        if end <= KEPT_HEAD_BYTES:
            self._same, self._head, self._known = data[:call], head, known
        return head

    def _follow(self, data: bytes) -> None:
        body = self._body
        assert body is not None
        try:
            body.feed(data)
        except HttpError:
            self._plain = True
            return
        if body.done:
            self._body = None
            # Nobody of ours sends a request before the last one is answered.
            self._plain = bool(body.rest)

    def _as_it_is(self, data: bytes) -> bytes:
        """Leave this and all that follows to whoever reads it."""
        self._plain = True
        self._given = None
        return data
