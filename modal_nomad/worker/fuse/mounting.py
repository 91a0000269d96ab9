"""Mounting a FUSE file system: by mount(2) where this process may, else through ``fusermount3``."""

import array
import contextlib
import errno
import os
import shutil
import socket
import stat
import subprocess
from typing import Tuple

from .. import _mounts
from . import abi

DEVICE = "/dev/fuse"
_KIND = "fuse.modal-volume"
_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_FUSERMOUNT = ("fusermount3", "fusermount")
_PATIENCE = 10


def open_device() -> int:
    """Open the kernel's side. Raises OSError."""
    found = os.stat(DEVICE)
    if not stat.S_ISCHR(found.st_mode):
        raise OSError(errno.ENODEV, f"{DEVICE} is no device")
    return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)


def mount(descriptor: int, path: str, read_only: bool) -> None:
    """Mount at a directory; the kernel asks for nothing before ``Session.begin``. Raises OSError.

    Args:
        descriptor: of ``/dev/fuse``.
        path: a directory.
        read_only: whether nothing may be written.
    """
    options = (
        f"fd={descriptor},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},"
        f"max_read={abi.MAX_DATA},default_permissions,allow_other"
    )
    flags = _MS_NOSUID | _MS_NODEV | (_MS_RDONLY if read_only else 0)
    _mounts.mount("modal-volume", path, _KIND, flags, options)


def read_far_ahead(path: str) -> None:
    """Let the kernel read as far ahead as one request may carry; the mount has to be served by now."""
    with contextlib.suppress(OSError):
        device = os.stat(path).st_dev
        with open(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb", "w") as file:
            file.write(str(abi.MAX_DATA >> 10))


def helper() -> str:
    """Return the program that mounts for those who may not, or an empty string."""
    for name in _FUSERMOUNT:
        found = shutil.which(name)
        if found:
            return found
    return ""


def mount_by_helper(program: str, path: str, read_only: bool) -> int:
    """Mount through ``fusermount3``; returns the kernel's side. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        options = f"fsname=modal-volume,subtype=modal-volume,max_read={abi.MAX_DATA},default_permissions"
        if read_only:
            options += ",ro"
        done = subprocess.run(
            [program, "-o", options, "--", path],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        )
        if done.returncode != 0:
            text = done.stderr.decode("utf-8", "replace").strip()
            raise OSError(errno.EPERM, text or f"{program} ended with {done.returncode}")
        ours.settimeout(_PATIENCE)
        descriptors = array.array("i")
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(descriptors.itemsize))
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(data[: descriptors.itemsize])
    if not descriptors:
        raise OSError(errno.EPROTO, f"{program} gave no descriptor")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def unmount(path: str, program: str) -> None:
    """Take a mount away that ``mount_by_helper`` made, also one in use."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run(
            [program, "-u", "-z", "--", path],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        )


def usable() -> Tuple[bool, str]:
    """Tell whether ``/dev/fuse`` can be opened here, and why not."""
    try:
        os.close(open_device())
    except OSError as error:
        return False, f"{DEVICE}: {error.strerror}"
    return True, ""
