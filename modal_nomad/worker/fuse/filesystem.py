"""What the kernel may ask of a Volume's tree, and the answers."""

import errno
import os
import stat
import threading
import time
from typing import Any, Callable, Dict, List, Tuple

from ...wire.volumes.entries import DIRECTORY, FILE, SYMLINK, moment
from . import abi
from .abi import Request
from .chunks import Chunk, Chunks
from .contents import Contents
from .files import MAX_SIZE, Files
from .listing import Listing
from .nodes import SPECIAL, Node, Tree, Unlisted
from .session import NOTHING, Later, Session

_MASK = (1 << 64) - 1
_BILLION = 10**9
_MAX_TARGET = 4095
_BLOCK = 128 << 10
"""What programs are told to read and write at a time: each time is a switch to this process and back."""


class FileSystem:
    """Answers the kernel from a tree and its contents.

    Args:
        session: the mount's.
        tree: what stands where.
        contents: of the files.
        chunks: what is fetched.
        listing: fetches names that are not here.
        lock: held while the tree is looked at or changed.
        folder: whose free space is said to be the Volume's.
    """

    def __init__(
        self,
        session: Session,
        tree: Tree,
        contents: Contents,
        chunks: Chunks,
        listing: Listing,
        lock: threading.RLock,
        folder: str,
    ) -> None:
        self._session = session
        self._listing = listing
        self._tree = tree
        self._contents = contents
        self._lock = lock
        self._folder = folder
        self._owner = os.getuid(), os.getgid()
        self.files = Files(session, tree, contents, chunks, lock, self._let_go)
        self._listings: Dict[int, List[Tuple[bytes, Node]]] = {}
        self._last = 0

    def handlers(self) -> Dict[int, Callable[[Request], Any]]:
        """Return what answers each kind of request."""
        locked: Dict[int, Callable[[Request], Any]] = {
            abi.LOOKUP: self._lookup,
            abi.FORGET: self._forget,
            abi.BATCH_FORGET: self._batch_forget,
            abi.GETATTR: lambda request: self._attributes(self._tree.node(request.nodeid)),
            abi.SETATTR: self._setattr,
            abi.READLINK: self._readlink,
            abi.SYMLINK: self._symlink,
            abi.MKNOD: self._mknod,
            abi.MKDIR: self._mkdir,
            abi.UNLINK: self._unlink,
            abi.RMDIR: self._rmdir,
            abi.RENAME: self._rename,
            abi.RENAME2: self._rename,
            abi.LINK: self._link,
            abi.CREATE: self._create,
            abi.OPENDIR: self._opendir,
            abi.READDIR: self._readdir,
            abi.READDIRPLUS: self._readdir,
            abi.RELEASEDIR: self._releasedir,
            abi.STATFS: self._statfs,
        }
        locked.update(self.files.handlers())
        return {opcode: self._locked(handler) for opcode, handler in locked.items()}

    def _locked(self, handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
        lock = self._lock

        def work(request: Request) -> Any:
            try:
                with lock:
                    return handler(request)
            except Unlisted as wanted:
                return self._when_listed(request, handler, wanted)

        return work

    def _when_listed(self, request: Request, handler: Callable[[Request], Any], wanted: Unlisted) -> Later:
        """Answer when names are here that a handler, which has changed nothing yet, asks for."""
        unique = request.unique
        kept = request._replace(body=memoryview(bytes(request.body)))

        def failed(number: int) -> None:
            self._session.fail_late(unique, number)

        def ready() -> None:
            try:
                with self._lock:
                    if not self._session.wanted(unique):
                        return
                    answer = handler(kept)
            except Unlisted as again:
                self._listing.when_here(again, ready, failed)
            except OSError as error:
                failed(error.errno or errno.EIO)
            else:
                self._session.answer_late(unique, answer)

        later = self._session.postpone(unique)
        self._listing.when_here(wanted, ready, failed)
        return later

    # --- what a node is ---------------------------------------------------------------------------

    def _attr(self, node: Node) -> bytes:
        seconds, rest = divmod(node.mtime, _BILLION)
        changed, rest_changed = divmod(node.ctime, _BILLION)
        uid, gid = self._tree.owners.get(node.ino, self._owner) if self._tree.owners else self._owner
        seconds &= _MASK
        return abi.ATTR.pack(
            node.ino,
            node.size,
            self._contents.blocks(node) if node.kind == FILE else 0,
            seconds,
            seconds,
            changed & _MASK,
            rest,
            rest,
            rest_changed,
            stat.S_IMODE(node.mode) | node.format(),
            self._tree.links(node),
            uid,
            gid,
            node.content if node.kind == SPECIAL else 0,
            _BLOCK,
            0,
        )

    def _attributes(self, node: Node) -> bytes:
        return abi.ATTR_HEAD.pack(abi.FOR_EVER, 0, 0) + self._attr(node)

    def _entry(self, node: Node) -> bytes:
        self._tree.told(node)
        return abi.ENTRY_HEAD.pack(node.ino, 0, abi.FOR_EVER, abi.FOR_EVER, 0, 0) + self._attr(node)

    def _lookup(self, request: Request) -> bytes:
        _, node = self._tree.child(request.nodeid, bytes(request.body[:-1]))
        if node is None:
            # Remembered by the kernel: programs look for many files that are not there.
            return abi.ENTRY_HEAD.pack(0, 0, abi.FOR_EVER, 0, 0, 0) + bytes(abi.ATTR.size)
        return self._entry(node)

    def _forget(self, request: Request) -> Later:
        self._forgotten(request.nodeid, abi.U64.unpack_from(request.body)[0])
        return NOTHING

    def _batch_forget(self, request: Request) -> Later:
        for number, count in abi.FORGET_ONE.iter_unpack(request.body[8:]):
            self._forgotten(number, count)
        return NOTHING

    def _forgotten(self, number: int, count: int) -> None:
        gone = self._tree.forgotten(number, count)
        if gone is not None:
            self._contents.drop(gone)

    def _let_go(self, node: Node) -> None:
        if node.lookups == 0 and node.opens == 0:
            self._tree.known.pop(node.ino, None)
        if self._tree.is_gone(node) and node.kind == FILE:
            self._contents.drop(node)

    def _setattr(self, request: Request) -> Any:
        found = abi.SETATTR_IN.unpack_from(request.body)
        valid, size = found[0], found[3]
        mtime = found[6] - (1 << 64) if found[6] >> 63 else found[6]
        mtime = mtime * _BILLION + found[9]
        mode, uid, gid = found[11], found[13], found[14]
        node = self._tree.node(request.nodeid)

        def do(chunks: Dict[bytes, Chunk]) -> bytes:
            now = time.time_ns()
            if valid & (abi.FATTR_MODE | abi.FATTR_SIZE | abi.FATTR_MTIME | abi.FATTR_MTIME_NOW):
                self._tree.touch(node)
            if valid & abi.FATTR_SIZE:
                if size > MAX_SIZE:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
                self._contents.resize(node, size, chunks)
                node.mtime = now
            if valid & abi.FATTR_MODE:
                node.mode = mode & 0o7777 if node.kind != SPECIAL else mode
            if valid & abi.FATTR_MTIME_NOW:
                node.mtime = now
            elif valid & abi.FATTR_MTIME:
                node.mtime = moment(mtime)
            if valid & (abi.FATTR_UID | abi.FATTR_GID):
                before = self._tree.owners.get(node.ino, self._owner)
                self._tree.owners[node.ino] = (
                    uid if valid & abi.FATTR_UID else before[0],
                    gid if valid & abi.FATTR_GID else before[1],
                )
            node.ctime = now
            return self._attributes(node)

        return self.files.with_chunks(request, do)

    def _readlink(self, request: Request) -> bytes:
        node = self._tree.node(request.nodeid)
        if node.kind != SYMLINK:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        target: bytes = node.content
        return target

    # --- names ------------------------------------------------------------------------------------

    def _free(self, number: int, name: bytes) -> Node:
        """Return the directory for a new name; note that something will be there. Raises OSError."""
        parent, there = self._tree.child(number, name)
        if there is not None:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        if parent.parent is None and parent is not self._tree.root:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        self._tree.touch_path(self._tree.new_path(parent, name), None)
        parent.mtime = parent.ctime = time.time_ns()
        return parent

    def _make(self, request: Request, name: bytes, kind: int, mode: int, content: Any = None) -> Node:
        parent = self._free(request.nodeid, name)
        size = len(content) if kind == SYMLINK else 0
        node = self._tree.new(kind, mode, size, parent.mtime, content)
        owner = request.uid, request.gid
        if owner != self._owner:
            self._tree.owners[node.ino] = owner
        self._tree.add(parent, name, node)
        return node

    def _symlink(self, request: Request) -> bytes:
        name, target = abi.names(request.body)
        if len(target) > _MAX_TARGET:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return self._entry(self._make(request, name, SYMLINK, 0o777, target))

    def _mknod(self, request: Request) -> bytes:
        mode, device, _, _ = abi.MKNOD_IN.unpack_from(request.body)
        (name,) = abi.names(request.body, abi.MKNOD_IN.size)
        if stat.S_ISREG(mode):
            return self._entry(self._make(request, name, FILE, stat.S_IMODE(mode)))
        return self._entry(self._make(request, name, SPECIAL, mode, device))

    def _mkdir(self, request: Request) -> bytes:
        mode, _ = abi.MKDIR_IN.unpack_from(request.body)
        (name,) = abi.names(request.body, abi.MKDIR_IN.size)
        return self._entry(self._make(request, name, DIRECTORY, stat.S_IMODE(mode)))

    def _there(self, number: int, name: bytes) -> Tuple[Node, Node]:
        parent, node = self._tree.child(number, name)
        if node is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return parent, node

    def _unlink(self, request: Request) -> bytes:
        name = bytes(request.body[:-1])
        parent, node = self._there(request.nodeid, name)
        if node.kind == DIRECTORY:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        self._remove(parent, name, node)
        return b""

    def _rmdir(self, request: Request) -> bytes:
        name = bytes(request.body[:-1])
        parent, node = self._there(request.nodeid, name)
        self._check_empty(node)
        self._remove(parent, name, node)
        return b""

    @staticmethod
    def _check_empty(node: Node) -> None:
        if node.children is None:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if node.children:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        if node.rest is not None:
            raise Unlisted(node)

    def _remove(self, parent: Node, name: bytes, node: Node) -> None:
        self._tree.touch_path(self._tree.path(parent, name), node)
        self._tree.take(parent, name)
        parent.mtime = parent.ctime = node.ctime = time.time_ns()
        self._let_go(node)

    def _rename(self, request: Request) -> bytes:
        flags = 0
        if request.opcode == abi.RENAME2:
            target, flags, _ = abi.RENAME2_IN.unpack_from(request.body)
            start = abi.RENAME2_IN.size
        else:
            (target,) = abi.RENAME_IN.unpack_from(request.body)
            start = abi.RENAME_IN.size
        old_name, new_name = abi.names(request.body, start)
        old, node = self._there(request.nodeid, old_name)
        new, there = self._tree.child(target, new_name)
        if flags & ~abi.RENAME_NOREPLACE:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if there is node:
            return b""
        if there is not None:
            if flags & abi.RENAME_NOREPLACE:
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            if node.kind == DIRECTORY:
                self._check_empty(there)
            elif there.kind == DIRECTORY:
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if node.kind == DIRECTORY:
            # Their paths change, and a commit names each.
            self._tree.need_all_below(node)
        self._tree.new_path(new, new_name, node)
        gone = self._tree.move(old, old_name, new, new_name)
        old.mtime = old.ctime = new.mtime = new.ctime = node.ctime = time.time_ns()
        if gone is not None:
            self._let_go(gone)
        return b""

    def _link(self, request: Request) -> bytes:
        (number,) = abi.U64.unpack_from(request.body)
        (name,) = abi.names(request.body, abi.U64.size)
        node = self._tree.node(number)
        if node.parent is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        parent = self._free(request.nodeid, name)
        self._tree.add(parent, name, node)
        node.ctime = parent.mtime
        return self._entry(node)

    def _create(self, request: Request) -> bytes:
        flags, mode, _, _ = abi.CREATE_IN.unpack_from(request.body)
        (name,) = abi.names(request.body, abi.CREATE_IN.size)
        there = self._tree.child(request.nodeid, name)[1]
        if there is None or flags & os.O_EXCL:
            there = self._make(request, name, FILE, stat.S_IMODE(mode))
        elif there.kind != FILE:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        # It may have come by a reload since the kernel looked.
        opened = self.files.open(there, flags)
        return self._entry(there) + opened

    # --- directories ------------------------------------------------------------------------------

    def _opendir(self, request: Request) -> bytes:
        node, children = self._tree.directory(request.nodeid)
        if node.rest is not None:
            raise Unlisted(node)
        self._last += 1
        self._listings[self._last] = [(b".", node), (b"..", node.parent or node), *children.items()]
        return abi.OPEN_OUT.pack(self._last, 0, 0)

    def _releasedir(self, request: Request) -> bytes:
        self._listings.pop(abi.U64.unpack_from(request.body)[0], None)
        return b""

    def _readdir(self, request: Request) -> bytes:
        number, offset, size = abi.READ_IN.unpack_from(request.body)
        listing = self._listings.get(number)
        if listing is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        plus = request.opcode == abi.READDIRPLUS
        parts: List[bytes] = []
        for place in range(offset, len(listing)):
            name, node = listing[place]
            line = abi.dirent(node.ino, place + 1, node.format(), name)
            size -= len(line) + (abi.ENTRY_HEAD.size + abi.ATTR.size if plus else 0)
            if size < 0:
                break
            if plus:
                # The kernel does not remember the first two; what was moved since is no longer here.
                known = place > 1 and node.parent is listing[0][1] and node.name == name
                parts.append(self._entry(node) if known else bytes(abi.ENTRY_HEAD.size + abi.ATTR.size))
            parts.append(line)
        return b"".join(parts)

    def _statfs(self, request: Request) -> bytes:
        found = os.statvfs(self._folder)
        return abi.STATFS_OUT.pack(
            found.f_blocks,
            found.f_bfree,
            found.f_bavail,
            found.f_files,
            found.f_ffree,
            found.f_bsize,
            255,
            found.f_frsize,
            0,
        )
