"""One mount's conversation with the kernel: requests are read and handed on, answers written."""

import errno
import os
import threading
from typing import Any, Callable, Dict, Optional, Sequence, Set, Union

from . import abi
from .abi import Request

Answer = Union[bytes, memoryview]
_MAX_BACKGROUND = 64
_READAHEAD = abi.MAX_DATA
_SOON = 1.0


class Later:
    """What a handler returns when its answer comes from another thread."""


LATER = Later()
NOTHING = Later()
"""What a handler returns when the kernel wants no answer."""


class Session:
    """Reads requests of one ``/dev/fuse`` descriptor until it is unmounted.

    Args:
        descriptor: of ``/dev/fuse``, mounted.
    """

    def __init__(self, descriptor: int) -> None:
        self._fd = descriptor
        self._buffer = bytearray(abi.MAX_DATA + (1 << 16))
        self._lock = threading.Lock()
        # Requests that are being answered elsewhere.
        self._pending: Set[int] = set()

    def begin(self) -> None:
        """Agree with the kernel on a version. Raises OSError."""
        request = self._read()
        if request is None or request.opcode != abi.INIT:
            raise OSError(errno.EPROTO, "the kernel did not begin with INIT")
        major, minor, readahead, flags = abi.INIT_IN.unpack_from(request.body)
        if major != abi.MAJOR or minor < abi.OLDEST_MINOR:
            raise OSError(
                errno.EPROTO,
                f"the kernel speaks FUSE {major}.{minor}; it takes {abi.MAJOR}.{abi.OLDEST_MINOR}",
            )
        out = abi.INIT_OUT.pack(
            abi.MAJOR,
            abi.MINOR,
            min(readahead, _READAHEAD),
            flags & abi.WANTED,
            _MAX_BACKGROUND,
            _MAX_BACKGROUND * 3 // 4,
            abi.MAX_DATA,
            1,
            abi.MAX_PAGES,
            0,
        )
        self.reply(request.unique, out)

    def run(self, handlers: Dict[int, Callable[[Request], Any]]) -> None:
        """Answer until the mount ends. Each handler returns its answer, or raises OSError.

        Args:
            handlers: by opcode; what has none is answered with ENOSYS, and not asked again.
        """
        get = handlers.get
        while True:
            request = self._read()
            if request is None:
                return
            opcode, unique = request.opcode, request.unique
            if opcode == abi.INTERRUPT:
                self._interrupt(abi.U64.unpack_from(request.body)[0])
                continue
            handler = get(opcode)
            if handler is None:
                if opcode == abi.DESTROY:
                    self.reply(unique, b"")
                    return
                self.fail(unique, errno.ENOSYS)
                continue
            try:
                answer = handler(request)
            except OSError as error:
                self.fail(unique, error.errno or errno.EIO)
            except Exception as error:
                import traceback

                traceback.print_exception(type(error), error, error.__traceback__)
                self.fail(unique, errno.EIO)
            else:
                if not isinstance(answer, Later):
                    self.reply(unique, answer)

    def _read(self) -> Optional[Request]:
        while True:
            try:
                size = os.readv(self._fd, [self._buffer])
            except OSError as error:
                # ENOENT: it was interrupted before it was read.
                if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    continue
                if error.errno in (errno.ENODEV, errno.ECONNABORTED, errno.EBADF):
                    return None
                raise
            if size == 0:
                return None
            _, opcode, unique, nodeid, uid, gid, _, _, _ = abi.IN_HEADER.unpack_from(self._buffer)
            return Request(
                opcode, unique, nodeid, uid, gid, memoryview(self._buffer)[abi.IN_HEADER.size : size]
            )

    # --- answers ----------------------------------------------------------------------------------

    def reply(self, unique: int, *parts: Answer) -> None:
        """Answer a request."""
        size = abi.OUT_HEADER.size + sum(map(len, parts))
        self._write([abi.OUT_HEADER.pack(size, 0, unique), *parts])

    def fail(self, unique: int, number: int) -> None:
        """Answer a request with an error."""
        self._write([abi.OUT_HEADER.pack(abi.OUT_HEADER.size, -number, unique)])

    def _write(self, parts: Sequence[Answer]) -> None:
        try:
            os.writev(self._fd, list(parts))
        except OSError as error:
            # ENOENT: who asked was killed. ENODEV: it was unmounted.
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ECONNABORTED, errno.EBADF):
                raise

    # --- answers from other threads ---------------------------------------------------------------

    def postpone(self, unique: int) -> Later:
        """Note that a request is answered by ``answer_late`` or ``fail_late``; it may be interrupted."""
        with self._lock:
            self._pending.add(unique)
        return LATER

    def wanted(self, unique: int) -> bool:
        """Tell whether a postponed request still waits."""
        return unique in self._pending

    def answer_late(self, unique: int, *parts: Answer) -> None:
        """Answer a postponed request, unless it was interrupted."""
        if self._take(unique):
            self.reply(unique, *parts)

    def fail_late(self, unique: int, number: int) -> None:
        """Answer a postponed request with an error, unless it was interrupted."""
        if self._take(unique):
            self.fail(unique, number)

    def _take(self, unique: int) -> bool:
        with self._lock:
            if unique not in self._pending:
                return False
            self._pending.discard(unique)
            return True

    def _interrupt(self, unique: int) -> None:
        # Who waits for contents was sent a signal: without an answer not even SIGKILL would end it. Few
        # programs expect EINTR from a file, so only one that would have to wait gets it.
        if self.wanted(unique):
            timer = threading.Timer(_SOON, self.fail_late, (unique, errno.EINTR))
            timer.daemon = True
            timer.start()

    # --- what the kernel is told ------------------------------------------------------------------

    def forget_attributes(self, nodeid: int) -> None:
        """Let the kernel ask for an inode's attributes again. Not from the thread that reads requests."""
        self._notify(abi.NOTIFY_INVAL_INODE, abi.INVAL_INODE.pack(nodeid, -1, 0))

    def forget_name(self, parent: int, name: bytes) -> None:
        """Let the kernel look a name up again. Not from the thread that reads requests."""
        self._notify(abi.NOTIFY_INVAL_ENTRY, abi.INVAL_ENTRY.pack(parent, len(name), 0) + name + b"\0")

    def _notify(self, code: int, body: bytes) -> None:
        head = abi.OUT_HEADER.pack(abi.OUT_HEADER.size + len(body), code, 0)
        try:
            os.writev(self._fd, [head, body])
        except OSError as error:
            # ENOENT: the kernel does not know it.
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENOTDIR, errno.ENOTEMPTY):
                raise
