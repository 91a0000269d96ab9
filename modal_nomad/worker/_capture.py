"""Catch what the process prints, at the level of file descriptors.

So output of C code and of subprocesses is caught too. Everything also goes to the descriptors that the
engine gave, and a pipe bounds what is held: who prints faster than it is taken away waits.
"""

import io
import os
import select
import signal
import sys
import threading
from contextlib import suppress
from typing import Callable, List

_CHUNK = 65536
_PAUSE = 0.02
_F_SETPIPE_SZ = 1031

SendLog = Callable[[int, bytes], None]


class _Stream:
    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.original = os.dup(fd)
        self.read_end, write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        _enlarge(write_end)
        os.dup2(write_end, fd)
        os.close(write_end)
        self.tail = b""


def _enlarge(fd: int) -> None:
    if sys.platform == "linux":
        import fcntl

        with suppress(OSError):
            fcntl.fcntl(fd, _F_SETPIPE_SZ, 1 << 18)


class Capture:
    """Pipes in place of descriptors 1 and 2, and the thread that empties them.

    Args:
        send: takes the stream's number (1, 2) and a piece of what was printed.
    """

    def __init__(self, send: SendLog) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._pause = threading.Event()
        _flush_python()
        self._streams: List[_Stream] = [_Stream(1), _Stream(2)]
        self._previous = (sys.stdout, sys.stderr)
        sys.stdout = _text_on(1)
        sys.stderr = _text_on(2)
        self._poll = select.poll()
        for stream in self._streams:
            self._poll.register(stream.read_end, select.POLLIN)
        self._thread = threading.Thread(target=self._pump, name="modal-output", daemon=True)
        self._thread.start()

    @property
    def original_stderr(self) -> int:
        """The engine's descriptor of stderr, for words of the worker itself."""
        return self._streams[1].original

    def sync(self) -> None:
        """Send what has been printed until now, so that it goes before an output sent next."""
        _flush_python()
        self.drain()

    def drain(self) -> None:
        """As ``sync``, without what Python still buffers: safe where user code may hold its locks."""
        with self._lock:
            while self._poll.poll(0):
                if not self._take():
                    return

    def close(self) -> None:
        """Give the descriptors back and end the thread; what was printed is sent first."""
        self.sync()
        self._pause.set()
        for stream in self._streams:
            os.dup2(stream.original, stream.fd)
        # The pump ends when no writer is left; a subprocess that lives on keeps one, hence the flag.
        sys.stdout, sys.stderr = self._previous
        self.drain()
        with self._lock:
            for stream in self._streams:
                self._forward(stream, b"", last=True)

    def _pump(self) -> None:
        leave_signals_to_main()
        wake = select.poll()
        for stream in self._streams:
            wake.register(stream.read_end, select.POLLIN)
        while not self._pause.is_set():
            wake.poll(1000)
            with self._lock:
                largest = self._take() if self._poll.poll(0) else 0
            # A short read means a slow printer: waiting a little makes one frame of many lines.
            if largest < _CHUNK // 2 and self._pause.wait(_PAUSE):
                return

    def _take(self) -> int:
        largest = 0
        for stream in self._streams:
            try:
                data = os.read(stream.read_end, _CHUNK)
            except BlockingIOError:
                continue
            if data:
                largest = max(largest, len(data))
                self._forward(stream, data)
        return largest

    def _forward(self, stream: _Stream, data: bytes, last: bool = False) -> None:
        _write(stream.original, data)
        data = stream.tail + data
        cut = len(data) if last else _whole_characters(data)
        stream.tail = data[cut:]
        if cut:
            self._send(stream.fd, data[:cut])


def leave_signals_to_main() -> None:
    """Keep SIGINT and SIGTERM off this thread: one that lands here would not wake the main thread."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})


def _whole_characters(data: bytes) -> int:
    """Return how many bytes of ``data`` do not break a UTF-8 character at the end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte < 0x80:
            break
        if byte >= 0xC0:
            need = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if need > back else len(data)
    return len(data)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except OSError:
            return


def _text_on(fd: int) -> io.TextIOWrapper:
    # Errors of encoding must not fail a user's print: surrogates are written as escapes.
    raw = open(fd, "wb", buffering=-1, closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _flush_python() -> None:
    for stream in (sys.stdout, sys.stderr):
        # Once per output of a short function: a ``with suppress`` costs more than the flush.
        try:  # noqa: SIM105
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass
