"""The Volumes of a container: shown at their paths, filled, committed while it runs and when it ends."""

import contextlib
import errno
import os
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from ..exception import ExecutionError
from ..wire.asking import Refused
from ..wire.mounts import VolumeMount
from ..wire.volumes.below import ClientBelow, client_of
from ..wire.volumes.client import VolumeClient
from ..wire.volumes.mounted import mounts
from ._session import Settings
from ._volume_cache import ChunkCache, from_environment
from ._volume_tree import VolumeTree
from .files import Bind

COMMIT_EVERY = 5.0
"""Seconds between two background commits; more where looking through the tree takes long."""
_LAST_COMMIT = 5.0
_LAST_COMMIT_UNTOLD = 60.0
_PATIENCE = 20


class _Mounted:
    """One Volume of the container: served as a file system of its own, or a tree that is filled first.

    Args:
        mount: what the Function asks for.
        place: a directory of the container's own.
        client: asks the dispatcher.
        cache: the node's chunks, where it keeps any.
        served: whether it is to be a file system of its own.
        reason: why not.
    """

    def __init__(
        self,
        mount: VolumeMount,
        place: str,
        client: VolumeClient,
        cache: Optional[ChunkCache],
        served: bool,
        reason: str,
    ) -> None:
        fetch = client.get_chunk if cache is None else cache.get
        self.tree: Any = VolumeTree(place, mount.path, mount.volume_id, client, fetch, mount.read_only)
        self.shown = mount.path
        self.reason = reason
        self.client = client
        self.served: Any = None
        self._service: Any = None
        if served:
            from .fuse.process import Service, read_timeout

            self._service = Service(
                place,
                mount.path,
                mount.volume_id,
                client,
                COMMIT_EVERY,
                read_timeout(os.environ),
                mount.read_only,
            )

    def bind(self) -> Bind:
        """Return what is to be seen where."""
        attach = self._attach if self._service is not None else None
        return Bind(self.tree.source, self.shown, self.tree.read_only, attach)

    def _attach(self) -> bool:
        from .fuse import mounting

        try:
            descriptor = mounting.open_device()
            try:
                mounting.mount(descriptor, self.shown, self.tree.read_only)
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            self.reason = f"FUSE cannot be used here ({error})"
            return False
        self._serve(descriptor)
        return True

    def attach_by_helper(self) -> None:
        """Mount at the tree's own directory, through a program that may, where there is one."""
        from .fuse import mounting

        program = mounting.helper()
        if self._service is None:
            return
        if not program:
            self.reason = "FUSE cannot be used here (no right to mount, and no fusermount3)"
            return
        try:
            descriptor = mounting.mount_by_helper(program, self.tree.source, self.tree.read_only)
        except (OSError, subprocess.SubprocessError) as error:
            self.reason = f"FUSE cannot be used here ({error})"
            return
        self._service.unmount = program
        self._serve(descriptor)

    def _serve(self, descriptor: int) -> None:
        from .fuse.process import Served, serve

        self.reason = ""
        self.served = self.tree = Served(self._service, serve(self._service, descriptor), _say)

    def close(self) -> None:
        """End what serves it."""
        if self.served is not None:
            self.served.close()


class Volumes:
    """The mounted Volumes of this container.

    Args:
        wanted: what the Function asks for.
        settings: how the dispatcher is reached.
    """

    def __init__(self, wanted: Sequence[VolumeMount], settings: Settings) -> None:
        self._settings = settings
        self._linked: List[str] = []
        self._said: Dict[str, str] = {}
        self._ending = threading.Event()
        self._thread: Optional[threading.Thread] = None
        folder = os.environ.get("NOMAD_ALLOC_DIR") or tempfile.mkdtemp(prefix="modal-nomad-volumes-")
        self._mounted: List[_Mounted] = []
        client = VolumeClient(settings.address, settings.token)
        cache = from_environment(os.environ, client.get_chunk)
        served, reason = _wants_fuse(os.environ)
        for mount in wanted:
            place = os.path.join(folder, "volumes", mount.volume_id)
            os.makedirs(place, exist_ok=True)
            seen = client_of(settings.address, settings.token, mount.sub_path)
            self._mounted.append(_Mounted(mount, place, seen, cache, served, reason))

    @property
    def trees(self) -> List[Any]:
        """The Volumes, each with ``shown``, ``read_only``, ``commit`` and ``reload``."""
        return [mounted.tree for mounted in self._mounted]

    def binds(self) -> List[Bind]:
        """Return which directories are to be seen where."""
        return [mounted.bind() for mounted in self._mounted]

    def link(self, reason: ExecutionError) -> None:
        """Show the trees by symbolic links, where this machine allows no mounts.

        Raises:
            ExecutionError: a path cannot be made.
        """
        for mounted in self._mounted:
            mounted.attach_by_helper()
            tree = mounted.tree
            try:
                if os.path.isdir(tree.shown) and not os.listdir(tree.shown):
                    os.rmdir(tree.shown)
                os.makedirs(os.path.dirname(tree.shown), exist_ok=True)
                os.symlink(tree.source, tree.shown)
                self._linked.append(tree.shown)
            except OSError as error:
                raise ExecutionError(
                    f"cannot show the Volume at {tree.shown} ({error.strerror}): choose a path that the "
                    f"container's user may make, or let it mount ({reason})"
                ) from None

    def fill(self) -> None:
        """Put the committed trees in place, and begin to commit what changes.

        Raises:
            ExecutionError: a Volume is gone, the dispatcher is, or there is no space.
        """
        for mounted in self._mounted:
            tree = mounted.tree
            if mounted.reason:
                if os.environ.get("MODAL_VOLUME_FUSE"):
                    raise _not_usable(mounted.reason)
                _say(f"{tree.shown}: all of it is fetched before the container starts: {mounted.reason}")
            began = time.monotonic()
            try:
                if isinstance(mounted.client, ClientBelow):
                    mounted.client.check(tree.volume_id)
                tree.fill()
            except (Refused, OSError, KeyError) as error:
                full = isinstance(error, OSError) and error.errno == errno.ENOSPC
                remedy = "give the Function a larger ephemeral_disk" if full else "see the dispatcher's log"
                raise ExecutionError(f"cannot fill the Volume at {tree.shown} ({error}): {remedy}") from error
            seconds = time.monotonic() - began
            if seconds > 1.0:
                _say(f"filled {tree.shown} in {seconds:.1f} s")
            mounts.add(tree.volume_id, tree)
        # What is served is committed by who serves it.
        if any(not tree.read_only for tree in self.trees if isinstance(tree, VolumeTree)):
            self._thread = threading.Thread(target=self._follow, name="modal-volumes", daemon=True)
            self._thread.start()

    def _follow(self) -> None:
        from ._capture import leave_signals_to_main

        leave_signals_to_main()
        pause = COMMIT_EVERY
        while not self._ending.wait(pause):
            began = time.monotonic()
            for tree in self.trees:
                if isinstance(tree, VolumeTree) and not tree.read_only:
                    self._attempt(tree, tree.commit_settled)
            pause = max(COMMIT_EVERY, _PATIENCE * (time.monotonic() - began))

    def _attempt(self, tree: VolumeTree, commit: Callable[[], None]) -> None:
        try:
            commit()
            self._said.pop(tree.shown, None)
        except Exception as error:
            text = f"cannot commit {tree.shown}: {error}"
            # Once each, not every few seconds.
            if self._said.get(tree.shown) != text:
                self._said[tree.shown] = text
                _say(text)

    def close(self) -> None:
        """Commit for the last time; a failure is said and nothing else."""
        self._ending.set()
        for tree in self.trees:
            if not tree.read_only:
                self._attempt(tree, tree.commit)
        for path in self._linked:
            with contextlib.suppress(OSError):
                os.unlink(path)
        for mounted in self._mounted:
            mounted.close()

    def close_soon(self, told: bool) -> None:
        """Commit for the last time, for a process that is about to be ended whatever it does.

        Args:
            told: whether it was told to end, and is killed soon.
        """
        thread = threading.Thread(target=self.close, daemon=True)
        thread.start()
        thread.join(_LAST_COMMIT if told else _LAST_COMMIT_UNTOLD)


def _wants_fuse(environ: Mapping[str, str]) -> Tuple[bool, str]:
    """Tell whether Volumes are to be file systems of their own here, and why not.

    Raises:
        ExecutionError: they have to be, and cannot.
    """
    wish = environ.get("MODAL_VOLUME_FUSE", "").lower()
    if wish in ("0", "false"):
        return False, ""
    from .fuse.mounting import usable

    able, reason = usable()
    reason = reason and f"FUSE cannot be used here ({reason})"
    if not able and wish:
        raise _not_usable(reason)
    return able, reason


def _not_usable(reason: str) -> ExecutionError:
    return ExecutionError(
        f"MODAL_VOLUME_FUSE asks for Volumes through FUSE, and {reason}: give the container the device and "
        "the right to mount, or take the variable away"
    )


def _say(text: str) -> None:
    sys.stderr.write(f"modal-nomad volumes: {text}\n")
    sys.stderr.flush()
