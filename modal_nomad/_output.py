"""What a run shows on the terminal: progress, and the containers' logs as they come.

The SDK only tells what happens (``created``, ``attach``, ``begin``, ``finished``) to the manager that
``enable_output`` made current; without one it is silent.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import asyncio

    from modal_nomad.client import Client


_LONG_LINE = 1 << 16


class _Active:
    """The manager in force. A terminal belongs to the process, so this does too, whatever the thread."""

    def __init__(self) -> None:
        self.manager: OutputManager | None = None


_active = _Active()


def current() -> OutputManager | None:
    """Return the manager in force, or None when output was not asked for."""
    return _active.manager


def begin(function_name: str, total: int | None, *, one: bool = False) -> CallProgress | None:
    """Tell the manager in force that a call begins; None without one."""
    manager = _active.manager
    return None if manager is None else manager.begin(function_name, total, one=one)


@contextlib.contextmanager
def enable_output(show_progress: bool = True) -> Iterator[None]:
    """Show progress and container logs of the Apps that run inside this context.

    Args:
        show_progress: False shows the logs alone.

    Example:
        >>> with enable_output(), app.run():  # doctest: +ELLIPSIS
        ...     square.remote(3)
        Created function square...
        9
    """
    before = _active.manager
    manager = _make_manager(show_progress)
    _active.manager = manager
    try:
        yield
    finally:
        _active.manager = before
        manager.finished()
        manager.close()


def _make_manager(show_progress: bool) -> OutputManager:
    terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    # Inside another display, the outer one has the terminal.
    if show_progress and terminal and _active.manager is None:
        from modal_nomad._output_rich import RichOutput

        return RichOutput()
    manager = OutputManager(sys.stdout, sys.stderr, show_progress)
    manager.take_over()
    return manager


class CallProgress:
    """How far one call is; the caller's thread moves it.

    Attributes:
        function_name: the Function's.
        total: how many inputs there are, or None while that is not known.
        done: how many have an output.
        one: it is a call of a single input.
        started: when, by the monotonic clock.
    """

    __slots__ = ("_manager", "done", "function_name", "one", "started", "total")

    def __init__(self, manager: OutputManager, function_name: str, total: int | None, one: bool) -> None:
        self._manager = manager
        self.function_name, self.total, self.one = function_name, total, one
        self.done = 0
        self.started = time.monotonic()

    @property
    def is_complete(self) -> bool:
        """Whether every input has its output."""
        return self.done == self.total

    def end(self) -> None:
        """Say that the call is over, whatever became of it."""
        self._manager.ended(self)


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
        self._partial: dict[tuple[str, int], str] = {}
        self._decoders: dict[tuple[str, int], codecs.IncrementalDecoder] = {}
        self._names: dict[str, str] = {}
        # Containers that may still write something, by App.
        self._up: dict[str, set[str]] = {}
        self._quiet: dict[str, asyncio.Event] = {}
        self._pending_said: dict[str, str] = {}
        self._announced: set[str] = set()
        # Streams in which the program has begun a line.
        self._open: set[int] = set()
        self._give_back: Callable[[], None] | None = None

    def take_over(self) -> None:
        """See what the program prints, so that no line of another comes between the pieces of one."""
        from modal_nomad._output_streams import take_over

        self._give_back = take_over(self, self._lock)

    def from_program(self, stream: TextIO, text: str) -> None:
        """Write what the program itself prints."""
        if text:
            with self._lock:
                stream.write(text)
                (self._open.discard if text.endswith("\n") else self._open.add)(id(stream))

    def created(self, kind: str, name: str) -> None:
        """Say that an object is ready: ``created("function", "square")``."""
        self._progress_line(f"Created {kind} {name}.")

    def building(self, image_id: str) -> None:
        """Say that the build of an Image begins."""
        self._progress_line(f"Building image {image_id[:15]}")

    def build_output(self, text: str) -> None:
        """Show what the build of an Image says: whole lines."""
        if self._show_progress:
            self._write(self._out, text)

    def built_image(self, image_id: str, seconds: float) -> None:
        """Say that the build of an Image has ended."""
        self._progress_line(f"Built image {image_id[:15]} in {seconds:.2f} s")

    def served(self, name: str, url: str) -> None:
        """Say where a Function is served on the web."""
        self._progress_line(f"Created web function {name} => {url}")

    def attach(self, client: Client, app_id: str) -> None:
        """Stream an App's logs and container events from here on."""
        from modal_nomad._bridge import submit

        with self._lock:
            self._attached.append((client, app_id))
        client._subscribe(app_id, self.on_event)
        # From the beginning: what a container said before this request arrives is not lost.
        request = {"app_id": app_id, "logs": True, "backlog": True}
        submit(client._request("app.subscribe", request))

    def begin(self, function_name: str, total: int | None, *, one: bool = False) -> CallProgress:
        """Say that a call begins.

        Args:
            function_name: the Function's.
            total: how many inputs it has, or None where only its end will tell.
            one: it is a call of a single input, of which nothing but its result is said.
        """
        return CallProgress(self, function_name, total, one)

    def ended(self, call: CallProgress) -> None:
        """Take note of a call's end."""
        if call.is_complete and not call.one:
            self._progress_line(f"{call.function_name}: {call.done} of {call.total} inputs done.")

    async def drain(self, app_id: str, seconds: float) -> None:
        """Wait until no container of a stopped App can write any more; runs on the library's loop.

        Args:
            app_id: the App.
            seconds: how long at most.
        """
        import asyncio

        if self._up.get(app_id):
            self._quiet[app_id] = asyncio.Event()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._quiet[app_id].wait(), seconds)

    def finished(self) -> None:
        """Detach from every App, and write what was left without an end of line."""
        with self._lock:
            attached, self._attached = self._attached, []
        for client, app_id in attached:
            client._unsubscribe(app_id, self.on_event)
        for container in list(self._names):
            self._close_container(container)

    def close(self) -> None:
        """End the display, and give the program its streams back."""
        if self._give_back is not None:
            self._give_back()
            self._give_back = None

    def on_event(self, event: dict[str, Any], payload: bytes) -> None:
        """Take one event of an App; called on the library's thread."""
        if event.get("t") == "log":
            self._on_log(str(event.get("k", "")), str(event.get("f", "")), int(event.get("s", 1)), payload)
        elif event.get("t") == "ev":
            kind, name = str(event.get("e", "")), str(event.get("f", ""))
            container = str(event.get("k", ""))
            self.container_event(kind, name, container, str(event.get("r") or ""))
            app_id = str(event.get("a", ""))
            up = self._up.setdefault(app_id, set())
            if kind == "ready":
                up.add(container)
            elif kind == "ended":
                self._close_container(container)
                up.discard(container)
                if not up and app_id in self._quiet:
                    self._quiet[app_id].set()

    def container_event(self, kind: str, function_name: str, container_id: str, reason: str) -> None:
        """Say that a container starts, is ready, waits for a place (and why), or ended."""
        if kind == "pending":
            with self._lock:
                repeated = self._pending_said.get(function_name) == reason
                self._pending_said[function_name] = reason
            if not repeated:
                self._progress_line(f"{function_name}: waiting for a container: {reason}.")
        elif kind == "starting":
            with self._lock:
                first = function_name not in self._announced
                self._announced.add(function_name)
            if first:
                self._progress_line(f"{function_name}: starting a container.")
        elif kind == "ready":
            with self._lock:
                self._pending_said.pop(function_name, None)
        elif kind == "ended" and reason:
            self._progress_line(f"{function_name}: container ended: {reason}")

    def _on_log(self, container: str, function_name: str, stream: int, payload: bytes) -> None:
        with self._lock:
            key = (container, stream)
            self._names[container] = function_name
            decoder = self._decoders.get(key)
            if decoder is None:
                # One for each stream: a character may be cut in two by the chunks.
                decoder = self._decoders[key] = codecs.getincrementaldecoder("utf-8")("replace")
            *lines, rest = (self._partial.pop(key, "") + decoder.decode(payload)).split("\n")
            if rest:
                # A bar that redraws itself never ends its line; its last state is all that counts.
                self._partial[key] = rest if len(rest) < _LONG_LINE else _last_state(rest)
            if lines:
                self._write_lines(function_name, stream, [_last_state(line) for line in lines])

    def _close_container(self, container: str) -> None:
        with self._lock:
            name = self._names.pop(container, "")
            for stream in (1, 2):
                self._decoders.pop((container, stream), None)
                if text := self._partial.pop((container, stream), ""):
                    self._write_lines(name, stream, [_last_state(text)])

    def _prefix(self, function_name: str) -> str:
        return f"{function_name} | " if function_name else ""

    def _write_lines(self, function_name: str, stream: int, lines: list[str]) -> None:
        prefix = self._prefix(function_name)
        text = "".join(f"{prefix}{line}\n" for line in lines)
        self._write(self._err if stream == 2 else self._out, text)

    def _progress_line(self, text: str) -> None:
        if self._show_progress:
            self._write(self._out, text + "\n")

    def _write(self, stream: TextIO, text: str) -> None:
        with self._lock:
            if id(stream) in self._open:
                self._open.discard(id(stream))
                text = "\n" + text
            try:
                stream.write(text)
                stream.flush()
            except (BrokenPipeError, ValueError):
                # The reader has gone (`| head`) or the stream was closed: the run itself goes on.
                return


def _last_state(line: str) -> str:
    """Return what stands on a terminal after a line with carriage returns in it."""
    return line.rstrip("\r").rpartition("\r")[2]
