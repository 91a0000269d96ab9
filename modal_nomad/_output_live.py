"""A live region at the foot of the terminal, and the program's own streams kept whole beside it.

The region is drawn under everything else and taken away before anything is written, in one write each, so
nothing flickers and nothing is left behind. The program's own ``print`` passes through byte for byte; while
it has a line open (a prompt, a ``tqdm`` bar) the terminal is its alone and the region waits.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from rich.console import Console, RenderableType

REFRESH_SECONDS = 0.1
_HELD_CHARACTERS = 8192


class LiveRegion:
    """The lines at the foot of the terminal.

    Args:
        stream: the terminal.
        console: renders for it.
        render: returns what to show, or None for nothing; called with ``lock`` held.
        busy: tells whether there may be something to show soon; called with ``lock`` held.
        lock: held for every write.
    """

    def __init__(
        self,
        stream: TextIO,
        console: Console,
        render: Callable[[], RenderableType | None],
        busy: Callable[[], bool],
        lock: threading.RLock,
    ) -> None:
        self._stream = stream
        self._console = console
        self._render = render
        self._busy = busy
        self._lock = lock
        self._frame: list[str] = []
        self._height = 0
        self._open_line = ""
        self._drawing_now = False
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._replaced: list[tuple[str, TextIO, ProgramStream]] = []

    def take_over(self) -> None:
        """Route ``sys.stdout`` and ``sys.stderr`` past the region, where they are terminals."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None and stream.isatty():
                proxy = ProgramStream(stream, self, self._lock)
                self._replaced.append((name, stream, proxy))
                setattr(sys, name, proxy)

    def start(self) -> None:
        """Draw from now on, as long as ``busy`` says so."""
        with self._lock:
            if self._drawing_now or self._closed:
                return
            self._drawing_now = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._refresh, name="modal-nomad-display", daemon=True)
                self._thread.start()
        self._wake.set()

    def close(self) -> None:
        """Take the region away for good and give the streams back."""
        with self._lock:
            self._erase()
            self._closed = True
            self._stop.set()
            self._wake.set()
        for name, stream, proxy in self._replaced:
            if getattr(sys, name) is proxy:
                setattr(sys, name, stream)
            proxy.release()
        self._replaced.clear()

    def write(self, text: str) -> None:
        """Write whole lines of the library's own above the region."""
        with self._lock:
            if self._open_line:
                # A line that redraws itself gives way and comes back; any other is ended first.
                text = ("\r\x1b[K" if "\r" in self._open_line else "\n") + text
                self._open_line = ""
            erase = self._erasure()
            self._height = 0
            self._raw(erase + text + ("" if self._closed else self._drawing()))

    def from_program(self, stream: TextIO, text: str) -> None:
        """Write what the program itself prints."""
        if not text:
            return
        with self._lock:
            self._erase()
            try:
                stream.write(text)
            finally:
                _, newline, rest = text.rpartition("\n")
                self._open_line = rest[-256:] if newline else (self._open_line + text)[-256:]
                if not self._closed and not self._open_line:
                    self._raw(self._drawing())

    def refresh(self) -> bool:
        """Draw anew; False when there is nothing to show, nor will be soon."""
        with self._lock:
            if self._closed:
                return False
            renderable = self._render()
            if renderable is None:
                self._frame = []
                self._erase()
                return self._busy()
            width = max(10, self._console.width - 1)
            with self._console.capture() as captured:
                self._console.print(renderable, width=width, no_wrap=True, overflow="ellipsis", crop=True)
            self._frame = captured.get().splitlines()[: max(1, self._console.height - 2)]
            if not self._open_line:
                start = "\r" + self._up() if self._height else ""
                self._raw(start + self._drawing())
            return True

    def _refresh(self) -> None:
        while not self._closed:
            self._wake.wait()
            self._wake.clear()
            while True:
                with self._lock:
                    if not self.refresh():
                        self._drawing_now = False
                        break
                self._stop.wait(REFRESH_SECONDS)

    def _up(self) -> str:
        return f"\x1b[{self._height - 1}A" if self._height > 1 else ""

    def _drawing(self) -> str:
        """Return the last frame from the cursor on; what stood there before is written over."""
        self._height = len(self._frame)
        return "\x1b[K\n".join(self._frame) + "\x1b[J" if self._frame else ""

    def _erasure(self) -> str:
        return f"\r{self._up()}\x1b[J" if self._height else ""

    def _erase(self) -> None:
        if self._height:
            self._raw(self._erasure())
            self._height = 0

    def _raw(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            # The terminal has gone: the run itself goes on.
            self._closed = True


class ProgramStream:
    """``sys.stdout`` or ``sys.stderr`` as the program sees it: everything but writing is the real one's.

    As a terminal's stream does, it holds an open line back until ``flush`` or the line's end, so that the
    pieces of one ``print`` stay together.
    """

    def __init__(self, stream: TextIO, region: LiveRegion, lock: threading.RLock) -> None:
        self._stream = stream
        self._region = region
        self._lock = lock
        self._held = ""
        self._pid = os.getpid()

    def __getattr__(self, name: str) -> Any:
        # Whoever asks for the buffer or the descriptor writes by itself: after what is held.
        self.release()
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write past the region."""
        if os.getpid() != self._pid:
            # A forked child only writes: whoever held the lock is not there.
            return self._stream.write(text)
        with self._lock:
            self._held += text
            whole, newline, rest = self._held.rpartition("\n")
            if newline:
                self._held = rest
                self._region.from_program(self._stream, whole + newline)
            if len(self._held) > _HELD_CHARACTERS:
                self.release()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several strings past the region."""
        self.write("".join(lines))

    def release(self) -> None:
        """Write what is held back of an open line."""
        if os.getpid() == self._pid:
            with self._lock:
                held, self._held = self._held, ""
                if held:
                    self._region.from_program(self._stream, held)

    def flush(self) -> None:
        """Write what is held back, and flush the real stream."""
        self.release()
        self._stream.flush()

    def __iter__(self) -> Any:
        return iter(self._stream)

    def __enter__(self) -> ProgramStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
