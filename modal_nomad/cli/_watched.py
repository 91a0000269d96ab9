"""Files whose changes are waited for: those of a program, and what its containers are to have."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from types import MappingProxyType

_LOOK_MILLISECONDS = 2000
_STEP_MILLISECONDS = 50
_PASSING = ("~", ".swp", ".swx", ".tmp", ".pyc")

State = dict[str, tuple[int, ...] | tuple[str, ...] | None]


class Watched:
    """Some files, as they were when last looked at.

    The system's word that something changed only wakes: what changed is told by comparison, so nothing is
    missed between two times of waiting, nor where the system says nothing (files on another machine).

    Args:
        sources: files of a program.
        contents: files besides; of their folders the lists are compared, too, for what is added there.
        read: sources as they were when they were read: what changed since is told as well.
        source_folders: look for added Python files beside the sources as well.
    """

    def __init__(
        self,
        sources: Iterable[str],
        contents: Iterable[str] = (),
        read: Mapping[str, tuple[int, ...] | None] = MappingProxyType({}),
        *,
        source_folders: bool = False,
    ) -> None:
        self._files = {*sources, *read, *contents}
        self._lists = {os.path.dirname(x) for x in contents}
        self._program_lists = {os.path.dirname(x) for x in (*sources, *read)} if source_folders else set()
        self._state = {**self._look(), **read}

    def changed(self) -> list[str]:
        """Return what changed since this was last asked."""
        before, self._state = self._state, self._look()
        return sorted(x for x in before if before[x] != self._state[x])

    def wait(self, seconds: float | None = None) -> list[str]:
        """Wait for a change and return what changed; nothing when ``seconds`` pass without one.

        Raises:
            KeyboardInterrupt: Ctrl-C.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        found = self.changed()
        if found:
            return found
        for _ in self._wakes(deadline):
            found = self.changed()
            if found:
                return found
        return []

    def _wakes(self, deadline: float | None) -> Iterator[None]:
        from watchfiles import watch

        folders = {os.path.dirname(x) for x in self._files} | self._lists | self._program_lists
        there = [x for x in folders if os.path.isdir(x)]
        while deadline is None or time.monotonic() < deadline:
            look = _LOOK_MILLISECONDS
            if deadline is not None:
                look = max(1, min(look, int((deadline - time.monotonic()) * 1000)))
            with closing(
                watch(
                    *there,
                    watch_filter=None,
                    step=_STEP_MILLISECONDS,
                    rust_timeout=look,
                    yield_on_timeout=True,
                    recursive=False,
                    ignore_permission_denied=True,
                )
            ) as changes:
                for _ in changes:
                    yield
                    if deadline is not None:
                        break

    def _look(self) -> State:
        state: State = {file: stamp(file) for file in self._files}
        for folder in self._lists:
            state[f"{folder}{os.sep}"] = _names(folder, "")
        for folder in self._program_lists - self._lists:
            state[f"{folder}{os.sep}"] = _names(folder, ".py")
        return state


def stamp(file: str) -> tuple[int, ...] | None:
    """Return what changes when a file does; None where there is none."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _names(folder: str, ending: str) -> tuple[str, ...] | None:
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    return tuple(
        sorted(
            x
            for x in names
            if x.endswith(ending) and not x.startswith((".", "__pycache__")) and not x.endswith(_PASSING)
        )
    )


def shown(files: Iterable[str]) -> str:
    """Return names for a line on the terminal, at most three of them."""
    every = [os.path.relpath(x) if Path.cwd() in Path(x).parents else x for x in files]
    more = f" and {len(every) - 3} more" if len(every) > 3 else ""
    return ", ".join(every[:3]) + more
