"""Moves this process into another one's control groups, so that its limits and its end are the same."""

import os
from contextlib import suppress
from typing import Dict

ROOT = "/proc"


def groups(pid: object) -> Dict[str, str]:
    """Return a process's group in each hierarchy, by the hierarchy's controllers (none: version 2)."""
    found = {}
    with open(f"{ROOT}/{pid}/cgroup") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            found[controllers] = path
    return found


def join(pid: int) -> None:
    """Enter the groups of process ``pid``.

    Raises:
        OSError: this may not be done here, or not for each of them.
    """
    try:
        wanted, now = groups(pid), groups("self")
    except FileNotFoundError:
        # A kernel without control groups.
        return
    places = None
    for controllers, path in wanted.items():
        if now.get(controllers) == path:
            continue
        places = places or _mounts()
        if controllers not in places:
            raise OSError(f"the control groups of {controllers or 'version 2'} are not mounted")
        mount, root = places[controllers]
        inside = path[len(root.rstrip("/")) :] if path.startswith(root) else path
        with open(os.path.join(mount, inside.lstrip("/"), "cgroup.procs"), "w") as file:
            file.write(str(os.getpid()))
    if groups("self") != wanted:
        raise OSError("the kernel kept it in other control groups")


def _mounts() -> Dict[str, "tuple[str, str]"]:
    """Return where each hierarchy is mounted, and which part of it."""
    found = {}
    with open(f"{ROOT}/self/mountinfo") as file:
        for line in file:
            before, _, after = line.rstrip("\n").partition(" - ")
            kind, _, options = after.split(" ", 2)
            fields = before.split(" ")
            if kind == "cgroup2":
                found[""] = (fields[4], fields[3])
            elif kind == "cgroup":
                for controllers in _names(options.split(" ")[-1].split(",")):
                    found[controllers] = (fields[4], fields[3])
    return found


def _names(options: "list[str]") -> "set[str]":
    # /proc/PID/cgroup names a hierarchy by its controllers, in an order of its own.
    known = set()
    with suppress(OSError), open(f"{ROOT}/self/cgroup") as file:
        known = {line.split(":", 2)[1] for line in file}
    have = set(options)
    return {x for x in known if x and set(x.split(",")) <= have}
