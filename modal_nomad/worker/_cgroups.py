"""Control groups from within: which one a container has for itself, and how another one's are entered."""

import os
from contextlib import suppress
from typing import List, Mapping, Tuple

from ..wire.cgroups import UNIFIED, folder, groups, mounts


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


def own_group(controller: str, environ: Mapping[str, str]) -> str:
    """Return the directory of the group that is this container's alone; empty where it has or sees none.

    Args:
        controller: what it is to hold: ``memory`` or ``cpu``.
        environ: the process's environment, by which the container is known.
    """
    with suppress(OSError):
        places = mounts()
        for controllers, path in _own(controller, environ):
            if controllers in places:
                directory = folder(places[controllers], path)
                with suppress(OSError):
                    if any(name.startswith(f"{controller}.") for name in os.listdir(directory)):
                        return directory
    return ""


def is_hidden(controller: str, environ: Mapping[str, str]) -> bool:
    """Say whether there is a group of this container's own that it does not see, as in a chroot."""
    with suppress(OSError):
        return bool(_own(controller, environ)) and not own_group(controller, environ)
    return False


def _own(controller: str, environ: Mapping[str, str]) -> List[Tuple[str, str]]:
    ids = [environ[name] for name in ("NOMAD_ALLOC_ID", "MODAL_TASK_ID") if environ.get(name)]
    return [
        (controllers, path)
        for controllers, path in groups("self").items()
        if (controllers == UNIFIED or controller in controllers.split(","))
        # What a container runtime gives is always one container's.
        and (environ.get("MODAL_CONTAINER_RUNTIME") or any(name in path for name in ids))
    ]
