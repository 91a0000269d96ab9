"""Moves this process into another one's control groups, so that its limits and its end are the same."""

import os

from ..wire.cgroups import folder, groups, mounts


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
        places = places or mounts()
        if controllers not in places:
            raise OSError(f"the control groups of {controllers or 'version 2'} are not mounted")
        with open(os.path.join(folder(places[controllers], path), "cgroup.procs"), "w") as file:
            file.write(str(os.getpid()))
    if groups("self") != wanted:
        raise OSError("the kernel kept it in other control groups")
