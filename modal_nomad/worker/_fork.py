"""A fork of a memory snapshot takes the place of the process that asked for it, in all that is its own."""

import fcntl
import os
import signal
import socket
import sys
import traceback
from contextlib import suppress
from typing import Any, Callable, Dict, List, NoReturn

from . import _cgroups
from ._stand_in import say

_FOLDERS = ("MODAL_CODE_DIR", "MODAL_RUNTIME_DIR")
_SAME = ("net", "pid", "user", "ipc", "uts")


def become(
    connection: socket.socket,
    asker: int,
    message: Dict[str, Any],
    fds: List[int],
    run: Callable[[bool], int],
    *,
    apart: bool,
) -> NoReturn:
    """Be the container that process ``asker`` stands for, and end as it ends.

    Args:
        connection: to that process; it hears whether this could be done.
        asker: it.
        message: what it says of itself.
        fds: its standard descriptors, and the end of a pipe that nobody else holds the other end of.
        run: the container.
        apart: it is of another allocation than the snapshot.
    """
    code = 1
    try:
        try:
            moved = _take_place(asker, message, fds, apart)
        except OSError as error:
            say(connection, {"no": str(error)})
            os._exit(0)
        say(connection, {"pid": os.getpid()}, (os.pidfd_open(os.getpid()),))
        code = run(moved)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        # The snapshot's process, which would say it, may be gone.
        with suppress(OSError):
            say(connection, {"code": code, "signal": None})
        os._exit(code)


def _take_place(asker: int, message: Dict[str, Any], fds: List[int], apart: bool) -> bool:
    os.setsid()
    _end_with(fds.pop())
    moved = False
    if apart:
        for name in _SAME:
            if _namespace("self", name) != _namespace(asker, name):
                raise OSError(f"its allocation has a {name} namespace of its own")
        moved = _namespace("self", "mnt") != _namespace(asker, "mnt")
        if moved:
            from ._mounts import enter_namespace_of

            enter_namespace_of(asker)
    if message["env"].get("MODAL_BLOCK_NETWORK"):
        from ._network import enter_empty

        enter_empty()
    try:
        _cgroups.join(asker)
    except OSError as error:
        raise OSError(f"the control groups of its allocation cannot be entered: {error}") from error
    for descriptor, target in zip(fds, (0, 1, 2)):  # noqa: B905 (not on 3.9)
        os.dup2(descriptor, target)
        os.close(descriptor)
    before = {name: os.environ.get(name) for name in _FOLDERS}
    os.environ.clear()
    os.environ.update(message["env"])
    os.chdir(message["cwd"])
    os.umask(message["umask"])
    _apply_limits(message)
    for name in _FOLDERS:
        old, new = before[name], os.environ.get(name)
        if old and new and old != new:
            _relocate(old, new)
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        # Python reseeds its own generator in a fork; numpy's would repeat the others' numbers.
        numpy_random.seed()
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None:
        # Chosen anew, by this environment.
        tempfile.tempdir = None  # type: ignore[attr-defined]
    return moved


def _end_with(tie: int) -> None:
    """Have the kernel kill this process when the other end of a pipe is closed, whatever runs here then."""
    fcntl.fcntl(tie, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(tie, fcntl.F_SETSIG, int(signal.SIGKILL))
    fcntl.fcntl(tie, fcntl.F_SETFL, fcntl.fcntl(tie, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        # It may have been closed before.
        os.read(tie, 1)
        os._exit(1)


def _namespace(pid: object, name: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{name}")


def _apply_limits(message: Dict[str, Any]) -> None:
    import resource

    for name, (soft, hard) in message["limits"].items():
        with suppress(OSError, ValueError):
            resource.setrlimit(getattr(resource, name), (soft, hard))
    with suppress(OSError):
        os.sched_setaffinity(0, message["cpus"])
    if message["oom_score_adj"] is not None:
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write(message["oom_score_adj"])


def _relocate(old: str, new: str) -> None:
    """Have what is imported later come from this allocation's folder: the snapshot's one does not stay."""

    def moved(path: Any) -> Any:
        if isinstance(path, str) and (path == old or path.startswith(old + os.sep)):
            return new + path[len(old) :]
        return path

    sys.path[:] = [moved(path) for path in sys.path]
    for path in list(sys.path_importer_cache):
        if moved(path) != path:
            del sys.path_importer_cache[path]
    for module in list(sys.modules.values()):
        spec = getattr(module, "__spec__", None)
        for owner, names in ((module, ("__file__", "__cached__")), (spec, ("origin", "cached"))):
            for name in names:
                place = getattr(owner, name, None)
                if moved(place) != place:
                    with suppress(AttributeError):
                        setattr(owner, name, moved(place))
        for folders in (
            getattr(module, "__path__", None),
            getattr(spec, "submodule_search_locations", None),
        ):
            if isinstance(folders, list):
                folders[:] = [moved(path) for path in folders]
