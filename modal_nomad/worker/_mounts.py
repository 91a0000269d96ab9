"""The few Linux calls that a private view of the file system needs, through ctypes."""

from __future__ import annotations

import ctypes
import os
from typing import List, Optional, Tuple

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUSER = 0x10000000
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
_MNT_DETACH = 2
_MS_RDONLY = 1
_MS_REMOUNT = 32
_MS_RELATIME = 1 << 21
_ST_RELATIME = 4096
# The same bits for mount(2) and statvfs(3).
_NOSUID, _NODEV, _NOEXEC, _NOATIME, _NODIRATIME = 2, 4, 8, 1024, 2048


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Move this process into new namespaces."""
    _check(_libc().unshare(ctypes.c_int(flags)), "unshare")


def setns(namespace: int, kind: int) -> None:
    """Move this thread into an open namespace."""
    _check(_libc().setns(ctypes.c_int(namespace), ctypes.c_int(kind)), "setns")


def enter_namespace_of(pid: int) -> None:
    """See the file system as another process does. To be called while this one has one thread."""
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(namespace, CLONE_NEWNS)
    finally:
        os.close(namespace)


def mount(source: str, target: str, kind: Optional[str] = None, flags: int = 0, data: str = "") -> None:
    """Mount; the arguments are those of mount(2)."""
    result = _libc().mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        os.fsencode(data) if data else None,
    )
    _check(result, f"mount {kind or 'bind'} on {target}")


def make_read_only(target: str) -> None:
    """Let nothing be written through a bind mount."""
    # What else it is has to be said again: a user namespace may not take it away.
    kept = os.statvfs(target).f_flag & (_NOSUID | _NODEV | _NOEXEC | _NOATIME | _NODIRATIME)
    if os.statvfs(target).f_flag & _ST_RELATIME:
        kept |= _MS_RELATIME
    mount("none", target, flags=MS_BIND | _MS_REMOUNT | _MS_RDONLY | kept)


def unmount(target: str) -> None:
    """Take away the topmost mount at a path."""
    _check(_libc().umount2(os.fsencode(target), ctypes.c_int(_MNT_DETACH)), f"umount {target}")


def change_root(new: str) -> None:
    """Make ``new``, a mount point, the root of this process's mount namespace."""
    libc = _libc()
    os.chdir(new)
    # Both arguments the same: the old root is stacked under the new one, and needs no directory in it.
    _check(libc.pivot_root(b".", b"."), "pivot_root")
    _check(libc.umount2(b".", ctypes.c_int(_MNT_DETACH)), "umount")
    os.chdir("/")


def mount_points() -> List[str]:
    """Return every mount point of this process, in mount order."""
    points = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            point = line.split(" ")[4]
            for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
                point = point.replace(code, char)
            points.append(point)
    return points


def map_user(uid: int, gid: int) -> None:
    """Have a user namespace that this process is new in know this user by the same numbers."""
    # The kernel asks for this order: an unprivileged group map needs setgroups given up first.
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "wb", buffering=0) as out:
            out.write(text.encode())


def enter_private_namespace() -> Tuple[int, int]:
    """Give this process a mount namespace whose changes nobody else sees.

    As root directly, else inside a user namespace that maps this user to itself. Works only while the
    process has one thread.

    Returns:
        The user and group id.
    """
    uid, gid = os.getuid(), os.getgid()
    try:
        unshare(CLONE_NEWNS)
    except PermissionError:
        unshare(CLONE_NEWUSER | CLONE_NEWNS)
        map_user(uid, gid)
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    return uid, gid
