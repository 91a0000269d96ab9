"""Frames: a JSON header, then raw payloads. ``docs/protocol.md`` specifies them."""

import json
import struct
from typing import Any, Dict, List, Sequence, Tuple, Union

PROTOCOL_VERSION = 1
MAX_FRAME_BYTES = 16 << 20
"""No peer sends a larger frame, and each refuses one; larger values travel as blobs."""
INLINE_LIMIT = 2 << 20
"""Bytes of the largest payload that travels inside a frame."""
FLAG_BLOB = 1
FLAG_SPAWNED = 2
"""The payload is not the value but the 64 hex digits of the blob that holds it."""

SUCCESS, FAILURE, INIT_FAILURE, TERMINATED, TIMEOUT, INTERNAL = range(6)

_LENGTH = struct.Struct(">I")
_encoder = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, check_circular=False)
_scan_json: Any = json.JSONDecoder().scan_once  # type: ignore[attr-defined]

Header = Dict[str, Any]


def _json_encoder() -> Any:
    """Return what ``_encoder.iterencode`` makes anew for every object, at several times its own cost."""
    try:
        made: Any = json.encoder.c_make_encoder(  # type: ignore[attr-defined]
            None, _encoder.default, json.encoder.encode_basestring, None, ":", ",", False, False, True
        )
    except (AttributeError, TypeError):
        # An interpreter without it.
        return lambda value, _: [_encoder.encode(value)]
    return made


_encode_json = _json_encoder()


class FrameError(ValueError):
    """A message that is no frame: the text says what is wrong with it."""


def encode(header: Header, payloads: Sequence[bytes] = ()) -> bytes:
    """Return the bytes of a frame. The header's ``z`` becomes the payloads' sizes.

    Example:
        >>> decode(encode({"t": "hb"}, [b"ab"]))
        ({'t': 'hb', 'z': [2]}, [b'ab'])
    """
    if payloads:
        header["z"] = [len(p) for p in payloads]
    head = "".join(_encode_json(header, 0)).encode()
    return b"".join((_LENGTH.pack(len(head)), head, *payloads))


def encode_flat(header: Header, payloads: Sequence[bytes]) -> bytes:
    """Return what ``encode`` returns for a header of integers, lists of integers and ids: faster.

    Example:
        >>> decode(encode_flat({"t": "in", "c": "fc-1", "x": [0, 1]}, [b"a", b"b"]))
        ({'t': 'in', 'c': 'fc-1', 'x': [0, 1], 'z': [1, 1]}, [b'a', b'b'])
    """
    header["z"] = [len(p) for p in payloads]
    parts = []
    for key, value in header.items():
        if type(value) is str:
            if not value.isprintable() or '"' in value or "\\" in value:
                return encode(header, payloads)
            parts.append(f'"{key}":"{value}"')
        else:
            # A list of integers prints as JSON.
            parts.append(f'"{key}":{value}')
    head = f"{{{','.join(parts)}}}".encode()
    return b"".join((_LENGTH.pack(len(head)), head, *payloads))


def encode_head(head: str, payload: bytes) -> bytes:
    """Return the bytes of a frame from its header's text, which names the size of the one payload.

    Example:
        >>> decode(encode_head('{"t":"in","z":[2]}', b"ab"))
        ({'t': 'in', 'z': [2]}, [b'ab'])
    """
    header = head.encode()
    return len(header).to_bytes(4, "big") + header + payload


def decode(data: Union[bytes, bytearray, memoryview]) -> Tuple[Header, List[bytes]]:
    """Return the header and the payloads of a frame.

    Raises:
        FrameError: the bytes are not a frame.
    """
    if type(data) is not bytes:
        data = bytes(data)
    if len(data) < 4:
        raise FrameError("a frame has at least 4 bytes")
    end = 4 + int.from_bytes(data[:4], "big")
    if end > len(data):
        raise FrameError("the header is longer than the frame")
    try:
        text = data[4:end].decode()
        header, length = _scan_json(text, 0)
    except (ValueError, StopIteration, RecursionError) as error:
        raise FrameError("the header is not JSON") from error
    if length != len(text):
        raise FrameError("the header is followed by something")
    if type(header) is not dict or type(header.get("t")) is not str:
        raise FrameError("the header is no object with a type")
    sizes = header.get("z")
    if sizes is None:
        if end != len(data):
            raise FrameError("the frame has payload bytes that its header does not name")
        return header, []
    return header, split(data, end, sizes)


def split(data: bytes, start: int, sizes: Any) -> List[bytes]:
    """Cut the payloads out of a frame; sizes come from its header and are not trusted."""
    if type(sizes) is not list:
        raise FrameError("z is no list of sizes")
    if len(sizes) == 1 and type(sizes[0]) is int and start + sizes[0] == len(data) and sizes[0] >= 0:
        return [data[start:]]
    payloads = []
    for size in sizes:
        if type(size) is not int or size < 0:
            raise FrameError("a payload size is no natural number")
        end = start + size
        payloads.append(data[start:end])
        start = end
    if start != len(data):
        raise FrameError("the payload sizes do not add up to the frame's length")
    return payloads
