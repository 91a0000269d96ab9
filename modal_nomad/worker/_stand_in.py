"""Stands for a container that was forked from a memory snapshot: to the engine, it is that container.

It passes signals on and ends as the fork ends; when it is killed, so is the fork. Standard library only and
nothing of this package, so that an interpreter which is good for nothing else can run it at once.
"""

import json
import os
import select
import signal
import socket
import stat
import struct
import sys
from contextlib import suppress
from typing import Any, Dict, List, Optional, Tuple

VARIABLE = "MODAL_SNAPSHOT"
PATIENCE = 10.0
_PASSED_ON = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
_CREDENTIALS = struct.Struct("3i")


class Unsafe(OSError):
    """Somebody else could have put what is there."""


def open_folder(path: str) -> int:
    """Open the folder of snapshots' sockets, which nobody but this user may reach.

    Raises:
        OSError: it is not there.
        Unsafe: it is not this user's alone.
    """
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(folder)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        os.close(folder)
        raise Unsafe(f"{path} is not this user's alone: remove it, or chmod it to 0700")
    return folder


def address(folder: int, path: str) -> str:
    """Return what a socket in an open folder is bound to: as short as sockets' addresses have to be."""
    return f"/proc/self/fd/{folder}/{os.path.basename(path)}"


def peer(connection: socket.socket) -> Tuple[int, int]:
    """Return the process and the user at the other end."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(data)
    return pid, uid


def say(connection: socket.socket, message: Dict[str, Any], fds: Tuple[int, ...] = ()) -> None:
    """Send a message, and descriptors with it."""
    data = json.dumps(message).encode()
    size = struct.pack("!I", len(data))
    if fds:
        socket.send_fds(connection, [size], list(fds))
    else:
        connection.sendall(size)
    connection.sendall(data)


def hear(connection: socket.socket) -> Tuple[Optional[Dict[str, Any]], List[int]]:
    """Receive a message, None at the end, and the descriptors that came with it."""
    size, fds, _, _ = socket.recv_fds(connection, 4, 8)
    if len(size) < 4:
        return None, list(fds)
    data, left = b"", struct.unpack("!I", size)[0]
    while len(data) < left:
        piece = connection.recv(left - len(data))
        if not piece:
            return None, list(fds)
        data += piece
    message: Dict[str, Any] = json.loads(data)
    return message, list(fds)


def restore(path: str) -> Optional[int]:
    """Be a container forked from the snapshot that listens at ``path``; None when none is.

    Returns:
        The exit code. A fork that a signal ended ends this process by the same signal.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE)
    # The fork is killed when nobody has the writing end any more: when this process ends, however it does.
    tie, tied = os.pipe()
    try:
        pidfd = _ask(connection, path, tie)
    except OSError as error:
        if isinstance(error, Unsafe):
            _refused(str(error))
        pidfd = None
    os.close(tie)
    if pidfd is None:
        os.close(tied)
        connection.close()
        return None
    return _stand(connection, pidfd)


def _ask(connection: socket.socket, path: str, tie: int) -> Optional[int]:
    folder = open_folder(os.path.dirname(path))
    try:
        connection.connect(address(folder, path))
    finally:
        os.close(folder)
    if peer(connection)[1] != os.geteuid():
        raise Unsafe(f"another user listens at {path}")
    message = {"env": dict(os.environ), "cwd": os.getcwd(), **_limits()}
    say(connection, message, (0, 1, 2, tie))
    answer, fds = hear(connection)
    if answer is None or len(fds) != 1:
        if answer is not None:
            _refused(str(answer.get("no")))
        return None
    return fds[0]


def _refused(reason: str) -> None:
    # Whatever is in the way now would be in the way again.
    os.environ.pop(VARIABLE, None)
    sys.stderr.write(
        f"modal-nomad worker: its memory snapshot is not used, because {reason}; the container starts anew\n"
    )
    sys.stderr.flush()


def _limits() -> Dict[str, Any]:
    import resource

    names = ("RLIMIT_DATA", "RLIMIT_AS", "RLIMIT_NOFILE", "RLIMIT_CORE", "RLIMIT_MEMLOCK", "RLIMIT_NPROC")
    umask = os.umask(0o077)
    os.umask(umask)
    try:
        with open("/proc/self/oom_score_adj") as file:
            badness: Optional[str] = file.read().strip()
    except OSError:
        badness = None
    return {
        "limits": {x: resource.getrlimit(getattr(resource, x)) for x in names if hasattr(resource, x)},
        "cpus": sorted(os.sched_getaffinity(0)),
        "umask": umask,
        "oom_score_adj": badness,
    }


def _stand(connection: socket.socket, pidfd: int) -> int:
    def pass_on(number: int, frame: Any) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)

    for name in _PASSED_ON:
        signal.signal(getattr(signal, name), pass_on)
    end = select.poll()
    end.register(pidfd, select.POLLIN)
    end.poll()
    # What it said itself, or what its parent found when it collected it; nothing when both are gone.
    connection.settimeout(PATIENCE)
    message = None
    with suppress(OSError):
        message, _ = hear(connection)
    if message is None:
        sys.stderr.write("modal-nomad worker: the fork that this container was ended without a word\n")
        return 1
    number = message.get("signal")
    if number is not None:
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    return int(message.get("code") or 0)
