"""Memory snapshots: a parent process holds what a container has loaded, and forks later ones from it.

The first container of a version forks the parent after its imports and snapshot hooks (``keep``). A later
one is started as any other, asks the parent for a fork that takes its place (``_stand_in``) and from then on
only stands for it.
"""

import fcntl
import gc
import os
import select
import signal
import socket
import sys
import time
import warnings
from contextlib import suppress
from typing import Any, Callable, Dict, List, Optional, Set

from . import _fork
from ._obstacles import obstacles
from ._stand_in import PATIENCE, address, hear, open_folder, peer, say

IDLE_SECONDS = 600.0
"""A parent that nobody asked for a container in this time ends."""
_LOOK_EVERY = 1.0
_LOCK = "all.lock"
_PARKED = b"p"


def keep(
    path: str,
    ours: Set[int],
    let_go: Callable[[], None],
    run: Callable[[bool], int],
    *,
    idle: float = IDLE_SECONDS,
    within: bool = False,
) -> Optional[socket.socket]:
    """Leave a parent behind that forks containers from the present state, unless there is one.

    Args:
        path: of the parent's socket.
        ours: descriptors of this container, which the parent closes.
        let_go: detaches, in the parent, the objects that own such descriptors.
        run: is a container, in a fork of the parent; gives its exit code. It is told whether the fork has
            left the parent's view of the file system.
        idle: seconds without a request after which the parent ends.
        within: the parent lives in this container's allocation, and ends with it.

    Returns:
        With ``within``, what ``park`` and ``waits`` take, when a parent was left.
    """
    found = obstacles(ours)
    if found:
        sys.stderr.write(
            f"modal-nomad worker: no memory snapshot is kept, because {' and '.join(found)} after the import "
            "and the enter(snap=True) hooks; containers start anew: move that to an enter(snap=False) hook\n"
        )
        return None
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        folder = open_folder(os.path.dirname(path))
        lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except OSError as error:
        sys.stderr.write(f"modal-nomad worker: no memory snapshot is kept: {error}\n")
        return None
    # Until the parent listens: nobody else leaves another one meanwhile.
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        if _listens(folder, os.path.basename(path)):
            return None
        return _leave(path, folder, {*ours, lock}, let_go, run, idle, within)
    finally:
        # In so many words: the parent has this descriptor as well.
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)
        os.close(folder)


def _listens(folder: int, name: str) -> bool:
    """Tell whether there is a parent of this name; remove the sockets of those that are gone."""
    listens = False
    for found in os.listdir(folder):
        if found == _LOCK:
            continue
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(PATIENCE)
            try:
                probe.connect(address(folder, found))
                listens = listens or found == name
            except ConnectionRefusedError:
                with suppress(OSError):
                    os.unlink(found, dir_fd=folder)
            except OSError:
                pass
    return listens


def _leave(
    path: str,
    folder: int,
    ours: Set[int],
    let_go: Callable[[], None],
    run: Callable[[bool], int],
    idle: float,
    within: bool,
) -> Optional[socket.socket]:
    starter = os.getppid()
    link, theirs = socket.socketpair()
    ready, said = os.pipe()
    with warnings.catch_warnings():
        # Our own two threads are not needed in the parent, and hold nothing that it needs.
        warnings.simplefilter("ignore", DeprecationWarning)
        middle = os.fork()
    if middle:
        theirs.close()
        os.close(said)
        os.waitpid(middle, 0)
        listens = bool(os.read(ready, 1))
        os.close(ready)
        if within and listens:
            return link
        link.close()
        return None
    try:
        # A grandchild, so that user code which waits for its children meets no stranger.
        if os.fork() == 0:
            let_go()
            link.close()
            os.close(ready)
            for descriptor in ours - {0, 1, 2}:
                with suppress(OSError):
                    os.close(descriptor)
            if not within:
                theirs.close()
            parent = _Parent(path, folder, run, idle, theirs if within else None, starter)
            parent.listen()
            os.write(said, b"!")
            os.close(said)
            parent.serve()
    finally:
        os._exit(0)


def waits(link: socket.socket) -> bool:
    """Tell whether the parent that a container has left still lives."""
    try:
        return bool(link.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return True
    except OSError:
        return False


def park(link: socket.socket) -> None:
    """End a container and keep its allocation, which the parent lives in, until the parent ends.

    This process becomes one that does nothing else, so that the container's memory is free.
    """
    sys.stderr.write(
        "modal-nomad worker: the container has ended; its memory snapshot waits for later containers\n"
    )
    sys.stderr.flush()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    link.send(_PARKED)
    link.set_inheritable(True)
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_parked.py")
    os.execv(sys.executable, [sys.executable, "-I", "-S", program, str(link.fileno())])


class _Parent:
    """Forks containers on request; single-threaded, as the fork of a process with threads is."""

    def __init__(
        self,
        path: str,
        folder: int,
        run: Callable[[bool], int],
        idle: float,
        link: Optional[socket.socket],
        starter: int,
    ) -> None:
        self.name = os.path.basename(path)
        self.folder = folder
        self.run = run
        self.idle = idle
        self.link = link
        self.starter = starter
        self.children: Dict[int, socket.socket] = {}

    def listen(self) -> None:
        """Take requests from now on; they are answered by ``serve``."""
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.close(null)
        self.wake_read, self.wake_write = os.pipe()
        for end in (self.wake_read, self.wake_write):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        gc.collect()
        gc.freeze()
        self.listener = socket.socket(socket.AF_UNIX)
        fresh = self.name + ".new"
        with suppress(FileNotFoundError):
            os.unlink(fresh, dir_fd=self.folder)
        mask = os.umask(0o177)
        self.listener.bind(address(self.folder, fresh))
        os.umask(mask)
        self.listener.listen(128)
        # Whoever finds it may connect at once.
        os.replace(fresh, self.name, src_dir_fd=self.folder, dst_dir_fd=self.folder)

    def serve(self) -> None:
        """Serve until nobody asks any more, or what all this belongs to is gone."""
        asked = time.monotonic()
        # As long as its first container works, a parent within its allocation costs nothing more.
        busy = self.link is not None
        while busy or self.children or time.monotonic() - asked < self.idle:
            sources: List[Any] = [self.listener, self.wake_read, *([self.link] if self.link else [])]
            ready = select.select(sources, [], [], min(_LOOK_EVERY, self.idle))[0]
            if self.wake_read in ready:
                with suppress(BlockingIOError):
                    os.read(self.wake_read, 4096)
            self._reap()
            if self.link is not None and self.link in ready:
                with suppress(OSError):
                    if self.link.recv(1) != _PARKED:
                        break
                busy = False
                asked = time.monotonic()
            if self.listener in ready and self._asked(self.listener.accept()[0]):
                asked = time.monotonic()
            if self.link is None and not _lives(self.starter):
                break
        # Its containers live on: they have allocations of their own.
        with suppress(OSError):
            os.unlink(self.name, dir_fd=self.folder)

    def _asked(self, connection: socket.socket) -> bool:
        connection.settimeout(PATIENCE)
        try:
            pid, user = peer(connection)
            message, fds = hear(connection)
        except (OSError, ValueError):
            message, fds = None, []
        if message is None or len(fds) != 4 or user != os.geteuid():
            for descriptor in fds:
                os.close(descriptor)
            connection.close()
            return False
        child = os.fork()
        if child == 0:
            self.listener.close()
            for other in self.children.values():
                other.close()
            for descriptor in (self.wake_read, self.wake_write, self.folder):
                os.close(descriptor)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            apart = self.link is not None
            if self.link is not None:
                self.link.close()
            _fork.become(connection, pid, message, fds, self.run, apart=apart)
        for descriptor in fds:
            os.close(descriptor)
        self.children[child] = connection
        return True

    def _reap(self) -> None:
        for pid, connection in list(self.children.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                continue
            del self.children[pid]
            with suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
            ended = os.WIFEXITED(status)
            message: Dict[str, Any] = {
                "code": os.WEXITSTATUS(status) if ended else None,
                "signal": None if ended else os.WTERMSIG(status),
            }
            with suppress(OSError):
                say(connection, message)
            connection.close()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
