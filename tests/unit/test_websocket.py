"""The WebSocket's bytes: whatever way a stream is cut, the same messages come out, or one clear error."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modal_nomad.wire import websocket
from modal_nomad.wire.address import parse_address
from modal_nomad.wire.websocket import BINARY, CLOSE, PING, Messages, WebSocketError, encode, mask

messages = st.lists(
    st.tuples(st.sampled_from([BINARY, PING]), st.binary(max_size=300) | st.just(b"x" * 70000)), max_size=6
)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    points = sorted({min(a, len(data)) for a in at} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(points)]


@given(
    messages,
    st.lists(st.integers(0, 71000), max_size=8),
    st.booleans(),
    st.sampled_from([None, websocket.NO_KEY, b"abcd"]),
)
def test_messages_come_out_however_the_stream_is_cut(
    sent: list[tuple[int, bytes]], at: list[int], masked: bool, key: bytes | None
) -> None:
    stream = b"".join(encode(payload, opcode, masked, key) for opcode, payload in sent)
    reader = Messages(masked)
    got = [message for part in cut(stream, at) for message in reader.feed(part)]
    assert got == sent


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5), st.booleans())
def test_fragments_are_joined(parts: list[bytes], masked: bool) -> None:
    stream = b""
    for number, part in enumerate(parts):
        frame = bytearray(encode(part, BINARY if number == 0 else 0, masked))
        if number < len(parts) - 1:
            frame[0] &= 0x7F
        stream += bytes(frame)
    assert Messages(masked).feed(stream) == [(BINARY, b"".join(parts))]


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_give_messages_or_one_error(data: bytes, masked: bool) -> None:
    reader = Messages(masked, limit=1000)
    try:
        for opcode, payload in reader.feed(data):
            assert 0 <= opcode < 16
            assert len(payload) <= 1000
    except WebSocketError:
        pass


def test_a_frame_masked_the_wrong_way_is_refused() -> None:
    with pytest.raises(WebSocketError, match="masked"):
        Messages(masked=True).feed(encode(b"x", masked=False))
    with pytest.raises(WebSocketError, match="masked"):
        Messages(masked=False).feed(encode(b"x", masked=True))


@pytest.mark.parametrize("second", [127, 128 + 5, 128 + 126, 255, 5, 126])
def test_what_comes_whole_is_read_as_what_comes_in_parts(second: int) -> None:
    def read(*parts: bytes, masked: bool) -> list[tuple[int, bytes]] | None:
        reader = Messages(masked, limit=1000)
        try:
            return [message for part in parts for message in reader.feed(part)]
        except WebSocketError:
            return None

    for length in range(400):
        data = bytes((0x82, second)) + b"\0\xf0" + bytes(length)
        for masked in (True, False):
            assert read(data, masked=masked) == read(data[:1], data[1:], masked=masked)


def test_frames_are_masked_by_chance_where_somebody_may_stand_between() -> None:
    for url in ("unix:///run/modal.sock", "https://dispatcher:8520"):
        assert parse_address(url).mask_key == websocket.NO_KEY
    for url in ("http://dispatcher:8520", "unix:///run/relay.sock?authority=dispatcher:8520"):
        assert parse_address(url).mask_key is None
    assert encode(b"open", key=websocket.NO_KEY)[6:] == b"open"
    assert len({encode(b"hidden") for _ in range(8)}) > 1


def test_a_message_over_the_limit_is_refused_before_it_has_come() -> None:
    head = encode(b"x" * 5000)[:8]
    with pytest.raises(WebSocketError, match="longer"):
        Messages(masked=True, limit=1000).feed(head)


def test_nothing_counts_after_a_close() -> None:
    stream = encode(b"\x03\xe8", CLOSE) + encode(b"late")
    assert Messages(masked=True).feed(stream) == [(CLOSE, b"\x03\xe8")]


@given(st.binary(max_size=100), st.binary(min_size=4, max_size=4))
def test_masking_twice_is_nothing(data: bytes, key: bytes) -> None:
    assert mask(mask(data, key), key) == data


def test_the_accept_key_is_that_of_the_standard() -> None:
    # RFC 6455, section 1.3.
    assert websocket.accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
