"""Frames on the dispatcher's side: what ``wire.frames`` does, with msgspec for the headers."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from modal_nomad.wire import frames

_encode_json = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder().decode


def encode(header: frames.Header, payloads: Sequence[bytes] = ()) -> bytes:
    """Return the bytes of a frame. The header's ``z`` becomes the payloads' sizes."""
    if payloads:
        header["z"] = [len(p) for p in payloads]
    head = _encode_json(header)
    return b"".join((len(head).to_bytes(4, "big"), head, *payloads))


def encode_one(header: frames.Header, payload: bytes) -> bytes:
    """Return the bytes of a frame with one payload."""
    header["z"] = [len(payload)]
    head = _encode_json(header)
    return len(head).to_bytes(4, "big") + head + payload


def decode(data: bytes) -> tuple[frames.Header, list[bytes]]:
    """Return the header and the payloads of a frame. Raises FrameError."""
    end = 4 + int.from_bytes(data[:4], "big")
    if len(data) < 4 or end > len(data):
        raise frames.FrameError("the header is longer than the frame")
    try:
        header = _decode_json(data[4:end])
    except (ValueError, RecursionError) as error:
        raise frames.FrameError("the header is not JSON") from error
    if type(header) is not dict or type(header.get("t")) is not str:
        raise frames.FrameError("the header is no object with a type")
    sizes = header.get("z")
    if sizes is None:
        if end != len(data):
            raise frames.FrameError("the frame has payload bytes that its header does not name")
        return header, []
    return header, frames.split(data, end, sizes)
