"""Cutting files into chunks, and sending those that the server lacks."""

import hashlib
import os
from typing import Any, Callable, Dict, List, Optional, Tuple

from .entries import CHUNK_BYTES, HOLE, INLINE_BYTES

_BATCH_BYTES = 32 << 20
_BATCH_CHUNKS = 512
_ZEROS = bytes(1 << 16)
PARALLEL = 8
"""Chunks that are moved at a time."""


class ChunkUploader:
    """Takes chunks and sends the ones that the server does not have, several at a time.

    Args:
        missing: returns which of these hashes the server lacks.
        put: sends one chunk.
    """

    def __init__(self, missing: Callable[[List[str]], List[str]], put: Callable[[bytes], Any]) -> None:
        self._missing = missing
        self._put = put
        self._waiting: Dict[str, bytes] = {}
        self._bytes = 0
        self._pool: Any = None
        self.sent_bytes = 0

    def add(self, chunk: bytes) -> str:
        """Take a chunk and return its SHA-256; it may be sent only at the next ``flush``."""
        sha = hashlib.sha256(chunk).hexdigest()
        if sha not in self._waiting:
            self._waiting[sha] = chunk
            self._bytes += len(chunk)
            if self._bytes >= _BATCH_BYTES or len(self._waiting) >= _BATCH_CHUNKS:
                self.flush()
        return sha

    def flush(self) -> None:
        """Send what was taken; returns when the server has it. Raises OSError."""
        if not self._waiting:
            return
        waiting, self._waiting, self._bytes = self._waiting, {}, 0
        chunks = [waiting[sha] for sha in self._missing(list(waiting))]
        self.sent_bytes += sum(map(len, chunks))
        if len(chunks) == 1:
            self._put(chunks[0])
        elif chunks:
            if self._pool is None:
                from concurrent.futures import ThreadPoolExecutor

                self._pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="modal-chunks")
            list(self._pool.map(self._put, chunks))

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def take_file(descriptor: int, size: int, uploader: ChunkUploader) -> Tuple[int, Tuple[str, ...], bytes]:
    """Read a file from its beginning and hand its chunks to an uploader.

    Args:
        descriptor: of the open file.
        size: how long it is; it may turn out shorter.
        uploader: takes the chunks.

    Returns:
        Its size, its chunks, and its content where that is small.
    """
    if size <= INLINE_BYTES:
        data = _read(descriptor, size, 0)
        return len(data), (), data
    chunks: List[str] = []
    offset = 0
    while offset < size:
        wanted = min(CHUNK_BYTES, size - offset)
        name, length = take_chunk(descriptor, offset, wanted, uploader)
        chunks.append(name)
        offset += length
        if length < wanted:
            break
    if offset < size:
        # Cut off while it was read: its size decides how it is kept.
        return take_file(descriptor, offset, uploader)
    return offset, tuple(chunks), b""


def take_chunk(descriptor: int, offset: int, size: int, uploader: ChunkUploader) -> Tuple[str, int]:
    """Return the name of a file's chunk, and its length: less than asked for where the file ends."""
    if _next_data(descriptor, offset) >= offset + size:
        return HOLE, size
    block = _read(descriptor, size, offset)
    hole = is_hole(block) and len(block) == size
    return HOLE if hole else uploader.add(block), len(block)


def is_hole(block: bytes) -> bool:
    """Tell whether a chunk is all zeros."""
    if not block or block[0] or block[-1]:
        return False
    rest = len(block) % len(_ZEROS)
    whole = range(0, len(block) - rest, len(_ZEROS))
    # Compared, not counted: that takes a twentieth of the time.
    return all(block.startswith(_ZEROS, at) for at in whole) and block.endswith(_ZEROS[:rest])


def _read(descriptor: int, size: int, offset: int) -> bytes:
    parts: List[bytes] = []
    while size > 0:
        part = os.pread(descriptor, size, offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _next_data(descriptor: int, offset: int) -> int:
    """Return where a sparse file has its next data; the offset itself where that is not known."""
    seek: Optional[int] = getattr(os, "SEEK_DATA", None)
    if seek is None:
        return offset
    try:
        return os.lseek(descriptor, offset, seek)
    except OSError as error:
        import errno

        # ENXIO: nothing but a hole up to the end.
        return 1 << 62 if error.errno == errno.ENXIO else offset
