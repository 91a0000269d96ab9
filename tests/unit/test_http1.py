"""Heads and bodies of HTTP/1.1: what is refused, what is passed on, however it is cut into pieces."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modal_nomad.wire.http1.body import ChunkedBody, LengthBody, chunk, last_chunk
from modal_nomad.wire.http1.exchange import Exchange
from modal_nomad.wire.http1.head import (
    CHUNKED,
    UNTIL_CLOSE,
    HttpError,
    end_to_end,
    parse_request,
    parse_response,
)
from modal_nomad.wire.http1.upstream import Upstream


def lines(*given: str) -> bytes:
    return "\r\n".join(given).encode("latin-1")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (lines("GET / HTTP/1.1"), 400),
        (lines("GET / HTTP/1.1", "Host: a", "Host: a"), 400),
        (lines("GET / HTTP/1.1", "Host: a b"), 400),
        (lines("GET / HTTP/1.1", "Host: a/../b"), 400),
        (lines("GET  / HTTP/1.1", "Host: a"), 400),
        (lines("GET /a b HTTP/1.1", "Host: a"), 400),
        (lines("GET /\xe9 HTTP/1.1", "Host: a"), 400),
        (lines("GET /#x HTTP/1.1", "Host: a"), 400),
        (lines("GET a HTTP/1.1", "Host: a"), 400),
        (lines("OPTIONS * HTTP/1.1", "Host: a"), 400),
        (lines("CONNECT a:1 HTTP/1.1", "Host: a"), 405),
        (lines("GET / HTTP/2.0", "Host: a"), 505),
        (lines("GET / HTTP/1.1", "Host: a", " folded"), 400),
        (lines("GET / HTTP/1.1", "Host : a"), 400),
        (lines("GET / HTTP/1.1", "Host: a", "X"), 400),
        (lines("GET / HTTP/1.1", "Host: a", "X: a\nY: b"), 400),
        (lines("GET / HTTP/1.1", "Host: a", "X: a\rY: b"), 400),
        (lines("GET / HTTP/1.1", "Host: a", "X: \0"), 400),
        (lines("POST / HTTP/1.1", "Host: a", "Content-Length: 1", "Content-Length: 1"), 400),
        (lines("POST / HTTP/1.1", "Host: a", "Content-Length: 1, 1"), 400),
        (lines("POST / HTTP/1.1", "Host: a", "Content-Length: +1"), 400),
        (lines("POST / HTTP/1.1", "Host: a", "Content-Length: 0x1"), 400),
        (lines("POST / HTTP/1.1", "Host: a", "Content-Length: 1", "Transfer-Encoding: chunked"), 400),
        (lines("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked, chunked"), 501),
        (lines("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: gzip, chunked"), 501),
        (lines("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: xchunked"), 501),
        (lines("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", "Transfer-Encoding: x"), 501),
        (lines("POST / HTTP/1.0", "Host: a", "Transfer-Encoding: chunked"), 400),
        (lines("GET / HTTP/1.1", "Host: a", "Expect: wonders"), 417),
        (lines("GET / HTTP/1.1", "Host: a", *["X: y"] * 300), 431),
        (lines("GET /" + "x" * 40_000 + " HTTP/1.1", "Host: a"), 414),
    ],
)
def test_requests_that_are_refused(head: bytes, status: int) -> None:
    with pytest.raises(HttpError) as caught:
        parse_request(head)
    assert caught.value.status == status


def test_a_request() -> None:
    request = parse_request(
        lines("POST /a?b=c HTTP/1.1", "Host: A.Example:80", "Content-Length: 12", "X-Y:\tz \t")
    )
    assert (request.method, request.target, request.host) == (b"POST", b"/a?b=c", "a.example:80")
    assert request.length == 12 and request.keep_alive and not request.upgrade
    assert request.value(b"x-y") == b"z"
    absolute = parse_request(lines("GET http://B.example/x HTTP/1.1", "Host: a"))
    assert (absolute.host, absolute.target) == ("b.example", b"/x")
    old = parse_request(lines("GET / HTTP/1.0"))
    assert old.host == "" and not old.keep_alive


def test_what_ends_at_this_hop() -> None:
    request = parse_request(
        lines(
            "GET / HTTP/1.1",
            "Host: a",
            "Connection: close, X-Hop, Host, Cookie",
            "X-Hop: 1",
            "Keep-Alive: 5",
            "Upgrade: h2c",
            "TE: trailers",
            "Cookie: kept",
            "X-End: 2",
        )
    )
    assert not request.keep_alive and not request.upgrade
    passed = end_to_end(request.fields, request.nominated, frozenset((b"host",)))
    assert passed == [b"Cookie: kept", b"X-End: 2"]


def test_a_websocket_is_the_only_upgrade() -> None:
    for value, known in (("websocket", True), ("h2c", False), ("websocket, h2c", False)):
        head = lines("GET / HTTP/1.1", "Host: a", "Connection: Upgrade", f"Upgrade: {value}")
        assert parse_request(head).upgrade is known


@pytest.mark.parametrize(
    ("head", "method", "length"),
    [
        (lines("HTTP/1.1 200 OK", "Content-Length: 5"), b"GET", 5),
        (lines("HTTP/1.1 200 OK", "Content-Length: 5"), b"HEAD", 0),
        (lines("HTTP/1.1 204 Gone", "Content-Length: 5"), b"GET", 0),
        (lines("HTTP/1.1 304"), b"GET", 0),
        (lines("HTTP/1.1 200 OK", "Transfer-Encoding: chunked"), b"GET", CHUNKED),
        (lines("HTTP/1.0 200 OK"), b"GET", UNTIL_CLOSE),
    ],
)
def test_responses(head: bytes, method: bytes, length: int) -> None:
    assert parse_response(head, method).length == length


@pytest.mark.parametrize(
    "head",
    [
        b"garbage",
        lines("HTTP/1.1 99 Low"),
        lines("HTTP/1.1 200 OK", "Content-Length: 5", "Content-Length: 6"),
        lines("HTTP/1.1 200 OK", "Content-Length: 5", "Transfer-Encoding: chunked"),
        lines("HTTP/1.1 200 OK", "X: a\nSet-Cookie: b"),
    ],
)
def test_responses_that_are_no_answer(head: bytes) -> None:
    with pytest.raises(HttpError) as caught:
        parse_response(head, b"GET")
    assert caught.value.status == 502


def feed(body: ChunkedBody | LengthBody, data: bytes, cuts: list[int]) -> bytes:
    places = sorted({min(x, len(data)) for x in cuts} | {0, len(data)})
    found = b""
    for start, end in itertools.pairwise(places):
        if body.done:
            body.rest += data[start:end]
        else:
            found += body.feed(data[start:end])
    return found


@given(st.lists(st.binary(min_size=1, max_size=40)), st.binary(max_size=9), st.lists(st.integers(0, 400)))
def test_chunks_however_they_are_cut(parts: list[bytes], behind: bytes, cuts: list[int]) -> None:
    data = b"".join(map(chunk, parts)) + last_chunk([(b"x-sum", b"X-Sum", b"1")]) + behind
    body = ChunkedBody(400)
    assert feed(body, data, cuts) == b"".join(parts)
    assert body.done and body.rest == behind
    assert body.trailers == [(b"x-sum", b"X-Sum", b"1")]


@given(st.binary(max_size=60), st.binary(max_size=9), st.lists(st.integers(0, 80)))
def test_lengths_however_they_are_cut(data: bytes, behind: bytes, cuts: list[int]) -> None:
    body = LengthBody(len(data))
    assert feed(body, data + behind, cuts) == data
    assert body.done and body.rest == behind


@pytest.mark.parametrize(
    "data",
    [
        b"5\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5 5\r\nhello\r\n0\r\n\r\n",
        b"5;a\rb\r\nhello\r\n0\r\n\r\n",
        b"ffffffffffffffffff\r\n",
        b"\r\n",
        b"0\r\nX\r\n\r\n",
        b"1" * 5000,
    ],
)
def test_chunks_that_are_refused(data: bytes) -> None:
    for cuts in ([], list(range(len(data)))):
        with pytest.raises(HttpError):
            feed(ChunkedBody(400), data, cuts)


def test_extensions_and_reserved_trailers_are_dropped() -> None:
    body = ChunkedBody(400)
    assert (
        body.feed(b"3;x=y\r\nabc\r\n0\r\nContent-Length: 5\r\nX-Modal-Nomad-Key: k\r\nX-Ok: 1\r\n\r\n")
        == b"abc"
    )
    assert last_chunk(body.trailers) == b"0\r\nX-Ok: 1\r\n\r\n"


async def test_a_request_meets_a_connection_that_broke_before_it_was_sent() -> None:
    told: list[bool] = []
    router = SimpleNamespace(failed=lambda exchange, again: told.append(again))
    client = SimpleNamespace(router=router, resume=lambda: None)

    def lost(upstream: Upstream) -> None:
        upstream.connection_lost(None)

    def unasked(upstream: Upstream) -> None:
        # The loop says only later that it is closed.
        upstream.data_received(b"HTTP/1.1 200 OK\r\n")

    for broken in (lost, unasked):
        exchange = Exchange(SimpleNamespace(length=0, method=b"POST"), client)  # type: ignore[arg-type]
        upstream = Upstream(lambda one: None, lambda one: None)
        upstream.transport = SimpleNamespace(abort=lambda: None)  # type: ignore[assignment]
        broken(upstream)
        exchange.send(upstream, b"")
        assert told == []
        await asyncio.sleep(0)
        # Nothing was sent, so that even this may be tried again.
        assert told == [True] and exchange.upstream is None
        told.clear()
