"""Whatever clients send and containers answer, only whole requests and answers get through the gateway.

What comes out at each side is read by another parser than the gateway's own. There are no sockets here: the
connections' protocols are called as a loop would.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import h11
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modal_nomad.dispatcher.gateway.discovery import ContainerAddress, ServedFunction
from modal_nomad.dispatcher.gateway.gateway import Gateway
from modal_nomad.dispatcher.gateway.routes import Route
from modal_nomad.dispatcher.gateway.settings import GatewaySettings
from modal_nomad.wire.http1.upstream import Upstream

KEY = b"the-key"
ROOM = 1 << 18
FEW = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Wire:
    """A transport that keeps what is written until it is taken."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closed = False
        self.most = 0

    def take(self) -> bytes:
        data = bytes(self.written)
        self.written.clear()
        return data

    def write(self, data: bytes) -> None:
        self.written += data
        self.most = max(self.most, len(self.written))

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """What was sent is all."""

    def pause_reading(self) -> None:
        """Bytes come when the test says so."""

    def resume_reading(self) -> None:
        """Bytes come when the test says so."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.1", 1) if name == "peername" else default


class Container:
    """One connection to a container, which reads requests with a parser of its own and answers each."""

    def __init__(self, answer: bytes) -> None:
        self.wire = Wire()
        self.requests: list[h11.Request] = []
        self.upstream: Any = None
        self._answer = answer
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=ROOM)

    def step(self) -> bool:
        """Read what came. Says whether anything did."""
        data = self.wire.take()
        if not data or self.wire.closed:
            return False
        self._parser.receive_data(data)
        while True:
            event = self._parser.next_event()
            if isinstance(event, h11.Request):
                self.requests.append(event)
            elif isinstance(event, h11.EndOfMessage):
                if self._parser.their_state is h11.MUST_CLOSE:
                    raise AssertionError("a request to a container ends its connection")
                self._parser.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                self._parser.send(h11.EndOfMessage())
                self._parser.start_next_cycle()
                self.upstream.data_received(self._answer)
            elif not isinstance(event, h11.Data):
                assert event in (h11.NEED_DATA, h11.PAUSED), event
                return True


class Nobody:
    """Where loads are told to."""

    def web_load(self, *load: Any) -> None:
        """Nobody wants to know."""


class Rig:
    """A gateway, one client and some connections to a container."""

    def __init__(
        self, connections: int, answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    ) -> None:
        async def check(key: str, secret: str, route: Route) -> bool:
            return False

        self.gateway = Gateway(GatewaySettings(max_body=1000), Nobody(), check)
        self.gateway.serve(ServedFunction("fu-1", (Route("web", "fu-1"),), 10))
        closed = Route("other", "fu-2", requires_proxy_auth=True)
        self.gateway.serve(ServedFunction("fu-2", (closed,), 10))
        self.gateway.instance_up("fu-1", ContainerAddress("ta-1", "127.0.0.1", 1, KEY.decode()))
        self.gateway.instance_up("fu-2", ContainerAddress("ta-2", "127.0.0.1", 1, "another-key"))
        self.containers = [Container(answer) for _ in range(connections)]
        self.others = [Container(answer)]
        for name, containers in (("fu-1", self.containers), ("fu-2", self.others)):
            (instance,) = self.gateway._services[name].instances.values()
            idle = instance.idle.setdefault("", [])
            for container in containers:
                container.upstream = Upstream(idle.append, lambda gone: None)
                container.upstream.connection_made(container.wire)
                idle.append(container.upstream)
        self.client: Any = self.gateway.protocol()
        self.wire = Wire()
        self.client.connection_made(self.wire)

    def send(self, data: bytes, cuts: list[int]) -> None:
        """Send bytes in pieces, and have containers read and answer between them."""
        for piece in cut(data, cuts):
            if self.wire.closed:
                return
            self.client.data_received(piece)
            while sum(container.step() for container in self.containers + self.others):
                pass

    async def end(self) -> None:
        self.client.connection_lost(None)
        await self.gateway.close()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({x % (len(data) + 1) for x in places} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(at)]


INNER = b"GET /inner HTTP/1.1\r\nHost: web.localhost\r\n\r\n"
LINES = st.sampled_from(
    [
        b"Content-Length: 0",
        b"Content-Length: %d" % len(INNER),
        b"Content-Length: 5",
        b"content-length: 5",
        b"Content-Length: +5",
        b"Content-Length: 5, 5",
        b"Content-Length: 999",
        b"Content-Length : 5",
        b"Content-Length:\t5",
        b"Content_Length: 5",
        b"Transfer-Encoding: chunked",
        b"transfer-encoding: CHUNKED",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: \x0bchunked",
        b"Transfer-Encoding:\r\n chunked",
        b"Transfer_Encoding: chunked",
        b"Connection: close",
        b"Connection: keep-alive, Content-Length",
        b"Connection: Transfer-Encoding, Host",
        b"Connection: Upgrade\r\nUpgrade: websocket",
        b"Expect: 100-continue",
        b"Host: other.localhost",
        b"X-Modal-Nomad-Key: guessed",
        b"X_Modal_Nomad_Key: guessed",
        b"X-Modal-Nomad-Call: fc-guessed",
        b"X-Forwarded-For: 10.0.0.1",
        b"X: a\rb",
        b"X: a\nb: c",
        b"X: \x00",
        b"X: \xff\xfe",
        b"TE: trailers",
        b": none",
        b" folded",
        b"",
    ]
)
FIRST = st.sampled_from(
    [
        *[b"GET / HTTP/1.1", b"POST /a HTTP/1.1"] * 4,
        b"HEAD / HTTP/1.1",
        b"GET / HTTP/1.0",
        b"GET http://web.localhost/b HTTP/1.1",
        b"GET http://other.localhost/b HTTP/1.1",
        b"GET /../other/ HTTP/1.1",
        b"GET //other.localhost/ HTTP/1.1",
        b"GET /%2e%2e/%00?x#y HTTP/1.1",
        b"GET / HTTP/1.1 HTTP/1.1",
        b"GET\t/ HTTP/1.1",
        b"get / HTTP/1.1",
        b"GET / HTTP/1.2",
        b"PRI * HTTP/2.0",
        b"\x16\x03\x01",
    ]
)
_INNER = b"Content-Length: %d" % len(INNER)
FRAMING = st.sampled_from(
    [
        [],
        [b"Content-Length: 5"],
        [_INNER],
        [b"Transfer-Encoding: chunked"],
        [b"Content-Length: 5", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: chunked", _INNER],
        [_INNER, b"Content-Length: 5"],
    ]
)
BODY = st.sampled_from(
    [
        b"",
        b"hello",
        INNER,
        b"0\r\n\r\n",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5;x=y\r\nhello\r\n0\r\nHost: evil\r\n\r\n",
        b"2c\r\n" + INNER[:44] + b"\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\n0\n\n",
        b"-1\r\n",
        b"fffffffffffffffff\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"0\r\n" + INNER,
    ]
)


@st.composite
def request_bytes(draw: st.DrawFn) -> bytes:
    end = draw(st.sampled_from([b"\r\n"] * 8 + [b"\n", b"\r"]))
    host = [b"Host: web.localhost"] if draw(st.integers(0, 9)) else []
    lines = [draw(FIRST), *host, *draw(FRAMING), *draw(st.lists(LINES, max_size=2))]
    return end.join(lines) + end + end + draw(BODY)


@FEW
@given(
    st.lists(st.one_of(request_bytes(), st.binary(max_size=20)), min_size=1, max_size=4),
    st.lists(st.integers(0, 10_000), max_size=6),
)
def test_containers_get_whole_requests_of_the_gateways_own(parts: list[bytes], cuts: list[int]) -> None:
    async def body() -> None:
        rig = Rig(connections=12)
        rig.send(b"".join(parts), cuts)
        calls = []
        for container in rig.containers:
            for number, request in enumerate(container.requests):
                names = [name for name, _ in request.headers]
                values = dict(request.headers)
                # A request inside of another one would be without, or with what a client made up.
                assert names.count(b"x-modal-nomad-call") == 1
                calls.append(values[b"x-modal-nomad-call"])
                assert names.count(b"x-modal-nomad-key") == (0 if number else 1)
                assert values.get(b"x-modal-nomad-key", KEY) == KEY
                assert names.count(b"host") == 1 and values[b"host"] == b"web.localhost"
                assert values[b"x-forwarded-for"] == b"192.0.2.1"
                assert not {b"content-length", b"transfer-encoding"} <= set(names)
                # Nor does the other spelling of a field that counts get through.
                assert not any(b"_" in name for name in names)
            assert container.wire.most < ROOM
        assert len(set(calls)) == len(calls) and b"fc-guessed" not in calls
        # Nobody is let into an endpoint that wants a token.
        assert not rig.others[0].requests
        await rig.end()

    asyncio.run(body())


ANSWER_LINES = st.sampled_from(
    [
        b"Content-Length: 5",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: -5",
        b"Content-Length: 99999999999999999999999",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Connection: close",
        b"Connection: Content-Length",
        b"Upgrade: websocket",
        b"Set-Cookie: a=1",
        b"X: \x00",
        b"X: a\rHTTP/1.1 200 OK",
        b"X: a\nSet-Cookie: b",
        b"Trailer: X",
        b" folded",
        b"no colon",
        b"X: " + b"y" * 70_000,
        b"",
    ]
)
STATUS = st.sampled_from(
    [
        b"HTTP/1.1 200 OK",
        b"HTTP/1.0 200 OK",
        b"HTTP/1.1 204 No Content",
        b"HTTP/1.1 304 Not Modified",
        b"HTTP/1.1 100 Continue",
        b"HTTP/1.1 103 Early Hints",
        b"HTTP/1.1 101 Switching Protocols",
        b"HTTP/1.1 200",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1 99 Low",
        b"HTTP/2 200 OK",
        b"HTTP/1.1 200 O\x00K",
        b"ICY 200 OK",
        b"garbage",
    ]
)


@st.composite
def answer_bytes(draw: st.DrawFn) -> bytes:
    end = draw(st.sampled_from([b"\r\n"] * 8 + [b"\n", b"\r"]))
    lines = [draw(STATUS), *draw(st.lists(ANSWER_LINES, max_size=3))]
    return end.join(lines) + end + end + draw(BODY)


@FEW
@given(
    st.lists(st.one_of(answer_bytes(), st.binary(max_size=20)), min_size=1, max_size=3),
    st.lists(st.integers(0, 10_000), max_size=6),
    st.sampled_from([b"GET", b"HEAD"]),
    st.booleans(),
)
def test_clients_get_one_whole_answer(parts: list[bytes], cuts: list[int], method: bytes, ends: bool) -> None:
    async def body() -> None:
        rig = Rig(connections=1)
        upstream, inside = rig.containers[0].upstream, rig.containers[0].wire
        rig.client.data_received(method + b" / HTTP/1.1\r\nHost: web.localhost\r\n\r\n")
        assert inside.take()
        for piece in cut(b"".join(parts), cuts):
            if not inside.closed:
                upstream.data_received(piece)
        if ends or inside.closed:
            upstream.connection_lost(None)
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=ROOM)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "web.localhost")]))
        parser.send(h11.EndOfMessage())
        sent = rig.wire.take()
        if sent:
            parser.receive_data(sent)
        answers = 0
        while True:
            event = parser.next_event()
            if isinstance(event, h11.Response):
                answers += 1
                assert event.status_code != 101
            if event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.ConnectionClosed):
                break
            if isinstance(event, h11.EndOfMessage):
                # Of what a container sends besides, nothing is taken for the answer to the next request.
                assert parser.trailing_data[0] == b""
                break
        assert answers <= 1
        assert rig.wire.most < ROOM
        # The gateway is up, and who asks next is answered.
        next_, wire = rig.gateway.protocol(), Wire()
        next_.connection_made(wire)  # type: ignore[arg-type]
        next_.data_received(b"GET / HTTP/1.1\r\nHost: nowhere.localhost\r\n\r\n")  # type: ignore[attr-defined]
        assert wire.take().startswith(b"HTTP/1.1 404 ")
        next_.connection_lost(None)
        await rig.end()

    asyncio.run(body())


def test_who_drips_is_not_waited_for() -> None:
    """Each byte in time, and the head never whole: the time is that of the head."""

    async def body() -> None:
        rig = Rig(connections=1)
        begun = asyncio.get_running_loop().time()
        for second in range(0, 30):
            rig.client.data_received(b"G" if not second else b"E")
            rig.client.check(begun + second)
            if rig.wire.written:
                break
        assert rig.wire.take().startswith(b"HTTP/1.1 408 ") and 15 <= second <= 25
        await rig.end()

    asyncio.run(body())
