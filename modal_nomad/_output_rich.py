"""The display for a terminal: a live line per Function at work, logs and the program's prints above it."""

from __future__ import annotations

import re
import sys
import time
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from modal_nomad._output import CallProgress, OutputManager, _last_state
from modal_nomad._output_live import LiveRegion

SHOW_AFTER_SECONDS = 0.3
"""Calls that are over sooner leave the terminal alone."""
_TAIL_LINES = 4
# Everything a container may write that moves the cursor; colours stay.
_MOVES = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-ln-z]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[^\[\]])")


class RichOutput(OutputManager):
    """Progress with rich, on the terminal that ``sys.stdout`` is.

    Args:
        console: renders the display; by default one for ``sys.stdout``.
        out: the terminal; by default ``sys.stdout``.
        err: where the containers' stderr goes, when that is no terminal.
    """

    def __init__(
        self, console: Console | None = None, out: TextIO | None = None, err: TextIO | None = None
    ) -> None:
        super().__init__(out or sys.stdout, err or sys.stderr)
        self._console = console or Console(file=self._out, highlight=False)
        self._region = LiveRegion(self._out, self._console, self._live, self._busy, self._lock)
        self._calls: list[CallProgress] = []
        self._starting: dict[str, set[str]] = {}
        self._running: dict[str, set[str]] = {}
        self._reasons: dict[str, str] = {}
        self._spinner = Spinner("dots", style="cyan")
        self._region.take_over()

    def created(self, kind: str, name: str) -> None:
        """Tick an object off."""
        self._print(Text.assemble(("✓ ", "green"), f"Created {kind} ", (name, "bold"), "."))

    def begin(self, function_name: str, total: int | None, *, one: bool = False) -> CallProgress:
        """Show a call at work until its ``end``."""
        call = super().begin(function_name, total, one=one)
        with self._lock:
            self._calls.append(call)
        self._region.start()
        return call

    def ended(self, call: CallProgress) -> None:
        """Take a call off the display; what took a while leaves a line behind."""
        with self._lock:
            self._calls.remove(call)
            self._region.refresh()
            seconds = time.monotonic() - call.started
            if not call.one and call.is_complete and seconds >= SHOW_AFTER_SECONDS:
                name = (call.function_name, "bold")
                words = f": {_count(call.done)} inputs done in {_seconds(seconds)}."
                self._print(Text.assemble(("✓ ", "green"), name, words))

    def container_event(self, kind: str, function_name: str, container_id: str, reason: str) -> None:
        """Count a Function's containers, and keep the reason why one waits beside its bar."""
        with self._lock:
            starting = self._starting.setdefault(function_name, set())
            running = self._running.setdefault(function_name, set())
            starting.discard(container_id)
            if kind == "starting":
                starting.add(container_id)
            elif kind == "ready":
                running.add(container_id)
                self._reasons.pop(function_name, None)
            elif kind == "pending":
                starting.add(container_id)
                self._reasons[function_name] = reason
            elif kind == "ended":
                running.discard(container_id)
                if reason:
                    self._print(Text(f"{function_name}: container ended: {reason}", "yellow"))
            if not starting:
                self._reasons.pop(function_name, None)

    def finished(self) -> None:
        """Take the live part down, after the last log line."""
        super().finished()
        with self._lock:
            self._calls.clear()
            self._region.refresh()

    def close(self) -> None:
        """Give the terminal back."""
        super().close()
        self._region.close()

    def _busy(self) -> bool:
        return bool(self._calls)

    def _live(self) -> RenderableType | None:
        now = time.monotonic()
        rows: dict[str, list[CallProgress]] = {}
        for call in self._calls:
            if now - call.started >= SHOW_AFTER_SECONDS:
                rows.setdefault(call.function_name, []).append(call)
        if not rows:
            return None
        table = Table.grid(padding=(0, 1, 0, 0))
        wide = self._console.width >= 70
        for _ in range(6 if wide else 5):
            table.add_column(no_wrap=True, overflow="ellipsis")
        for name, calls in rows.items():
            cells: list[RenderableType] = [self._spinner.render(time.monotonic()), Text(name, "bold")]
            if wide:
                cells.append(_bar(calls))
            cells += [_progress(calls), Text(_seconds(now - min(c.started for c in calls)), "dim")]
            table.add_row(*cells, self._state(name))
        return Group(table, *self._open_lines())

    def _open_lines(self) -> list[Text]:
        """Return what containers have written without ending the line: bars that redraw themselves."""
        shown = []
        for (container, _), text in self._partial.items():
            if line := _last_state(_MOVES.sub("", text)):
                shown.append(Text.assemble(self._prefix(self._names.get(container, "")), line, style="dim"))
        return shown[-_TAIL_LINES:]

    def _state(self, function_name: str) -> Text:
        running = len(self._running.get(function_name, ()))
        starting = len(self._starting.get(function_name, ()))
        words = [f"{running} container{'s' * (running > 1)}"] if running else []
        if starting:
            words.append(f"{starting} starting" if running else f"starting {_containers(starting)}")
        state = Text(", ".join(words), "dim")
        if reason := self._reasons.get(function_name):
            state = Text(reason, "yellow") if not running else state.append(f" ({reason})", "yellow")
        return state

    def _write_lines(self, function_name: str, stream: int, lines: list[str]) -> None:
        if stream == 2 and not self._err.isatty():
            super()._write_lines(function_name, stream, lines)
            return
        colours = self._console.color_system is not None and not self._console.no_color
        prefix = self._prefix(function_name)
        if colours and prefix:
            prefix = f"\x1b[{'33' if stream == 2 else '36'}m{prefix}\x1b[0m"
        shown = []
        for line in lines:
            if "\x1b" in line:
                line = _MOVES.sub("", line) + "\x1b[0m"
            shown.append(f"{prefix}{line}\n")
        self._region.write("".join(shown))

    def _progress_line(self, text: str) -> None:
        self._print(Text(text))

    def _print(self, text: Text) -> None:
        with self._lock, self._console.capture() as captured:
            self._console.print(text, soft_wrap=True)
        self._region.write(captured.get())


def _bar(calls: list[CallProgress]) -> RenderableType:
    if all(call.one for call in calls):
        return Text("")
    total = _total(calls)
    done = sum(call.done for call in calls)
    if total is None:
        # How far it is cannot be said while inputs are still drawn from an iterator.
        return ProgressBar(total=None, pulse=True, width=24, animation_time=time.monotonic())
    return ProgressBar(total=max(total, 1), completed=done, width=24)


def _progress(calls: list[CallProgress]) -> Text:
    done, total = sum(call.done for call in calls), _total(calls)
    if all(call.one for call in calls):
        return Text("" if len(calls) == 1 else f"{len(calls)} calls")
    return Text(f"{_count(done)} done" if total is None else f"{_count(done)}/{_count(total)}")


def _total(calls: list[CallProgress]) -> int | None:
    total = 0
    for call in calls:
        if call.total is None:
            return None
        total += call.total
    return total


def _containers(count: int) -> str:
    return "a container" if count == 1 else f"{count} containers"


def _count(number: int) -> str:
    return f"{number:,}"


def _seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
