"""What a run shows on the terminal: progress, and the containers' logs as they come.

The SDK only tells what happens (``created``, ``attach``, ``input_progress``, ``finished``) to the manager
that ``enable_output`` made current; without one it is silent.
"""

from __future__ import annotations

import codecs
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from modal_nomad.client import Client


class _Active:
    """The manager in force. A terminal belongs to the process, so this does too, whatever the thread."""

    def __init__(self) -> None:
        self.manager: OutputManager | None = None


_active = _Active()


def current() -> OutputManager | None:
    """Return the manager in force, or None when output was not asked for."""
    return _active.manager


@contextmanager
def enable_output(show_progress: bool = True) -> Iterator[None]:
    """Show progress and container logs of the Apps that run inside this context.

    Args:
        show_progress: False shows the logs alone.
    """
    before = _active.manager
    manager = _make_manager(show_progress)
    _active.manager = manager
    try:
        yield
    finally:
        _active.manager = before
        manager.finished()


def _make_manager(show_progress: bool) -> OutputManager:
    if show_progress and sys.stdout.isatty():
        from modal_nomad._output_rich import RichOutput

        return RichOutput()
    return OutputManager(sys.stdout, sys.stderr, show_progress)


class OutputManager:
    """Plain lines, for a pipe, a file and CI. Events arrive on the library's thread, so all of it locks.

    Args:
        out: where progress and the containers' stdout go.
        err: where the containers' stderr goes.
        show_progress: False leaves only the logs.
    """

    def __init__(self, out: TextIO, err: TextIO, show_progress: bool = True) -> None:
        self._out, self._err = out, err
        self._show_progress = show_progress
        self._lock = threading.RLock()
        self._attached: list[tuple[Client, str]] = []
        self._functions: set[str] = set()
        self._partial: dict[tuple[str, int], str] = {}
        self._decoders: dict[tuple[str, int], codecs.IncrementalDecoder] = {}
        self._names: dict[str, str] = {}
        self._pending_said: dict[str, str] = {}

    def created(self, kind: str, name: str) -> None:
        """Say that an object is ready: ``created("function", "square")``."""
        if kind == "function":
            with self._lock:
                self._functions.add(name)
        self._progress_line(f"Created {kind} {name}.")

    def attach(self, client: Client, app_id: str) -> None:
        """Stream an App's logs and container events from here on."""
        from modal_nomad._bridge import submit

        with self._lock:
            self._attached.append((client, app_id))
        client._subscribe(app_id, self.on_event)
        # From the beginning: what a container said before this request arrives is not lost.
        request = {"app_id": app_id, "logs": True, "backlog": True}
        submit(client._request("app.subscribe", request))

    def input_progress(self, function_name: str, done: int, total: int | None) -> None:
        """Say how far a call over many inputs is; ``total`` is None while inputs are still read."""
        if total is not None and done == total:
            self._progress_line(f"{function_name}: {done} of {total} inputs done.")

    def finished(self) -> None:
        """End the display: detach from every App, write what was left without an end of line."""
        with self._lock:
            attached, self._attached = self._attached, []
            leftovers, self._partial = self._partial, {}
        for client, app_id in attached:
            client._unsubscribe(app_id, self.on_event)
        for (container, stream), text in leftovers.items():
            if text:
                self._log_line(self._names.get(container, ""), stream, text)

    def on_event(self, event: dict[str, Any], payload: bytes) -> None:
        """Take one event of an App; called on the library's thread."""
        if event.get("t") == "log":
            self._on_log(str(event.get("k", "")), str(event.get("f", "")), int(event.get("s", 1)), payload)
        elif event.get("t") == "ev":
            kind, name = str(event.get("e", "")), str(event.get("f", ""))
            self.container_event(kind, name, str(event.get("k", "")), str(event.get("r") or ""))

    def container_event(self, kind: str, function_name: str, container_id: str, reason: str) -> None:
        """Say that a container starts, is ready, waits for a place (and why), or ended."""
        if kind == "pending":
            with self._lock:
                repeated = self._pending_said.get(function_name) == reason
                self._pending_said[function_name] = reason
            if not repeated:
                self._progress_line(f"{function_name}: waiting for a container: {reason}")
        elif kind == "ready":
            with self._lock:
                self._pending_said.pop(function_name, None)
        elif kind == "ended" and reason:
            self._progress_line(f"{function_name}: container ended: {reason}")

    def _on_log(self, container: str, function_name: str, stream: int, payload: bytes) -> None:
        with self._lock:
            key = (container, stream)
            self._functions.add(function_name)
            self._names[container] = function_name
            decoder = self._decoders.get(key)
            if decoder is None:
                # One for each stream: a character may be cut in two by the chunks.
                decoder = self._decoders[key] = codecs.getincrementaldecoder("utf-8")("replace")
            *lines, rest = (self._partial.get(key, "") + decoder.decode(payload)).split("\n")
            self._partial[key] = rest
            for line in lines:
                self._log_line(function_name, stream, line)

    def _prefix(self, function_name: str) -> str:
        return f"{function_name} | " if len(self._functions) > 1 and function_name else ""

    def _log_line(self, function_name: str, stream: int, line: str) -> None:
        self._write(self._err if stream == 2 else self._out, self._prefix(function_name) + line)

    def _progress_line(self, text: str) -> None:
        if self._show_progress:
            self._write(self._out, text)

    def _write(self, stream: TextIO, line: str) -> None:
        with self._lock:
            try:
                stream.write(line + "\n")
                stream.flush()
            except (BrokenPipeError, ValueError):
                # The reader has gone (`| head`) or the stream was closed: the run itself goes on.
                return
