"""Whether this container uses more than its limits, where its engine cannot see it: on Nomad.

What the kernel has ended for memory is looked at when an input fails, since it may have failed of that, and
now and then. Files are counted about once a second.
"""

import os
import sys
import threading
import time
from contextlib import suppress
from typing import Callable, List, Mapping, Tuple

from ..wire.over_use import DISK, VOLUMES, disk_use, killed, memory_limit, out_of_disk, out_of_memory_together
from ._cgroups import is_hidden, own_group

_DISK_INTERVAL = 1.0
_SPARE = 20
"""Looking at many files takes its time: so many times as long nobody looks."""


class OverUse:
    """Looks at this container, from when its own code has been loaded.

    Args:
        environ: the process's environment.
        over: is told of what there is too much use (``memory`` or ``disk``), and that in words. It ends the
            process.
    """

    def __init__(self, environ: Mapping[str, str], over: Callable[[str, str], None]) -> None:
        self._over = over
        group = own_group("memory", environ)
        self._limit = memory_limit(group) if group else 0
        self._group = group if self._limit else ""
        # Of a group that the container is in as one of several, as forks of a memory snapshot may be.
        self._before = killed(self._group) if self._group else 0
        self._hidden = not group and is_hidden("memory", environ)
        self._on_node = _killed_on_node() if self._hidden else 0
        self._disk = int(environ.get(DISK) or 0) << 20
        if self._disk:
            self._since = time.time()
            self._tops, self._left_out = _own_files(environ)
            threading.Thread(target=self._watch, name="modal-watch", daemon=True).start()

    def look(self) -> None:
        """Tell of a process that the kernel has ended for memory since this container began."""
        if self._group and killed(self._group) > self._before:
            self._over("memory", out_of_memory_together(self._limit))
        elif self._hidden:
            on_node = _killed_on_node()
            if on_node != self._on_node:
                self._on_node = on_node
                count, limit = _ask_hidden_group()
                if count:
                    self._over("memory", out_of_memory_together(limit))

    def _watch(self) -> None:
        from ._capture import leave_signals_to_main

        leave_signals_to_main()
        while True:
            began = time.monotonic()
            used = disk_use(self._tops, self._left_out, self._since)
            if used > self._disk:
                self._over("disk", out_of_disk(used, self._disk))
            time.sleep(max(_DISK_INTERVAL, _SPARE * (time.monotonic() - began)))


def _killed_on_node() -> int:
    """Return how many processes the kernel has ended for memory on all of this node, whose ever they were."""
    with suppress(OSError, ValueError), open("/proc/vmstat") as file:
        for line in file:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _ask_hidden_group() -> Tuple[int, int]:
    """Have a process of namespaces of its own say how many were ended here, and what the limit is."""
    # Here, for few containers ever ask.
    import subprocess

    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_hidden_group.py")
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        done = subprocess.run(
            [sys.executable, "-I", "-S", program],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=30,
        )
        count, limit = done.stdout.split()
        return int(count), int(limit)
    return 0, 0


def _own_files(environ: Mapping[str, str]) -> Tuple[List[str], List[str]]:
    """Return the directories that a task has for itself, and what of them is not its own use."""
    tops, left_out = [], []
    local, shared = environ.get("NOMAD_TASK_DIR", ""), environ.get("NOMAD_ALLOC_DIR", "")
    if local:
        # The task's own directory; where it sees no other, all that it sees.
        tops += [os.path.dirname(local), local]
    if shared:
        tops.append(shared)
        left_out.append(os.path.join(shared, VOLUMES))
    return tops, left_out
