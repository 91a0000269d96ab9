"""Memory snapshots: a parent process holds what a container has loaded, and forks later ones from it.

The first container of a version forks the parent after its imports and snapshot hooks (``keep``). A later
one asks the parent for a fork that takes over its descriptors, environment and limits (``restore``), and
then only stands for it: it passes signals on and ends as the fork ends. When it is killed, so is the fork.
"""

import fcntl
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import time
import warnings
from contextlib import suppress
from typing import Any, Callable, Dict, List, Optional, Set

from ._obstacles import obstacles

IDLE_SECONDS = 600.0
"""A parent that nobody asked for a container in this time ends."""
_LOOK_EVERY = 1.0
_PATIENCE = 10.0
_PASSED_ON = (signal.SIGTERM, signal.SIGINT)
_PR_SET_PDEATHSIG = 1


def keep(path: str, ours: Set[int], let_go: Callable[[], None], run: Callable[[], int]) -> None:
    """Leave a parent behind that forks containers from the present state, unless there is one.

    Args:
        path: of the parent's socket.
        ours: descriptors of this container, which the parent closes.
        let_go: detaches, in the parent, the objects that own such descriptors.
        run: is a container, in a fork of the parent; gives its exit code.
    """
    found = obstacles(ours)
    if found:
        sys.stderr.write(
            f"modal-nomad worker: no memory snapshot is kept, because {' and '.join(found)} after the import "
            "and the enter(snap=True) hooks; containers start anew: move that to an enter(snap=False) hook\n"
        )
        return
    try:
        lock = os.open(path + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return
    starter = os.getppid()
    with warnings.catch_warnings():
        # Our own two threads are not needed in the parent, and hold nothing that it needs.
        warnings.simplefilter("ignore", DeprecationWarning)
        middle = os.fork()
    if middle:
        os.close(lock)
        os.waitpid(middle, 0)
        return
    try:
        # A grandchild, so that user code which waits for its children meets no stranger.
        if os.fork() == 0:
            let_go()
            for descriptor in ours - {0, 1, 2, lock}:
                with suppress(OSError):
                    os.close(descriptor)
            _Parent(path, starter, run).serve()
    finally:
        os._exit(0)


class _Parent:
    """Forks containers on request; single-threaded, as the fork of a process with threads is."""

    def __init__(self, path: str, starter: int, run: Callable[[], int]) -> None:
        self.path = path
        self.starter = starter
        self.run = run
        self.pid = os.getpid()
        self.children: Dict[int, socket.socket] = {}

    def serve(self) -> None:
        """Serve until nobody asks any more, or the engine that started all this is gone."""
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.close(null)
        wake_read, self.wake_write = os.pipe()
        for end in (wake_read, self.wake_write):
            os.set_blocking(end, False)
        self.wake_read = wake_read
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for number in _PASSED_ON:
            signal.signal(number, signal.SIG_DFL)
        self.listener = socket.socket(socket.AF_UNIX)
        fresh = self.path + ".new"
        with suppress(FileNotFoundError):
            os.unlink(fresh)
        mask = os.umask(0o177)
        self.listener.bind(fresh)
        os.umask(mask)
        self.listener.listen(128)
        # Whoever finds it may connect at once.
        os.replace(fresh, self.path)
        gc.collect()
        gc.freeze()
        asked = time.monotonic()
        while self.children or time.monotonic() - asked < IDLE_SECONDS:
            sources: List[Any] = [self.listener, wake_read, *self.children.values()]
            ready = select.select(sources, [], [], _LOOK_EVERY)[0]
            if wake_read in ready:
                with suppress(BlockingIOError):
                    os.read(wake_read, 4096)
            for pid, connection in list(self.children.items()):
                if connection in ready:
                    self._pass_on(pid, connection)
            self._reap()
            if self.listener in ready:
                asked = time.monotonic()
                self._fork(self.listener.accept()[0])
            if not _lives(self.starter):
                break
        with suppress(OSError):
            os.unlink(self.path)
        for pid in self.children:
            _kill_group(pid)

    def _fork(self, connection: socket.socket) -> None:
        connection.settimeout(_PATIENCE)
        try:
            data, fds, _, _ = socket.recv_fds(connection, 4, 3)
            size = struct.unpack("!I", data)[0] if len(data) == 4 else 0
            message = _exactly(connection, size)
        except OSError:
            message, fds = b"", []
        if not message or len(fds) != 3:
            for descriptor in fds:
                os.close(descriptor)
            connection.close()
            return
        pid = os.fork()
        if pid == 0:
            self._become(json.loads(message), list(fds), connection)
        for descriptor in fds:
            os.close(descriptor)
        self.children[pid] = connection
        with suppress(OSError):
            _say(connection, {"pid": pid})

    def _become(self, message: Dict[str, Any], fds: List[int], connection: socket.socket) -> None:
        code = 1
        try:
            os.setsid()
            _die_with(self.pid)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for other in (self.listener, connection, *self.children.values()):
                other.close()
            os.close(self.wake_read)
            os.close(self.wake_write)
            for descriptor, target in zip(fds, (0, 1, 2)):  # noqa: B905 (not on 3.9)
                os.dup2(descriptor, target)
                os.close(descriptor)
            os.environ.clear()
            os.environ.update(message["env"])
            os.chdir(message["cwd"])
            _apply_limits(message)
            numpy_random = sys.modules.get("numpy.random")
            if numpy_random is not None:
                # Python reseeds its own generator in a fork; numpy's would repeat the others' numbers.
                numpy_random.seed()
            code = self.run()
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code)

    def _pass_on(self, pid: int, connection: socket.socket) -> None:
        try:
            numbers = connection.recv(64)
        except OSError:
            numbers = b""
        if not numbers:
            _kill_group(pid)
        for number in numbers:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _reap(self) -> None:
        for pid, connection in list(self.children.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                continue
            del self.children[pid]
            _kill_group(pid)
            ended = os.WIFEXITED(status)
            with suppress(OSError):
                _say(
                    connection,
                    {
                        "code": os.WEXITSTATUS(status) if ended else None,
                        "signal": None if ended else os.WTERMSIG(status),
                    },
                )
            connection.close()


def restore(path: str) -> Optional[int]:
    """Be a container forked from the parent behind ``path``; None when there is none that forks one.

    Returns:
        The exit code. A fork that a signal ended ends this process by the same signal.
    """
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_PATIENCE)
    message = {"env": dict(os.environ), "cwd": os.getcwd(), **_limits()}
    data = json.dumps(message).encode()
    try:
        connection.connect(path)
        socket.send_fds(connection, [struct.pack("!I", len(data))], [0, 1, 2])
        connection.sendall(data)
        if _hear(connection) is None:
            return None
    except OSError:
        return None
    connection.settimeout(None)
    for number in _PASSED_ON:
        signal.signal(number, lambda number, frame: connection.send(bytes([number])))
    try:
        end = _hear(connection)
    except OSError:
        end = None
    if end is None:
        sys.stderr.write("modal-nomad worker: the process that this container was forked from is gone\n")
        return 1
    if end["signal"] is not None:
        signal.signal(end["signal"], signal.SIG_DFL) if end["signal"] != signal.SIGKILL else None
        os.kill(os.getpid(), end["signal"])
    return int(end["code"] or 0)


def _say(connection: socket.socket, message: Dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    connection.sendall(struct.pack("!I", len(data)) + data)


def _hear(connection: socket.socket) -> Optional[Dict[str, Any]]:
    size = _exactly(connection, 4)
    if not size:
        return None
    data = _exactly(connection, struct.unpack("!I", size)[0])
    message: Optional[Dict[str, Any]] = json.loads(data) if data else None
    return message


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            return b""
        data += piece
    return data


def _limits() -> Dict[str, Any]:
    import resource

    kinds = [x for x in ("RLIMIT_DATA", "RLIMIT_AS") if hasattr(resource, x)]
    limits = {x: resource.getrlimit(getattr(resource, x)) for x in kinds}
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {"limits": limits, "cpus": cpus}


def _apply_limits(message: Dict[str, Any]) -> None:
    import resource

    for name, (soft, hard) in message["limits"].items():
        with suppress(OSError, ValueError):
            resource.setrlimit(getattr(resource, name), (soft, hard))
    if message["cpus"]:
        with suppress(OSError):
            os.sched_setaffinity(0, message["cpus"])


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _kill_group(pid: int) -> None:
    with suppress(OSError):
        os.killpg(pid, signal.SIGKILL)


def _die_with(parent: int) -> None:
    with suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
