"""Host volumes where no Nomad mounts them: directories of the embedded dispatcher's home."""

import contextlib
import os
from typing import List, Sequence

from ..exception import ExecutionError
from ..wire.mounts import VolumeMount
from .files import Bind


class HostVolumes:
    """The host volumes of a container.

    Args:
        wanted: what the Function asks for.
        folder: the directory with all host volumes; one that is not there is made.

    Raises:
        ExecutionError: a directory cannot be made.
    """

    def __init__(self, wanted: Sequence[VolumeMount], folder: str) -> None:
        self._binds: List[Bind] = []
        for mount in wanted:
            if not mount.backend:
                continue
            source = os.path.join(folder, mount.source)
            if "/" in mount.source or mount.source in ("", ".", ".."):
                raise ExecutionError(f"{mount.source!r} is no name of a host volume: correct the name")
            try:
                os.makedirs(source, exist_ok=True)
            except OSError as error:
                raise ExecutionError(
                    f"cannot make the host volume {source} ({error.strerror}): make that directory, or a link"
                ) from None
            self._binds.append(Bind(source, mount.path, mount.read_only))

    def binds(self) -> List[Bind]:
        """Return which directories are to be seen where."""
        return self._binds

    def link(self, reason: ExecutionError) -> None:
        """Show them by symbolic links, where this machine allows no mounts. Raises ExecutionError."""
        for bind in self._binds:
            if bind.read_only:
                raise ExecutionError(f"cannot show {bind.path} for reading only: {reason}")
            try:
                with contextlib.suppress(OSError):
                    os.rmdir(bind.path)
                os.makedirs(os.path.dirname(bind.path), exist_ok=True)
                os.symlink(bind.source, bind.path)
            except OSError as error:
                raise ExecutionError(
                    f"cannot show the host volume at {bind.path} ({error.strerror}): choose another path, or"
                    f" let the container mount ({reason})"
                ) from None
