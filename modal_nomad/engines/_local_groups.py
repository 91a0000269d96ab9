"""Control groups of this machine: they hold all processes of a container together to its limits.

Version 2 and version 1 alike, where this process may make some: as root, or below what systemd gives to a
user's own services.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from modal_nomad.wire.cgroups import UNIFIED, folder, groups, limit_cpus, mounts
from modal_nomad.wire.over_use import killed

_ENDS_WITHIN = 5.0
_LOOK_EVERY = 0.02


@dataclass(frozen=True)
class Group:
    """The groups of one container: ``memory`` and ``cpu`` are directories, the same one in version 2.

    Attributes:
        memory: where its use of memory is held; empty where that is not limited.
        cpu: where its use of processors is held; empty where that is not limited.
    """

    memory: str = ""
    cpu: str = ""

    @property
    def doors(self) -> tuple[str, ...]:
        """The files by which a process enters, when it writes ``0`` to each."""
        return tuple(f"{directory}/cgroup.procs" for directory in self.directories)

    @property
    def directories(self) -> tuple[str, ...]:
        """All that there is of it."""
        return tuple(dict.fromkeys(x for x in (self.memory, self.cpu) if x))

    @property
    def killed(self) -> int:
        """How many of its processes the kernel has ended for the memory that they used together."""
        return killed(self.memory)


class ControlGroups:
    """Makes groups below one of this process's own, or of an ancestor of it.

    Args:
        name: of the directory that all of them are in.
        marker: a file that says where that is, for whoever comes after this process.
    """

    def __init__(self, name: str, marker: pathlib.Path) -> None:
        self._name = name
        self._marker = marker
        self._bases: tuple[str, str] | None = None
        self._left: set[str] = set()
        self.why_not = ""
        """Why there are none, in words, once that is known."""

    def make(self, name: str, memory: int | None, cpus: float) -> Group | None:
        """Make a container's groups; None where there are none to be had, or nothing is limited.

        Args:
            name: the container's.
            memory: bytes; None for no limit.
            cpus: processors, parts of one too; 0 for no limit.
        """
        if (not memory and not cpus) or not self._open():
            return None
        assert self._bases is not None
        self._sweep()
        in_memory, in_cpu = (f"{base}/{name}" for base in self._bases)
        group = Group(in_memory if memory else "", in_cpu if cpus else "")
        try:
            for directory in group.directories:
                os.makedirs(directory, exist_ok=True)
            if memory:
                _limit_memory(in_memory, memory)
            if cpus:
                limit_cpus(in_cpu, cpus)
        except OSError as exc:
            self.remove(group)
            self.why_not = f"{exc.strerror}: {exc.filename}"
            return None
        return group

    def remove(self, group: Group) -> None:
        """Take a container's groups away, now or when the last process has left them."""
        self._left.update(group.directories)
        self._sweep()

    def clear(self) -> None:
        """End whatever is left in any group, and take them all away; blocks for moments."""
        with contextlib.suppress(FileNotFoundError):
            until = time.monotonic() + _ENDS_WITHIN
            for base in self._marker.read_text().splitlines():
                while os.path.isdir(base) and not _emptied(base) and time.monotonic() < until:
                    time.sleep(_LOOK_EVERY)
            self._marker.unlink()
        self._left.clear()

    def _sweep(self) -> None:
        for directory in list(self._left):
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                pass
            except OSError:
                # A process of it has not ended yet, or a memory snapshot lives in it.
                continue
            self._left.discard(directory)

    def _open(self) -> bool:
        """Make the directory of all."""
        self._find()
        if self._bases is None:
            return False
        try:
            if not self._marker.exists():
                self._marker.write_text("".join(f"{base}\n" for base in dict.fromkeys(self._bases)))
            for base in self._bases:
                os.makedirs(base, exist_ok=True)
        except OSError as exc:
            self.why_not = f"{exc.strerror}: {exc.filename}"
            return False
        return True

    def _find(self) -> None:
        if self._bases is not None or self.why_not:
            return
        try:
            own, places = groups("self"), mounts()
        except OSError:
            self.why_not = "this system has none"
            return
        self._bases = self._first_version(own, places) or self._second_version(own, places)
        if self._bases is not None:
            self.why_not = ""
        elif not self.why_not:
            self.why_not = "this system limits nothing by them"

    def _first_version(
        self, own: dict[str, str], places: dict[str, tuple[str, str]]
    ) -> tuple[str, str] | None:
        found = []
        for controller in ("memory", "cpu"):
            names = [x for x in own if controller in x.split(",") and x in places]
            if not names:
                return None
            parent = folder(places[names[0]], own[names[0]])
            if not os.access(parent, os.W_OK):
                self.why_not = f"this process may make none in {parent}"
                return None
            found.append(f"{parent}/{self._name}")
        return found[0], found[1]

    def _second_version(
        self, own: dict[str, str], places: dict[str, tuple[str, str]]
    ) -> tuple[str, str] | None:
        if UNIFIED not in own or UNIFIED not in places:
            return None
        top = os.path.normpath(places[UNIFIED][0])
        parent = os.path.normpath(folder(places[UNIFIED], own[UNIFIED]))
        while parent.startswith(top):
            base = f"{parent}/{self._name}"
            if _gives(parent) and _delegated(base):
                return base, base
            if parent == top:
                break
            # A group that has processes, as this one's own has, gives nothing to groups below it.
            parent = os.path.dirname(parent)
        self.why_not = f"this process may make none that holds memory and processors in {top}"
        return None


def _gives(parent: str) -> bool:
    """Say whether groups below one have the controllers, and have it so where that may be done."""
    needed = {"memory", "cpu"}
    try:
        missing = needed - set(_text(f"{parent}/cgroup.subtree_control").split())
        if missing:
            _write(f"{parent}/cgroup.subtree_control", " ".join(f"+{x}" for x in sorted(missing)))
    except OSError:
        return False
    return True


def _delegated(base: str) -> bool:
    try:
        os.makedirs(base, exist_ok=True)
    except OSError:
        return False
    if _gives(base):
        return True
    with contextlib.suppress(OSError):
        os.rmdir(base)
    return False


def _limit_memory(directory: str, limit: int) -> None:
    if os.path.exists(f"{directory}/memory.max"):
        _write(f"{directory}/memory.max", str(limit))
        # Who swaps is slow for as long as it lives, where who is ended is told of. All end together.
        for name, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
            with contextlib.suppress(OSError):
                _write(f"{directory}/{name}", value)
        return
    _write(f"{directory}/memory.limit_in_bytes", str(limit))
    with contextlib.suppress(OSError):
        _write(f"{directory}/memory.memsw.limit_in_bytes", str(limit))


def _emptied(base: str) -> bool:
    """End what is in the groups below one, and remove all; True when that is done."""
    for directory in (*_below(base), base):
        with contextlib.suppress(OSError, ValueError):
            for pid in _lines(f"{directory}/cgroup.procs"):
                if int(pid) != os.getpid():
                    os.kill(int(pid), signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.rmdir(directory)
    return not os.path.isdir(base)


def _below(base: str) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for entry in os.scandir(base):
            if entry.is_dir():
                yield entry.path


def _text(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


def _lines(path: str) -> Sequence[str]:
    return _text(path).splitlines()


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
