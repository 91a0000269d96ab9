"""A live region at the foot of the terminal, and the program's own streams kept whole beside it.

The region is drawn under everything else and taken away before anything is written, in one write each, so
nothing flickers and nothing is left behind. The program's own ``print`` passes through byte for byte; while
it has a line open (a prompt, a ``tqdm`` bar) the terminal is its alone and the region waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TextIO

from rich.console import Console, RenderableType

from modal_nomad._output_streams import take_over

REFRESH_SECONDS = 0.1


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
        self._give_back: Callable[[], None] | None = None

    def take_over(self) -> None:
        """Route ``sys.stdout`` and ``sys.stderr`` past the region, where they are terminals."""
        self._give_back = take_over(self, self._lock, lambda stream: stream.isatty())

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
        if self._give_back is not None:
            self._give_back()
            self._give_back = None

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
