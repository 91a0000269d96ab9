"""The Volumes of a container: shown at their paths, filled, committed while it runs and when it ends."""

import contextlib
import errno
import os
import sys
import tempfile
import threading
import time
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

from ..exception import ExecutionError
from ..wire.spec import VolumeMount
from ..wire.volumes.client import Refused, VolumeClient
from ..wire.volumes.mounted import mounts
from ._session import Settings
from ._volume_cache import from_environment
from ._volume_tree import VolumeTree

COMMIT_EVERY = 5.0
"""Seconds between two background commits; more where looking through the tree takes long."""
_LAST_COMMIT = 5.0
_PATIENCE = 20


class Bind(NamedTuple):
    """A directory of the container that is to be seen at a path.

    Attributes:
        source: the directory.
        path: where user code sees it.
        read_only: whether it may not be written there.
    """

    source: str
    path: str
    read_only: bool


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
        self.trees: List[VolumeTree] = []
        client = VolumeClient(settings.address, settings.token)
        fetch = from_environment(os.environ, client.get_chunk)
        for mount in wanted:
            place = os.path.join(folder, "volumes", mount.volume_id)
            os.makedirs(place, exist_ok=True)
            self.trees.append(VolumeTree(place, mount.path, mount.volume_id, client, fetch, mount.read_only))

    def binds(self) -> List[Bind]:
        """Return which directories are to be seen where."""
        return [Bind(tree.source, tree.shown, tree.read_only) for tree in self.trees]

    def link(self, reason: ExecutionError) -> None:
        """Show the trees by symbolic links, where this machine allows no mounts.

        Raises:
            ExecutionError: a path cannot be made.
        """
        for tree in self.trees:
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
        for tree in self.trees:
            began = time.monotonic()
            try:
                tree.fill()
            except (Refused, OSError, KeyError) as error:
                full = isinstance(error, OSError) and error.errno == errno.ENOSPC
                remedy = "give the Function a larger ephemeral_disk" if full else "see the dispatcher's log"
                raise ExecutionError(f"cannot fill the Volume at {tree.shown} ({error}): {remedy}") from error
            seconds = time.monotonic() - began
            if seconds > 1.0:
                _say(f"filled {tree.shown} in {seconds:.1f} s")
            mounts.add(tree.volume_id, tree)
        if any(not tree.read_only for tree in self.trees):
            self._thread = threading.Thread(target=self._follow, name="modal-volumes", daemon=True)
            self._thread.start()

    def _follow(self) -> None:
        from ._capture import leave_signals_to_main

        leave_signals_to_main()
        pause = COMMIT_EVERY
        while not self._ending.wait(pause):
            began = time.monotonic()
            for tree in self.trees:
                if not tree.read_only:
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

    def close_soon(self) -> None:
        """Commit for the last time, for a process that is about to be ended whatever it does."""
        thread = threading.Thread(target=self.close, daemon=True)
        thread.start()
        thread.join(_LAST_COMMIT)


def _say(text: str) -> None:
    sys.stderr.write(f"modal-nomad volumes: {text}\n")
    sys.stderr.flush()
