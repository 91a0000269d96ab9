"""The open files of a Volume: reads, writes, and what is to be fetched for them."""

import errno
import os
import threading
import time
from typing import Any, Callable, Dict, List, Optional

from ...wire.volumes.entries import CHUNK_BYTES
from . import abi
from .abi import Request
from .chunks import Chunk, Chunks
from .contents import Contents, Missing
from .nodes import Node, Tree
from .session import Later, Session

_MOST_AHEAD = 8
MAX_SIZE = 1 << 40
"""Of a file."""

Do = Callable[[Dict[bytes, Chunk]], bytes]


class _Handle:
    """An open file: how it was read so far says what to fetch ahead."""

    __slots__ = ("ahead", "last", "mappable", "node")

    def __init__(self, node: Node, flags: int) -> None:
        self.node = node
        # Memory that changes a file needs it open for both.
        self.mappable = flags & os.O_ACCMODE == os.O_RDWR
        self.last = -1
        self.ahead = 0


class Files:
    """Answers what the kernel asks about open files. Its caller holds the lock.

    Args:
        session: the mount's.
        tree: what stands where.
        contents: of the files.
        chunks: what is fetched.
        lock: held while the tree is looked at or changed.
        let_go: told of a node that is open no longer.
    """

    def __init__(
        self,
        session: Session,
        tree: Tree,
        contents: Contents,
        chunks: Chunks,
        lock: threading.RLock,
        let_go: Callable[[Node], None],
    ) -> None:
        self._session = session
        self._tree = tree
        self._contents = contents
        self._chunks = chunks
        self._lock = lock
        self._let_go = let_go
        self._handles: Dict[int, _Handle] = {}
        self._last = 0
        self._buffer = memoryview(bytearray(abi.MAX_DATA))

    def handlers(self) -> Dict[int, Callable[[Request], Any]]:
        """Return what answers each kind of request."""
        return {
            abi.OPEN: self._open,
            abi.READ: self._read,
            abi.WRITE: self._write,
            abi.RELEASE: self._release,
            abi.FALLOCATE: self._fallocate,
            abi.LSEEK: self._lseek,
        }

    def open_paths(self) -> List[str]:
        """Return the paths of files that are open; one that was removed has an empty one."""
        with self._lock:
            nodes = {handle.node.ino: handle.node for handle in self._handles.values()}
            return sorted((self._tree.paths(node) or [""])[0] for node in nodes.values())

    def mappable_paths(self) -> List[str]:
        """Return the paths of open files that programs may change by memory that is mapped to them."""
        with self._lock:
            nodes = {x.node.ino: x.node for x in self._handles.values() if x.mappable}
            return sorted(path for node in nodes.values() for path in self._tree.paths(node)[:1])

    def open(self, node: Node, flags: int) -> bytes:
        """Open a file; returns the answer to that."""
        if flags & os.O_TRUNC and node.size:
            self._tree.touch(node)
            self._contents.resize(node, 0)
            node.mtime = node.ctime = time.time_ns()
        self._last += 1
        self._handles[self._last] = _Handle(node, flags)
        node.opens += 1
        return abi.OPEN_OUT.pack(self._last, abi.FOPEN_KEEP_CACHE, 0)

    def _open(self, request: Request) -> bytes:
        flags, _ = abi.U32_PAIR.unpack_from(request.body)
        return self.open(self._tree.node(request.nodeid), flags)

    def _release(self, request: Request) -> bytes:
        handle = self._handles.pop(abi.U64.unpack_from(request.body)[0], None)
        if handle is not None:
            handle.node.opens -= 1
            self._let_go(handle.node)
        return b""

    def _read(self, request: Request) -> Any:
        number, offset, size = abi.READ_IN.unpack_from(request.body)
        node = self._tree.node(request.nodeid)
        handle = self._handles.get(number)
        if handle is not None and offset // CHUNK_BYTES != handle.last:
            self._look_ahead(handle, node, offset // CHUNK_BYTES)
        try:
            parts = self._contents.parts(node, offset, size)
        except Missing as missing:
            return self._read_later(request, node, offset, size, missing)
        count = self._contents.read_parts(parts, self._buffer)
        return self._buffer[:count]

    def _read_later(self, request: Request, node: Node, offset: int, size: int, missing: Missing) -> Later:
        unique = request.unique

        def ready(chunks: Dict[bytes, Chunk]) -> None:
            with self._lock:
                try:
                    parts = self._contents.parts(node, offset, size, chunks)
                except Missing as again:
                    # Written and committed meanwhile.
                    self._chunks.when_here(again.hashes, ready, failed)
                    return
            view = memoryview(bytearray(size))
            self._session.answer_late(unique, view[: self._contents.read_parts(parts, view)])

        def failed(number: int) -> None:
            self._session.fail_late(unique, number)

        later = self._session.postpone(unique)
        self._chunks.when_here(missing.hashes, ready, failed)
        return later

    def _look_ahead(self, handle: _Handle, node: Node, number: int) -> None:
        sequential = number == handle.last + 1
        handle.last = number
        # Twice as far each time: who looks at the begin of a large file may want no more of it.
        handle.ahead = min(_MOST_AHEAD, max(1, 2 * handle.ahead)) if sequential else 0
        if handle.ahead:
            hashes = self._contents.ahead(node, number, handle.ahead)
            self._chunks.fetch_ahead(sha for sha in hashes if self._chunks.get(sha) is None)

    def _write(self, request: Request) -> Any:
        _, offset, size = abi.READ_IN.unpack_from(request.body)
        data = request.body[abi.READ_SIZE : abi.READ_SIZE + size]
        node = self._tree.node(request.nodeid)
        if offset + size > MAX_SIZE:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        kept: List[Any] = [data]

        def do(chunks: Dict[bytes, Chunk]) -> bytes:
            self._tree.touch(node)
            self._contents.write(node, offset, kept[0], chunks)
            node.mtime = node.ctime = time.time_ns()
            return abi.U32_PAIR.pack(size, 0)

        def keep() -> None:
            kept[0] = memoryview(bytes(data))

        return self.with_chunks(request, do, keep)

    def with_chunks(self, request: Request, do: Do, keep: Optional[Callable[[], None]] = None) -> Any:
        """Do what may need chunks: now, or when they are here."""
        try:
            return do({})
        except Missing as missing:
            if keep is not None:
                keep()
            unique = request.unique

            def ready(chunks: Dict[bytes, Chunk]) -> None:
                with self._lock:
                    if not self._session.wanted(unique):
                        return
                    try:
                        answer = do(chunks)
                    except Missing as again:
                        self._chunks.when_here(again.hashes, ready, failed)
                        return
                self._session.answer_late(unique, answer)

            def failed(number: int) -> None:
                self._session.fail_late(unique, number)

            later = self._session.postpone(unique)
            self._chunks.when_here(missing.hashes, ready, failed)
            return later

    def _fallocate(self, request: Request) -> Any:
        _, offset, length, mode, _ = abi.FALLOCATE_IN.unpack_from(request.body)
        if mode & ~abi.FALLOC_KEEP_SIZE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        node = self._tree.node(request.nodeid)
        if mode or offset + length <= node.size:
            return b""
        if offset + length > MAX_SIZE:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

        def do(chunks: Dict[bytes, Chunk]) -> bytes:
            self._tree.touch(node)
            self._contents.resize(node, offset + length, chunks)
            node.mtime = node.ctime = time.time_ns()
            return b""

        return self.with_chunks(request, do)

    def _lseek(self, request: Request) -> bytes:
        _, offset, whence, _ = abi.LSEEK_IN.unpack_from(request.body)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return abi.U64.pack(
            self._contents.seek(self._tree.node(request.nodeid), offset, whence == os.SEEK_DATA)
        )
