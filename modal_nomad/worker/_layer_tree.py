"""What a function has changed in its container's file system, as a tar archive and a list of what is gone.

A look before and a look after are compared: no runtime has to be asked, so it works wherever a container
runs, without a right of any kind.
"""

import os
import re
import stat
import tarfile
from contextlib import suppress
from typing import IO, AbstractSet, Dict, Iterable, Iterator, List, Sequence, Tuple

State = Tuple[int, ...]
"""Of a file: mode, owner, group, size, device, and when its content and its entry were last changed.

The last cannot be set by anybody: whoever writes a file and sets its times back is still seen.
"""
_OCTAL = re.compile(r"\\([0-7]{3})")
_NEVER = ("/proc", "/sys", "/dev")
_XATTR = "SCHILY.xattr."
_KEPT_XATTRS = ("user.", "security.capability", "system.posix_acl_")
_PIECE = 1 << 20


class Tree:
    """A file system as it is now.

    Args:
        root: where it begins.
        left_out: paths of which nothing is looked at.
    """

    def __init__(self, root: str, left_out: Iterable[str]) -> None:
        self.root = root
        self.left_out = frozenset(left_out)
        self.states: Dict[str, State] = {path: _state(found) for path, found in self._walk()}

    def _walk(self) -> Iterator[Tuple[str, os.stat_result]]:
        folders = [self.root]
        while folders:
            try:
                entries = os.scandir(folders.pop())
            except OSError:
                # Gone in this moment.
                continue
            with entries:
                for entry in entries:
                    if entry.path in self.left_out:
                        continue
                    try:
                        found = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue
                    yield entry.path, found
                    if stat.S_ISDIR(found.st_mode):
                        folders.append(entry.path)


class Difference:
    """What lies between two looks at one file system.

    Args:
        before: the first one.
        after: the second one.

    Attributes:
        changed: paths that are new or other than they were, each folder before what is in it.
        removed: paths that are no more; what was in a folder goes with it.
    """

    def __init__(self, before: Tree, after: Tree) -> None:
        self._root = after.root
        self.changed = sorted(
            path for path, state in after.states.items() if before.states.get(path) != state
        )
        # What came over something hides it, and it is still there.
        told = {*before.left_out, *after.left_out}
        self.removed: List[str] = []
        for path in sorted(before.states):
            if path not in after.states and not _within(path, told):
                self.removed.append(path)
                told.add(path)

    def names(self) -> List[str]:
        """Return what is removed, by names relative to the root."""
        return [self._name(path) for path in self.removed]

    def write(self, target: "IO[bytes]") -> None:
        """Write what has changed as a tar archive. Raises OSError."""
        linked: Dict[Tuple[int, int], str] = {}
        with tarfile.TarFile(
            fileobj=target, mode="w", format=tarfile.PAX_FORMAT, copybufsize=_PIECE
        ) as archive:
            for path in self.changed:
                with suppress(FileNotFoundError):
                    self._add(archive, path, linked)

    def _add(self, archive: tarfile.TarFile, path: str, linked: Dict[Tuple[int, int], str]) -> None:
        found = os.lstat(path)
        entry = tarfile.TarInfo(self._name(path))
        entry.mode = stat.S_IMODE(found.st_mode)
        entry.uid, entry.gid = found.st_uid, found.st_gid
        entry.mtime = int(found.st_mtime)
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFREG:
            first = linked.setdefault((found.st_dev, found.st_ino), entry.name) if found.st_nlink > 1 else ""
            if first and first != entry.name:
                entry.type, entry.linkname = tarfile.LNKTYPE, first
                archive.addfile(entry)
                return
            entry.size = found.st_size
            entry.pax_headers = _xattrs(path)
            with open(path, "rb") as file:
                archive.addfile(entry, _Exactly(file))
            return
        if kind == stat.S_IFDIR:
            entry.type = tarfile.DIRTYPE
            entry.pax_headers = _xattrs(path)
        elif kind == stat.S_IFLNK:
            entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(path)
        elif kind == stat.S_IFIFO:
            entry.type = tarfile.FIFOTYPE
        else:
            # Sockets end with who listens, and devices are the node's.
            return
        archive.addfile(entry)

    def _name(self, path: str) -> str:
        return os.path.relpath(path, self._root)


class _Exactly:
    """A file that has the bytes which were announced, whoever still writes to it."""

    def __init__(self, file: "IO[bytes]") -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        return data + b"\0" * max(0, size - len(data))


def left_out(shown: Sequence[str]) -> List[str]:
    """Return the paths that are no part of this container's own file system.

    Args:
        shown: where Volumes, NetworkFileSystems and buckets are.
    """
    # A folder above may be a link.
    there = (os.path.join(os.path.realpath(os.path.dirname(x)), os.path.basename(x)) for x in shown)
    found = [*_NEVER, *there]
    with suppress(OSError), open("/proc/self/mountinfo", errors="surrogateescape") as file:
        places = (_OCTAL.sub(lambda x: chr(int(x.group(1), 8)), line.split()[4]) for line in file)
        found += [place for place in places if place != "/"]
    for name in ("NOMAD_ALLOC_DIR", "NOMAD_TASK_DIR", "NOMAD_SECRETS_DIR", "MODAL_RUNTIME_DIR"):
        place = os.environ.get(name, "")
        if os.path.isabs(place) and place != "/":
            found.append(place.rstrip("/"))
    return found


def _state(found: os.stat_result) -> State:
    size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
    times = (found.st_mtime_ns, found.st_ctime_ns)
    return (found.st_mode, found.st_uid, found.st_gid, size, found.st_rdev, *times)


def _within(path: str, folders: AbstractSet[str]) -> bool:
    while True:
        if path in folders:
            return True
        above = os.path.dirname(path)
        if above == path:
            return False
        path = above


def _xattrs(path: str) -> Dict[str, str]:
    found: Dict[str, str] = {}
    with suppress(OSError):
        for name in os.listxattr(path, follow_symlinks=False):
            if name.startswith(_KEPT_XATTRS):
                value = os.getxattr(path, name, follow_symlinks=False)
                found[_XATTR + name] = value.decode("utf-8", "surrogateescape")
    return found
