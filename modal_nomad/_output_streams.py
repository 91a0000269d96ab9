"""The program's own streams while a run shows its output there too: lines of both stay whole."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TextIO

_HELD_CHARACTERS = 8192


class Beside(Protocol):
    """What else writes to the same streams."""

    def from_program(self, stream: TextIO, text: str) -> None:
        """Write what the program itself prints."""


def take_over(
    beside: Beside, lock: threading.RLock, wanted: Callable[[TextIO], bool] = lambda stream: True
) -> Callable[[], None]:
    """Route ``sys.stdout`` and ``sys.stderr`` past another writer; the function returned gives them back."""
    replaced: list[tuple[str, TextIO, ProgramStream]] = []
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and wanted(stream):
            proxy = ProgramStream(stream, beside, lock)
            replaced.append((name, stream, proxy))
            setattr(sys, name, proxy)

    def give_back() -> None:
        for name, stream, proxy in replaced:
            if getattr(sys, name) is proxy:
                setattr(sys, name, stream)
            proxy.step_aside()

    return give_back


class ProgramStream:
    """``sys.stdout`` or ``sys.stderr`` as the program sees it: everything but writing is the real one's.

    It holds an open line back until ``flush`` or the line's end, so that the pieces of one ``print`` stay
    together; not where the user asked for unbuffered output, to a pipe or a file.
    """

    def __init__(self, stream: TextIO, beside: Beside, lock: threading.RLock) -> None:
        self._stream = stream
        self._beside = beside
        self._lock = lock
        self._held = ""
        self._pid = os.getpid()
        self._aside = False
        self._at_once = bool(getattr(stream, "write_through", False)) and not stream.isatty()

    def __getattr__(self, name: str) -> Any:
        # Whoever asks for the buffer or the descriptor writes by itself: after what is held.
        self.release()
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write whole lines, and keep the rest."""
        if self._aside or os.getpid() != self._pid:
            # A forked child only writes: whoever held the lock is not there.
            return self._stream.write(text)
        with self._lock:
            self._held += text
            whole, newline, rest = self._held.rpartition("\n")
            if newline:
                self._held = rest
                self._beside.from_program(self._stream, whole + newline)
            if self._at_once or len(self._held) > _HELD_CHARACTERS:
                self.release()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several strings."""
        self.write("".join(lines))

    def release(self) -> None:
        """Write what is held back of an open line."""
        if os.getpid() == self._pid:
            with self._lock:
                held, self._held = self._held, ""
                if held:
                    self._beside.from_program(self._stream, held)

    def step_aside(self) -> None:
        """Pass everything through: nobody else writes any more, but a logging handler may have kept this."""
        self.release()
        self._aside = True

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
