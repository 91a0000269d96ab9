"""What a gateway says of a request, and what is left of it for the server of the app."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modal_nomad.worker._web_given import Reader

END = b"\r\n\r\n"
OURS = (
    b"X-Forwarded-For: 9.9.9.9, 127.0.0.1\r\nX-Forwarded-Host: web.localhost\r\nX-Forwarded-Proto: https\r\n"
    b"x-modal-nomad-method: m\r\nX-Forwarded-Prefix: /p\r\nx-modal-nomad-prefix: /p\r\nx-modal-nomad-call: "
)
GET = b"GET /a HTTP/1.1\r\nHost: web.localhost\r\nX: y"
POST = b"POST / HTTP/1.1\r\nHost: web.localhost\r\nContent-Length: 4"
CHUNKED = b"POST / HTTP/1.1\r\nHost: web.localhost\r\nTransfer-Encoding: chunked"
CHUNKS = b"4\r\nb\r\n\r\r\n0\r\nx-modal-nomad-call: fc-of-a-client\r\n\r\n"


def said(head: bytes, call: bytes, body: bytes = b"", more: bytes = b"") -> bytes:
    return head + b"\r\n" + OURS + call + more + END + body


def test_what_is_said_is_taken_off_and_known_again() -> None:
    reader = Reader()
    for number in range(3):
        more = b"\r\nx-modal-nomad-key: k" if number == 0 else b"\r\nx-modal-nomad-patience: 500"
        assert reader.feed(said(GET, b"fc-%d" % number, more=more)) == GET + END
        given = reader.take()
        assert given is not None and reader.take() is None
        assert given.call_id == f"fc-{number}" and given.prefix == "/p" and given.encrypted
        assert given.patience == (None if number == 0 else 0.5)
        assert given.client == ("9.9.9.9", 0)
        assert [x for x, _ in given.headers] == [
            b"x-forwarded-for",
            b"x-forwarded-host",
            b"x-forwarded-proto",
            b"x-forwarded-prefix",
        ]
    # Another request, the first one again, and one with a field that stands where none of these may.
    assert reader.feed(said(GET + b"z", b"fc-4")) == GET + b"z" + END
    assert reader.feed(said(GET, b"fc-5")) == GET + END
    strange = said(GET, b"fc-6", more=b"\r\nContent-Length: 4")
    assert reader.feed(strange) == strange and reader.take() is None


@given(st.data())
def test_bodies_are_left_however_they_are_cut(data: st.DataObject) -> None:
    kinds = {b"": GET, b"bod\n": POST, CHUNKS: CHUNKED}
    bodies = data.draw(st.lists(st.sampled_from(list(kinds)), min_size=1, max_size=5))
    reader = Reader()
    for number, body in enumerate(bodies):
        head = kinds[body]
        whole = said(head, b"fc-%d" % number, body)
        cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=4).map(sorted))
        got = b"".join(
            reader.feed(whole[a:b]) for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True) if a < b
        )
        assert got == head + END + body
        given = reader.take()
        assert given is not None and given.call_id == f"fc-{number}"


def test_what_no_gateway_sends_is_left_as_it_is() -> None:
    upgrade = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket"
    for data in (
        said(upgrade, b"fc-1"),
        GET + END,
        GET + b"\r\nx-modal-nomad-call: fc-1" + END,
        b"\x16\x03" + END,
        b"G" * (1 << 17),
        said(GET, b"fc-1", b"more"),
    ):
        reader = Reader()
        assert reader.feed(data) == data and reader.take() is None
        # And so is what follows.
        assert reader.feed(said(GET, b"fc-2")) == said(GET, b"fc-2") and reader.take() is None
    reader = Reader()
    data = said(POST, b"fc-1", b"body" + said(GET, b"fc-2"))
    assert reader.feed(data) == POST + END + b"body" + said(GET, b"fc-2")
    given = reader.take()
    assert given is not None and given.call_id == "fc-1"
