"""The kernel's FUSE interface, version 7: numbers and layouts of what ``/dev/fuse`` carries."""

import struct
from typing import NamedTuple

MAJOR = 7
MINOR = 31
"""The newest version that is spoken here; the kernel keeps to it."""
OLDEST_MINOR = 23
ROOT = 1
MAX_DATA = 1 << 20
"""Bytes of one read or write."""
MAX_PAGES = MAX_DATA // 4096
FOR_EVER = 1 << 30
"""Seconds that the kernel may keep names and attributes: all changes go through it, or are told to it."""

LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK = 1, 2, 3, 4, 5, 6
MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE = 8, 9, 10, 11, 12, 13, 14, 15, 16
STATFS, RELEASE, FSYNC, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, FSYNCDIR = (
    17, 18, 20, 25, 26, 27, 28, 29, 30,
)  # fmt: skip
CREATE, INTERRUPT, DESTROY, BATCH_FORGET, FALLOCATE, READDIRPLUS, RENAME2, LSEEK = (
    35, 36, 38, 42, 43, 44, 45, 46,
)  # fmt: skip

ASYNC_READ = 1 << 0
BIG_WRITES = 1 << 5
DO_READDIRPLUS = 1 << 13
READDIRPLUS_AUTO = 1 << 14
PARALLEL_DIROPS = 1 << 18
MAX_PAGES_FLAG = 1 << 22
WANTED = ASYNC_READ | BIG_WRITES | DO_READDIRPLUS | READDIRPLUS_AUTO | PARALLEL_DIROPS | MAX_PAGES_FLAG

FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE = 1, 2, 4, 8
FATTR_MTIME, FATTR_MTIME_NOW = 32, 256
FOPEN_KEEP_CACHE = 2
RENAME_NOREPLACE = 1
FALLOC_KEEP_SIZE = 1
NOTIFY_INVAL_INODE, NOTIFY_INVAL_ENTRY = 2, 3

IN_HEADER = struct.Struct("=IIQQIIIHH")
OUT_HEADER = struct.Struct("=IiQ")
INIT_IN = struct.Struct("=IIII")
INIT_OUT = struct.Struct("=IIIIHHIIHH32x")
ATTR = struct.Struct("=6Q10I")
ENTRY_HEAD = struct.Struct("=QQQQII")
ATTR_HEAD = struct.Struct("=QII")
OPEN_OUT = struct.Struct("=QII")
SETATTR_IN = struct.Struct("=II6Q3I5I")
READ_IN = struct.Struct("=QQI")
"""Of READ, READDIR, READDIRPLUS and WRITE: the fields that are looked at, from 40 bytes."""
READ_SIZE = 40
CREATE_IN = struct.Struct("=4I")
MKNOD_IN = struct.Struct("=4I")
MKDIR_IN = struct.Struct("=2I")
RENAME_IN = struct.Struct("=Q")
RENAME2_IN = struct.Struct("=QII")
U64 = struct.Struct("=Q")
U32_PAIR = struct.Struct("=II")
FORGET_ONE = struct.Struct("=QQ")
FALLOCATE_IN = struct.Struct("=QQQII")
LSEEK_IN = struct.Struct("=QQII")
STATFS_OUT = struct.Struct("=5Q4I24x")
DIRENT = struct.Struct("=QQII")
INVAL_INODE = struct.Struct("=Qqq")
INVAL_ENTRY = struct.Struct("=QII")


class Request(NamedTuple):
    """What the kernel asks.

    Attributes:
        opcode: what for.
        unique: the request's number.
        nodeid: what about.
        uid: who asks.
        gid: whose group.
        body: the rest. It stands in the reader's buffer: take a copy of what is needed after the answer.
    """

    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    body: memoryview


def names(body: memoryview, start: int = 0) -> "list[bytes]":
    """Return the names, each ended by a zero byte, that stand at the end of a request."""
    return bytes(body[start:]).split(b"\0")[:-1]


def dirent(ino: int, following: int, kind: int, name: bytes) -> bytes:
    """Return a directory's entry.

    Args:
        ino: the inode's number.
        following: where to read on after this one.
        kind: the file type's bits of ``st_mode``.
        name: of the entry.
    """
    head = DIRENT.pack(ino, following, len(name), kind >> 12)
    return head + name + bytes(-(len(head) + len(name)) % 8)
