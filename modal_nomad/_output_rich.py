"""The display for a terminal: a live line per Function, logs above it."""

from __future__ import annotations

import sys
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.text import Text

from modal_nomad._output import OutputManager


class RichOutput(OutputManager):
    """Progress with rich. Its live part appears with the first thing that takes time."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(sys.stdout, sys.stderr)
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._starting: dict[str, set[str]] = {}
        self._running: dict[str, set[str]] = {}
        self._reasons: dict[str, str] = {}

    def created(self, kind: str, name: str) -> None:
        """Tick an object off."""
        with self._lock:
            if kind == "function":
                self._functions.add(name)
            self._console.print(Text.assemble(("✓ ", "green"), f"Created {kind} ", (name, "bold"), "."))

    def input_progress(self, function_name: str, done: int, total: int | None) -> None:
        """Move a Function's bar."""
        with self._lock:
            task = self._task(function_name)
            assert self._progress is not None
            self._progress.update(task, completed=done, total=total)

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
                    self._console.print(Text(f"{function_name}: container ended: {reason}", "yellow"))
            if self._attached and function_name:
                task = self._task(function_name)
                assert self._progress is not None
                self._progress.update(task, state=self._state(function_name))

    def finished(self) -> None:
        """Take the live part down, after the last log line."""
        super().finished()
        with self._lock:
            if self._progress is not None:
                self._progress.stop()
                self._progress = None
                self._tasks.clear()

    def _state(self, function_name: str) -> str:
        words = []
        if count := len(self._running.get(function_name, ())):
            words.append(f"{count} running")
        if count := len(self._starting.get(function_name, ())):
            words.append(f"{count} starting")
        text = ", ".join(words)
        reason = self._reasons.get(function_name)
        return f"{text} (waiting: {reason})" if reason else text

    def _task(self, function_name: str) -> TaskID:
        if self._progress is None:
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                Elapsed(),
                TextColumn("{task.fields[state]}", style="dim", markup=False),
                console=self._console,
                transient=True,
                # The user's own print() stays theirs; rich moves the bar out of its way.
                redirect_stdout=True,
                redirect_stderr=True,
            )
            self._progress.start()
        task = self._tasks.get(function_name)
        if task is None:
            task = self._tasks[function_name] = self._progress.add_task(function_name, total=None, state="")
        return task

    def _log_line(self, function_name: str, stream: int, line: str) -> None:
        # from_ansi: colours that the user's program prints stay, and nothing is read as rich's markup.
        text = Text.from_ansi(line, style="red" if stream == 2 else "")
        if prefix := self._prefix(function_name):
            text = Text.assemble((prefix, "cyan"), text)
        with self._lock:
            self._console.print(text)

    def _progress_line(self, text: str) -> None:
        with self._lock:
            self._console.print(Text(text))

    def _write(self, stream: TextIO, line: str) -> None:
        self._console.print(Text(line))
