"""Where Linux has the control groups of a process, for engines that make some and workers that join."""

import os
from contextlib import suppress
from typing import Dict, List, Set, Tuple

ROOT = "/proc"
UNIFIED = ""
"""What the hierarchy of version 2 is called, whose controllers are not in its name."""
_PERIOD = 100_000
"""Microseconds in which a share of the processors is used up."""
_LEAST_QUOTA = 1_000


def groups(pid: object) -> Dict[str, str]:
    """Return a process's group in each hierarchy, by the hierarchy's controllers (none: version 2)."""
    found = {}
    with open(f"{ROOT}/{pid}/cgroup") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            found[controllers] = path
    return found


def mounts() -> Dict[str, Tuple[str, str]]:
    """Return where each hierarchy is mounted, and which part of it."""
    found = {}
    with open(f"{ROOT}/self/mountinfo") as file:
        for line in file:
            before, _, after = line.rstrip("\n").partition(" - ")
            kind, _, options = after.split(" ", 2)
            fields = before.split(" ")
            if kind == "cgroup2":
                found[UNIFIED] = (fields[4], fields[3])
            elif kind == "cgroup":
                for controllers in _names(options.split(" ")[-1].split(",")):
                    found[controllers] = (fields[4], fields[3])
    return found


def folder(mount: Tuple[str, str], path: str) -> str:
    """Return the directory of a group.

    Args:
        mount: of its hierarchy, as ``mounts`` gives it.
        path: the group, as ``groups`` gives it.
    """
    where, root = mount
    inside = path[len(root.rstrip("/")) :] if path.startswith(root) else path
    return os.path.join(where, inside.lstrip("/"))


def limit_cpus(directory: str, cpus: float) -> None:
    """Hold all processes of a group together to so many processors. Raises OSError."""
    quota = max(_LEAST_QUOTA, round(cpus * _PERIOD))
    if os.path.exists(f"{directory}/cpu.max"):
        _write(f"{directory}/cpu.max", f"{quota} {_PERIOD}")
        return
    _write(f"{directory}/cpu.cfs_period_us", str(_PERIOD))
    _write(f"{directory}/cpu.cfs_quota_us", str(quota))


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def _names(options: List[str]) -> Set[str]:
    # /proc/PID/cgroup names a hierarchy by its controllers, in an order of its own.
    known = set()
    with suppress(OSError), open(f"{ROOT}/self/cgroup") as file:
        known = {line.split(":", 2)[1] for line in file}
    have = set(options)
    return {x for x in known if x and set(x.split(",")) <= have}
