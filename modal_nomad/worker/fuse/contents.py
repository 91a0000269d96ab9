"""What is in the files of a Volume: chunks that are fetched when they are read, and what is written here.

The content of a file is ``None`` when it is empty, ``bytes`` (the SHA-256 of its chunks, one after the other)
when it is as it was committed, a place in the file of small contents, or ``Written``.
"""

import contextlib
import errno
import os
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

from ...wire.volumes.entries import CHUNK_BYTES, HOLE, INLINE_BYTES
from .chunks import Chunk, Chunks, OpenFile
from .nodes import Node

HOLE_SHA = bytes.fromhex(HOLE)
SHA = 32
_ZEROS = bytes(1 << 16)
_MOST_LOST = 64 << 20
"""Bytes of small files' earlier contents, after which a file that is written again gets one of its own."""


class Small(int):
    """Where a small file's content begins in the file of them."""


class Written:
    """A file that was written here: a sparse file of its own, in which some chunks are.

    Attributes:
        path: of that file.
        hashes: of the chunks; None for one that was written since.
        here: whether each chunk is in the file.
        serial: counts changes.
    """

    __slots__ = ("hashes", "here", "path", "serial")

    def __init__(self, path: str) -> None:
        self.path = path
        self.hashes: List[Optional[bytes]] = []
        self.here = bytearray()
        self.serial = 0


class Snapshot(NamedTuple):
    """A written file as it is now, for a commit that reads it without the lock.

    Attributes:
        file: what was written.
        size: in bytes.
        hashes: as in ``Written``.
        serial: as in ``Written``.
    """

    file: OpenFile
    size: int
    hashes: List[Optional[bytes]]
    serial: int


class Missing(Exception):
    """Chunks are to be fetched first.

    Args:
        hashes: of the chunks.
    """

    def __init__(self, hashes: List[bytes]) -> None:
        super().__init__(hashes)
        self.hashes = hashes


class Contents:
    """Reads and writes the files of one Volume. Its caller holds a lock, but for ``read_parts``.

    Args:
        folder: a directory of the container's own.
        chunks: gives committed contents.
    """

    def __init__(self, folder: str, chunks: Chunks) -> None:
        self._folder = os.path.join(folder, "written")
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        self._chunks = chunks
        small = os.open(os.path.join(folder, "small"), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self._small = OpenFile(small)
        self._small_end = 0
        self._small_lost = 0

    # --- small files ------------------------------------------------------------------------------

    def keep_small(self, parts: List[bytes]) -> List[Small]:
        """Put contents of small files aside, and return where. Raises OSError."""
        places = []
        at = self._small_end
        for part in parts:
            places.append(Small(at))
            at += len(part)
        self._write_all(self._small.fd, b"".join(parts), self._small_end)
        self._small_end = at
        return places

    # --- reading ----------------------------------------------------------------------------------

    def parts(
        self, node: Node, offset: int, size: int, more: Mapping[bytes, Chunk] = {}
    ) -> List[Tuple[Any, int, int]]:
        """Return what a range of a file is made of: sources (None for zeros), offsets in them, and lengths.

        Args:
            node: a file.
            offset: where the range begins.
            size: how long it is; it may end behind the file.
            more: chunks that were fetched for it.

        Raises:
            Missing: chunks are to be fetched.
        """
        content = node.content
        size = min(size, node.size - offset)
        if size <= 0 or content is None:
            return []
        if isinstance(content, Small):
            return [(self._small, content + offset, size)]
        written = content if isinstance(content, Written) else None
        found: List[Tuple[Any, int, int]] = []
        missing: List[bytes] = []
        while size > 0:
            number, start = divmod(offset, CHUNK_BYTES)
            length = min(size, CHUNK_BYTES - start)
            source: Any = None
            if written is not None and written.here[number]:
                source, start = self._file(written), offset
            else:
                sha = _sha(content, number)
                if sha != HOLE_SHA:
                    source = more.get(sha) or self._chunks.get(sha)
                    if source is None:
                        missing.append(sha)
            found.append((source, start, length))
            offset += length
            size -= length
        if missing:
            raise Missing(missing)
        return found

    @staticmethod
    def read_parts(parts: List[Tuple[Any, int, int]], view: memoryview) -> int:
        """Read what ``parts`` named; returns how many bytes. Raises OSError."""
        at = 0
        for source, start, length in parts:
            end = at + length
            while source is not None and at < end:
                count = source.read_into(view[at:end], start)
                if count == 0:
                    break
                at += count
                start += count
            while at < end:
                # A hole; or the file was made larger, which its own file need not be yet.
                count = min(end - at, len(_ZEROS))
                view[at : at + count] = _ZEROS[:count]
                at += count
        return at

    def ahead(self, node: Node, number: int, count: int) -> List[bytes]:
        """Return the chunks after one that would have to be fetched."""
        content = node.content
        if isinstance(content, Written):
            places = range(number + 1, min(number + 1 + count, len(content.hashes)))
            hashes = [content.hashes[x] for x in places if not content.here[x]]
        elif isinstance(content, bytes):
            ends = range((number + 1) * SHA, min((number + 1 + count) * SHA, len(content)), SHA)
            hashes = [content[x : x + SHA] for x in ends]
        else:
            return []
        return [sha for sha in hashes if sha and sha != HOLE_SHA]

    # --- writing ----------------------------------------------------------------------------------

    def write(self, node: Node, offset: int, data: memoryview, more: Mapping[bytes, Chunk] = {}) -> None:
        """Write into a file. Raises OSError, and Missing before anything is done."""
        if not data:
            return
        end = offset + len(data)
        size = max(node.size, end)
        if size <= INLINE_BYTES and self._write_small(node, offset, data, size):
            return
        first, last = offset // CHUNK_BYTES, (end - 1) // CHUNK_BYTES
        old_last = (node.size - 1) // CHUNK_BYTES
        partial = set()
        if offset > first * CHUNK_BYTES:
            partial.add(first)
        if end < min((last + 1) * CHUNK_BYTES, node.size):
            partial.add(last)
        if node.size % CHUNK_BYTES and old_last < first:
            # It ends no longer where it did.
            partial.add(old_last)
        written = self._prepare(node, partial, more)
        file = self._file(written)
        self._write_all(file.fd, data, offset)
        self._resize_lists(written, size)
        if old_last < first and node.size % CHUNK_BYTES:
            self._changed(written, old_last)
        for number in range(first, last + 1):
            written.hashes[number] = None
            written.here[number] = 1
        written.serial += 1
        node.size = size

    def _write_small(self, node: Node, offset: int, data: memoryview, size: int) -> bool:
        """Put a small file aside as it is now; False where it needs a file of its own."""
        content = node.content
        if isinstance(content, Small):
            # What it was stays behind.
            self._small_lost += node.size
        if not (content is None or isinstance(content, Small)) or self._small_lost > _MOST_LOST:
            return False
        whole = bytearray(size)
        if content is not None:
            self.read_parts([(self._small, int(content), node.size)], memoryview(whole))
        whole[offset : offset + len(data)] = data
        node.content = self.keep_small([bytes(whole)])[0]
        node.size = size
        return True

    def resize(self, node: Node, size: int, more: Mapping[bytes, Chunk] = {}) -> None:
        """Make a file shorter or longer. Raises OSError, and Missing before anything is done."""
        if size == node.size:
            return
        if size == 0 and not isinstance(node.content, Written):
            node.content = None
            node.size = 0
            return
        edge = min(size, node.size)
        partial = {(edge - 1) // CHUNK_BYTES} if edge % CHUNK_BYTES else set()
        written = self._prepare(node, partial, more)
        os.ftruncate(self._file(written).fd, size)
        self._resize_lists(written, size)
        for number in partial:
            self._changed(written, number)
        written.serial += 1
        node.size = size

    def _prepare(self, node: Node, partial: "set[int]", more: Mapping[bytes, Chunk]) -> Written:
        """Make a file one that is written here, in which some chunks are. Raises Missing, OSError."""
        content = node.content
        written = content if isinstance(content, Written) else None
        count = -(-node.size // CHUNK_BYTES)
        fetched: Dict[int, Chunk] = {}
        missing = []
        if written is not None or isinstance(content, bytes):
            for number in partial:
                if not 0 <= number < count or (written is not None and written.here[number]):
                    continue
                sha = _sha(content, number)
                if sha == HOLE_SHA:
                    continue
                chunk = more.get(sha) or self._chunks.get(sha)
                if chunk is None:
                    missing.append(sha)
                else:
                    fetched[number] = chunk
        if missing:
            raise Missing(missing)
        if written is None:
            written = self._begin(node)
        for number, chunk in fetched.items():
            self._bring(written, number, chunk)
        node.content = written
        return written

    def _begin(self, node: Node) -> Written:
        path = os.path.join(self._folder, str(node.ino))
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._chunks.open.put(path, OpenFile(descriptor))
        written = Written(path)
        content = node.content
        if node.size:
            os.ftruncate(descriptor, node.size)
        if isinstance(content, Small):
            data = bytearray(node.size)
            self.read_parts([(self._small, int(content), node.size)], memoryview(data))
            self._write_all(descriptor, data, 0)
            written.hashes, written.here = [None], bytearray(b"\1")
        elif content is not None:
            written.hashes = [content[x : x + SHA] for x in range(0, len(content), SHA)]
            written.here = bytearray(len(written.hashes))
        return written

    def _bring(self, written: Written, number: int, chunk: Chunk) -> None:
        data = bytearray(CHUNK_BYTES)
        size = self.read_parts([(chunk, 0, CHUNK_BYTES)], memoryview(data))
        file = self._file(written)
        end = min(number * CHUNK_BYTES + size, os.fstat(file.fd).st_size)
        self._write_all(file.fd, memoryview(data)[: end - number * CHUNK_BYTES], number * CHUNK_BYTES)
        written.here[number] = 1

    @staticmethod
    def _changed(written: Written, number: int) -> None:
        # Zeros stay zeros, whatever their number.
        if 0 <= number < len(written.hashes) and written.hashes[number] != HOLE_SHA:
            written.hashes[number] = None
            written.here[number] = 1

    @staticmethod
    def _resize_lists(written: Written, size: int) -> None:
        count, had = -(-size // CHUNK_BYTES), len(written.hashes)
        if count > had:
            written.hashes.extend([HOLE_SHA] * (count - had))
            written.here.extend(b"\1" * (count - had))
        elif count < had:
            del written.hashes[count:], written.here[count:]

    def _file(self, written: Written) -> OpenFile:
        found = self._chunks.open.get(written.path)
        if found is None:
            found = OpenFile(os.open(written.path, os.O_RDWR | os.O_CLOEXEC))
            self._chunks.open.put(written.path, found)
        opened: OpenFile = found
        return opened

    def drop(self, node: Node) -> None:
        """Forget the content of a file that is gone."""
        if isinstance(node.content, Written):
            self._chunks.open.drop(node.content.path)
            with contextlib.suppress(OSError):
                os.unlink(node.content.path)
        node.content = None

    def _write_all(self, descriptor: int, data: Any, offset: int) -> None:
        view = memoryview(data)
        while view:
            try:
                count = os.pwrite(descriptor, view, offset)
            except OSError as error:
                if error.errno != errno.ENOSPC or not self._chunks.make_room():
                    raise
                continue
            view, offset = view[count:], offset + count

    # --- for commits ------------------------------------------------------------------------------

    def snapshot(self, node: Node) -> Snapshot:
        """Return a written file as it is. Raises OSError."""
        written = node.content
        return Snapshot(self._file(written), node.size, list(written.hashes), written.serial)

    def committed(self, node: Node, snapshot: Snapshot, hashes: List[bytes]) -> None:
        """Note the hashes that a commit found, where nothing was written since."""
        written = node.content
        if isinstance(written, Written) and written.serial == snapshot.serial:
            written.hashes[:] = hashes

    def small(self, node: Node) -> bytes:
        """Return the content of a small file. Raises OSError, and Missing."""
        data = bytearray(node.size)
        size = self.read_parts(self.parts(node, 0, node.size), memoryview(data))
        return bytes(data[:size])

    # --- holes ------------------------------------------------------------------------------------

    def seek(self, node: Node, offset: int, data: bool) -> int:
        """Return where the next data, or the next hole, begins. Raises OSError (ENXIO)."""
        if offset >= node.size:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        content = node.content
        if isinstance(content, (Written, bytes)):
            count = -(-node.size // CHUNK_BYTES)
            for number in range(offset // CHUNK_BYTES, count):
                if (_sha(content, number) == HOLE_SHA) != data:
                    return max(offset, number * CHUNK_BYTES)
            if data:
                raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
            return node.size
        return offset if data else node.size

    def blocks(self, node: Node) -> int:
        """Return how many blocks of 512 bytes a file has, holes not counted."""
        content = node.content
        holes = 0
        if isinstance(content, bytes) and len(content) > SHA:
            holes = content.count(HOLE_SHA)
        elif isinstance(content, Written):
            holes = content.hashes.count(HOLE_SHA)
        return -(-max(0, node.size - holes * CHUNK_BYTES) // 512)


def _sha(content: Any, number: int) -> bytes:
    if isinstance(content, Written):
        return content.hashes[number] or b""
    found: bytes = content[number * SHA : number * SHA + SHA]
    return found
