"""Several small blobs in one answer: as many as fit of those that were asked for, from the first on.

Each is its size in eight bytes, then its bytes; a size of -1 says to ask for that one alone.
"""

import struct
from typing import Iterable, List, Optional

MOST_NAMES = 4096
"""Blobs that one request may ask for."""
MOST_BYTES = 8 << 20
"""Bytes of contents after which an answer ends."""
LARGEST = 1 << 20
"""Larger blobs are asked for alone."""

_SIZE = struct.Struct(">q")


def pack(contents: Iterable[Optional[bytes]]) -> bytes:
    """Return the body of an answer; None for what is to be asked for alone."""
    parts: List[bytes] = []
    for data in contents:
        parts += (_SIZE.pack(-1),) if data is None else (_SIZE.pack(len(data)), data)
    return b"".join(parts)


def unpack(body: bytes) -> List[Optional[bytes]]:
    """Return what ``pack`` got. Raises ValueError for what it did not make.

    Example:
        >>> unpack(pack([b"one", None, b""]))
        [b'one', None, b'']
    """
    found: List[Optional[bytes]] = []
    place = 0
    while place < len(body):
        if len(body) - place < _SIZE.size:
            raise ValueError("the answer ends in a size")
        (size,) = _SIZE.unpack_from(body, place)
        place += _SIZE.size
        if size < 0:
            found.append(None)
            continue
        if len(body) - place < size:
            raise ValueError("the answer ends in a blob")
        found.append(body[place : place + size])
        place += size
    return found
