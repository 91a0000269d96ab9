"""The process that serves one Volume's mount, and what the container asks of it.

It is a process of its own: user code that waits for a file while it holds the interpreter's lock would
otherwise wait for itself.
"""

import bisect
import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import threading
from typing import Any, Callable, Dict, List, Mapping, NoReturn, Optional

from ...wire.asking import Refused
from ...wire.volumes.client import VolumeClient
from ...wire.volumes.entries import to_bytes
from .._in_use import check_unused
from .._volume_cache import from_environment, of_container
from . import mounting
from .chunks import Chunk, Chunks, InMemory, OpenFile
from .contents import Contents
from .filesystem import FileSystem
from .listing import Listing
from .session import Session
from .volume import Told, Volume, describe

READ_TIMEOUT = 120.0
"""Seconds that a read waits for a dispatcher that is away, before it fails."""
_ATTEMPT = 30.0
_CHUNK_WEIGHT = 4
_KEEP_EVERY = 1800.0
_MAX_MESSAGE = 1 << 16
_PATHS = 10
"""Paths in a message: each has up to 24,000 characters there in the worst case."""
_NAME = b"modal-volume"


class Service:
    """What a served Volume is made of.

    Args:
        folder: a directory of the container's own.
        shown: the path at which user code sees the Volume.
        volume_id: ``vo-…``.
        client: asks the dispatcher.
        commit_every: seconds between two background commits.
        wait: seconds for which a read waits for a dispatcher that is away.
        read_only: whether nothing is ever committed.

    Attributes:
        source: the directory that a program mounts at when this process may not mount.
        unmount: that program.
    """

    def __init__(
        self,
        folder: str,
        shown: str,
        volume_id: str,
        client: VolumeClient,
        commit_every: float,
        wait: float,
        read_only: bool,
    ) -> None:
        self.folder = folder
        self.shown = shown
        self.volume_id = volume_id
        self.client = client
        self.commit_every = commit_every
        self.wait = wait
        self.read_only = read_only
        self.source = os.path.join(folder, "tree")
        self.unmount = ""

    def chunks(self, say: Callable[[str], None]) -> Chunks:
        """Return what gives chunks: through the node's cache, else one of this container's."""
        # Each attempt is short: who waits for it may be told to end.
        fetch = self.client.with_timeout(min(_ATTEMPT, self.wait)).get_chunk_once
        node = from_environment(os.environ, fetch)
        cache = node or of_container(self.folder, os.environ, fetch)

        def open_chunk(sha: str) -> Chunk:
            found = cache.open(sha)
            return OpenFile(found, _CHUNK_WEIGHT) if isinstance(found, int) else InMemory(found)

        return Chunks(open_chunk, self.wait, say, self.shown, lambda: node is None and cache.clear())


def read_timeout(environ: Mapping[str, str]) -> float:
    """Return for how many seconds a read waits for a dispatcher that is away."""
    try:
        return float(environ.get("MODAL_VOLUME_READ_TIMEOUT") or READ_TIMEOUT)
    except ValueError:
        return READ_TIMEOUT


def serve(service: Service, descriptor: int) -> socket.socket:
    """Start the process that serves a mount; to be called while this one has one thread.

    Args:
        service: what is served.
        descriptor: of ``/dev/fuse``, mounted; it is closed here.

    Returns:
        The socket on which the process is asked; the process ends when it is closed, or this one ends.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    watched = os.getpid()
    between = os.fork()
    if between == 0:
        try:
            # Nobody's child: user code that waits for all of its children does not wait for this one.
            if os.fork() == 0:
                server = _Server(service, descriptor, theirs, watched)
                try:
                    server.run()
                finally:
                    server.end()
        except BaseException as error:
            sys.stderr.write(f"modal-nomad volumes: cannot serve {service.shown}: {error!r}\n")
        finally:
            os._exit(0)
    os.waitpid(between, 0)
    theirs.close()
    os.close(descriptor)
    return ours


class _Server:
    """The serving process."""

    def __init__(self, service: Service, descriptor: int, control: socket.socket, watched: int) -> None:
        self._control = control
        self._watched = watched
        self._service = service
        self._alone(descriptor)
        self._send_lock = threading.Lock()
        self._lock = threading.RLock()
        self._said = ""
        self._ending = threading.Event()
        self._session = Session(descriptor)
        self._chunks = service.chunks(self._say)
        contents = Contents(service.folder, self._chunks)
        self._volume = Volume(
            service.volume_id,
            service.shown,
            service.client,
            contents,
            self._lock,
            self._tell,
            lambda: self._files.files.open_paths(),
            self._say,
            service.read_only,
        )
        # Each attempt is short, as for chunks.
        listing = Listing(self._volume.list, service.wait, self._say, service.shown)
        self._files = FileSystem(
            self._session, self._volume.tree, contents, self._chunks, listing, self._lock, service.folder
        )

    def _alone(self, descriptor: int) -> None:
        """Let go of what belongs to the container."""
        signal.set_wakeup_fd(-1)
        # It ends when the container has committed, however that is told to end.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        os.chdir("/")
        kept = {0, 1, 2, descriptor, self._control.fileno()}
        for name in os.listdir("/proc/self/fd"):
            if int(name) not in kept:
                with contextlib.suppress(OSError):
                    os.close(int(name))
        with contextlib.suppress(OSError), open("/proc/self/comm", "wb") as file:
            file.write(_NAME)
        if self._service.unmount:
            # Who ends the container's group leaves it the time to unmount.
            os.setsid()

    def end(self) -> NoReturn:
        """End this process; what was mounted by a program is unmounted by it."""
        if self._service.unmount:
            mounting.unmount(self._service.source, self._service.unmount)
        self._volume.let_go()
        os._exit(0)

    def run(self) -> None:
        """Serve until the mount or the container ends."""
        threading.Thread(target=self._watch, name="modal-watch", daemon=True).start()
        self._session.begin()
        try:
            self._volume.load()
        except BaseException as error:
            # What was mounted is not to be mistaken for an empty Volume.
            self._answer(0, error)
            return
        # The tree stays: looking through it for garbage would take longer the larger it is.
        gc.freeze()
        self._answer(0, None)
        threading.Thread(target=self._converse, name="modal-control", daemon=True).start()
        threading.Thread(target=self._follow, name="modal-commits", daemon=True).start()
        self._session.run(self._files.handlers())

    # --- the container ----------------------------------------------------------------------------

    def _watch(self) -> None:
        """End when the container's process does, even where a child of it still has the socket."""
        opener: Optional[Callable[[int], int]] = getattr(os, "pidfd_open", None)
        if opener is None:
            return
        try:
            descriptor = opener(self._watched)
        except ProcessLookupError:
            self.end()
        except OSError:
            return
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while not poll.poll():
            pass
        self.end()

    def _converse(self) -> None:
        verbs: Dict[str, Callable[[], None]] = {"commit": self._volume.commit, "reload": self._volume.reload}
        while True:
            try:
                data = self._control.recv(_MAX_MESSAGE)
            except OSError:
                data = b""
            if not data:
                self.end()
            asked = json.loads(data)
            if asked["do"] == "end":
                self._ending.set()
                self.end()
            if asked["do"] == "mappable":
                paths = self._files.files.mappable_paths()
                after = bisect.bisect_right(paths, asked["after"])
                self._send({"n": asked["n"], "value": paths[after : after + _PATHS]})
                continue
            try:
                verbs[asked["do"]]()
            except BaseException as error:
                self._answer(asked["n"], error)
            else:
                self._answer(asked["n"], None)

    def _answer(self, number: int, error: Optional[BaseException]) -> None:
        self._send({"n": number, "error": describe(error) if error is not None else None})

    def _say(self, text: str) -> None:
        self._send({"say": text})

    def _send(self, message: Dict[str, Any]) -> None:
        with self._send_lock, contextlib.suppress(OSError):
            self._control.send(json.dumps(message).encode()[:_MAX_MESSAGE])

    # --- commits ----------------------------------------------------------------------------------

    def _tell(self, told: List[Told]) -> None:
        for one in told:
            if one.name:
                self._session.forget_name(one.ino, one.name)
            else:
                self._session.forget_attributes(one.ino)

    def _follow(self) -> None:
        beats = 0
        while not self._ending.wait(self._service.commit_every):
            beats += 1
            try:
                self._volume.commit_settled()
                if beats % int(_KEEP_EVERY / self._service.commit_every) == 0:
                    self._volume.keep_readable()
                self._said = ""
            except Exception as error:
                # Once each, not every few seconds.
                text = f"cannot commit {self._service.shown}: {error}"
                if self._said != text:
                    self._said = text
                    self._say(text)


class Served:
    """A served Volume, as the container has it: the same as a ``VolumeTree``.

    Args:
        service: what is served.
        control: from ``serve``.
        say: takes a line for the log.
    """

    def __init__(self, service: Service, control: socket.socket, say: Callable[[str], None]) -> None:
        self.shown = service.shown
        self.read_only = service.read_only
        self.volume_id = service.volume_id
        self._source = service.source
        self._control = control
        self._say = say
        self._lock = threading.Condition()
        self._answers: Dict[int, Any] = {}
        self._last = 0
        self._ended = False
        self._closing = False

    def fill(self) -> None:
        """Wait until the tree is served; from now on this process has several threads.

        Raises:
            Refused: the Volume is gone.
            OSError: the dispatcher could not be reached.
        """
        threading.Thread(target=self._listen, name="modal-volume", daemon=True).start()
        self._wait(0)
        mounting.read_far_ahead(self.shown)

    def commit(self) -> None:
        """As ``VolumeTree.commit``."""
        self._sync()
        self._ask("commit")

    def reload(self) -> None:
        """As ``VolumeTree.reload``."""
        check_unused(self.shown, self._source)
        self._sync()
        self._ask("reload")

    def close(self) -> None:
        """End the serving process."""
        self._closing = True
        # It answers by its end.
        with contextlib.suppress(OSError, Refused):
            self._ask("end")
        self._control.close()

    def _sync(self) -> None:
        """Write out what programs changed in mapped files: that is the kernel's until then."""
        if self.read_only:
            return
        after = ""
        # One by one: a kernel does not wait for such writes when it is told to write out all of a mount.
        while paths := self._ask("mappable", after=after):
            for path in paths:
                with contextlib.suppress(OSError):
                    place = os.path.join(os.fsencode(self.shown), to_bytes(path))
                    descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                    try:
                        os.fsync(descriptor)
                    finally:
                        os.close(descriptor)
            after = paths[-1]

    def _ask(self, verb: str, **more: str) -> Any:
        with self._lock:
            self._last += 1
            number = self._last
        with contextlib.suppress(OSError):
            self._control.send(json.dumps({"do": verb, "n": number, **more}).encode())
        return self._wait(number)

    def _wait(self, number: int) -> Any:
        with self._lock:
            while number not in self._answers:
                if self._ended:
                    raise Refused("ExecutionError", f"the process that serves {self.shown} ended")
                self._lock.wait()
            answer = self._answers.pop(number)
        error = answer.get("error")
        if error is not None:
            kind, text, code = error
            if kind == "RuntimeError":
                raise RuntimeError(text)
            raise OSError(code, text) if code else Refused(kind, text)
        return answer.get("value")

    def _listen(self) -> None:
        while True:
            try:
                data = self._control.recv(_MAX_MESSAGE)
            except OSError:
                data = b""
            if not data:
                break
            message = json.loads(data)
            if "say" in message:
                self._say(message["say"])
                continue
            with self._lock:
                self._answers[message["n"]] = message
                self._lock.notify_all()
        with self._lock:
            self._ended = True
            self._lock.notify_all()
        if not self._closing:
            self._say(
                f"the process that serves {self.shown} ended: every use of a file there fails from now on "
                "(ENOTCONN), and what was not committed is lost; the container has to be started anew"
            )
