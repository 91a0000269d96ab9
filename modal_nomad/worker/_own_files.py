"""Files and directories of an Image in a container whose file system is its own: they are just written."""

import os
from contextlib import suppress
from typing import Sequence

from ..exception import ExecutionError
from ..wire.spec import FunctionSpec, MountedFile
from .files import Bind, Fetch, by_path, show, write

AT_ONCE = 1000
"""Files whose contents are in memory together."""


def put(
    files: Sequence[MountedFile], fetch: Fetch, *, directories: Sequence[str] = (), binds: Sequence[Bind] = ()
) -> None:
    """Put files in place, make directories, show others; the parameters are those of ``files.place``.

    Raises:
        ExecutionError: the container may not; the text names the remedy.
    """
    wanted = by_path(files)
    for directory in (*directories, *(bind.path for bind in binds)):
        try:
            os.makedirs(directory, exist_ok=True)
        except OSError as error:
            raise ExecutionError(
                f"cannot make {directory} in the container ({error.strerror}): choose another path"
            ) from None
    items = list(wanted.items())
    for start in range(0, len(items), AT_ONCE):
        part = items[start : start + AT_ONCE]
        contents = fetch([*{file.blob: None for _, file in part}])
        for path, file in part:
            write(path, contents[file.blob], file.mode)
    for bind in binds:
        if bind.attach is None or not bind.attach():
            show(bind)


def check_mounted(spec: FunctionSpec) -> None:
    """See that the runtime has mounted the NetworkFileSystems, each at its path. Raises ExecutionError."""
    for mount in spec.network_file_systems:
        if not os.path.ismount(mount.path):
            raise ExecutionError(
                "this container was given no shared directory: set one under [nfs] in the dispatcher's"
                " settings, and run or deploy the App again"
            )
        for volume in spec.volumes:
            if mount.path.startswith(volume.path.rstrip("/") + "/"):
                raise ExecutionError(
                    f"the Volume at {volume.path} would hide the NetworkFileSystem at {mount.path}: in"
                    " container images neither can stand in the other, so choose another path for one"
                )
        with suppress(OSError):
            # Whoever runs containers elsewhere writes here too.
            os.chmod(mount.path, 0o777)
