"""The NetworkFileSystems of a container: one directory for all of them, each shown at its path."""

import contextlib
import os
import re
import tempfile
from typing import List, Sequence

from ..exception import ExecutionError
from ..wire.mounts import NfsMount
from ..wire.nfs import MOUNTED_AT
from .files import Bind

_ID = re.compile(r"sv-[0-9A-Za-z]+")


class NetworkFileSystems:
    """The directories that this container shares with others.

    Args:
        wanted: what the Function asks for.
        folder: the directory with all NetworkFileSystems.

    Raises:
        ExecutionError: it is not there.
    """

    def __init__(self, wanted: Sequence[NfsMount], folder: str) -> None:
        if not folder:
            raise ExecutionError(
                "this container was given no shared directory: set one under [nfs] in the dispatcher's"
                " settings, and run or deploy the App again"
            )
        self._folder = folder
        self._binds: List[Bind] = []
        for mount in wanted:
            if not _ID.fullmatch(mount.nfs_id):
                raise ExecutionError(
                    f"{mount.nfs_id!r} is no id of a NetworkFileSystem; publish the App again"
                )
            source = os.path.join(folder, mount.nfs_id)
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(source)
                    # Whoever runs containers elsewhere writes here too.
                    os.chmod(source, 0o777)
            except OSError as error:
                raise ExecutionError(
                    f"the NetworkFileSystem for {mount.path} cannot be used ({error.strerror}: {source}): see"
                    " that the shared directory is mounted on this node, and that containers may write there"
                ) from None
            self._binds.append(Bind(source, mount.path, False))

    def binds(self) -> List[Bind]:
        """Return which directories are to be seen where."""
        if self._folder != MOUNTED_AT:
            return self._binds
        # Last, when its own ones are in place: those of others are nothing to this container.
        empty = tempfile.mkdtemp(prefix="modal-nomad-nfs-")
        return [*self._binds, Bind(empty, MOUNTED_AT, True)]

    def link(self, reason: ExecutionError) -> None:
        """Show them by symbolic links, where this machine allows no mounts; others may use the links, too.

        Raises:
            ExecutionError: a path cannot be made.
        """
        for bind in self._binds:
            try:
                if os.path.islink(bind.path) and os.readlink(bind.path) == bind.source:
                    continue
                if os.path.islink(bind.path) and os.readlink(bind.path).startswith(self._folder + os.sep):
                    # Another App's, at the same path of this machine: only a dead one may go.
                    if os.path.isdir(bind.path):
                        raise ExecutionError(
                            f"another NetworkFileSystem is shown at {bind.path} on this machine, which lets"
                            f" containers mount nothing: choose another path, or let them ({reason})"
                        )
                    os.unlink(bind.path)
                if os.path.isdir(bind.path) and not os.listdir(bind.path):
                    os.rmdir(bind.path)
                os.makedirs(os.path.dirname(bind.path), exist_ok=True)
                with contextlib.suppress(FileExistsError):
                    os.symlink(bind.source, bind.path)
                if os.path.realpath(bind.path) != os.path.realpath(bind.source):
                    raise FileExistsError(17, "something else is there")
            except OSError as error:
                raise ExecutionError(
                    f"cannot show the NetworkFileSystem at {bind.path} ({error.strerror}): choose a path that"
                    f" the container's user may make, or let it mount ({reason})"
                ) from None
