"""A command on a terminal of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from typing import Any

from conftest import Live, until

from tests._screen import Screen


class Terminal:
    """Runs ``modal-nomad`` on a pseudo-terminal and keeps all that it writes.

    Args:
        live: where it runs.
        words: the command line.
        width: the terminal's columns.
        options: further arguments of ``Popen``.
    """

    def __init__(self, live: Live, *words: str, width: int = 120, **options: Any) -> None:
        self._width = width
        self._written = b""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
        streams: dict[str, Any] = {"stdin": slave, "stdout": slave, "stderr": slave, **options}
        environment = {"TERM": "xterm-256color", **os.environ, **streams.pop("env", {})}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "modal_nomad", *words],
            cwd=live.folder,
            env=environment,
            # The terminal is the process's own, so that a typed Ctrl-C reaches it as the signal it is.
            preexec_fn=_own_terminal,
            **streams,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self._master, 65536):
                self._written += data

    @property
    def text(self) -> str:
        """All that was written, control sequences included."""
        return self._written.decode()

    def lines(self) -> list[str]:
        """What is to be seen."""
        screen = Screen(self._width)
        screen.feed(self.text)
        return screen.lines()

    def wait_for(self, words: str) -> None:
        """Wait until something was written."""
        until(lambda: words in self.text or self.process.poll() is not None, what=repr(words))
        assert words in self.text, self.text

    def press(self, key: str) -> None:
        """Type a key."""
        os.write(self._master, key.encode())

    def end(self) -> int:
        """Wait for the end and return the exit code."""
        try:
            code = self.process.wait(100)
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join(100)
            os.close(self._master)
        return code


def _own_terminal() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
