"""A Volume in a directory of the container: filled from commits, looked through for changes."""

import contextlib
import hashlib
import os
import shutil
import stat
import sys
import threading
import time
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Set, Tuple

from ..wire.asking import Refused
from ..wire.volumes.chunks import PARALLEL, ChunkUploader, take_file
from ..wire.volumes.client import Changes, VolumeClient
from ..wire.volumes.entries import (
    CHUNK_BYTES,
    DIRECTORY,
    FILE,
    HOLE,
    REMOVED,
    SYMLINK,
    Entry,
    from_bytes,
    moment,
    to_bytes,
)
from ._in_use import check_unused

_ATTEMPTS = 3
_SAY_EVERY = 10.0
_LONGEST = 4096
"""Bytes of a path that the kernel no longer takes."""

Stamp = Tuple[int, ...]
Known = Tuple[int, int, int, int, bytes]


class VolumeTree:
    """The files of one Volume in one container.

    Args:
        folder: a directory of the container's own, in which the tree stands as ``tree``.
        shown: the path at which user code sees the tree.
        volume_id: ``vo-…``.
        client: asks the dispatcher.
        fetch: gives a chunk by its hash.
        read_only: whether changes here are never committed.
    """

    def __init__(
        self,
        folder: str,
        shown: str,
        volume_id: str,
        client: VolumeClient,
        fetch: Callable[[str], bytes],
        read_only: bool = False,
    ) -> None:
        self.source = os.path.join(folder, "tree")
        self.shown = shown
        self.read_only = read_only
        self.volume_id = volume_id
        self._client = client
        self._fetch = fetch
        self._root = os.fsencode(self.source)
        self._scratch = os.path.join(os.fsencode(folder), b"new")
        os.makedirs(self._root, exist_ok=True)
        os.makedirs(self._scratch, exist_ok=True)
        self._version = 0
        # What is committed at each path, and what the file looked like when that was so.
        self._base: Dict[str, Known] = {}
        self._stamps: Dict[str, Stamp] = {}
        self._odd: Set[str] = set()
        self._emptied: Set[str] = set()
        self._sure: Set[bytes] = set()
        self._lock = threading.RLock()
        self._pool: Any = None

    # --- from commits to files --------------------------------------------------------------------

    def fill(self) -> None:
        """Put the committed tree in place. Raises Refused, OSError."""
        with self._lock:
            self._follow()

    def reload(self) -> None:
        """Commit what changed here, then show what others committed.

        Raises:
            RuntimeError: a file of the tree is in use by this process or its children.
            Refused: the Volume is gone.
            OSError: the dispatcher could not be reached.
        """
        with self._lock:
            check_unused(self.shown, self.source)
            if not self.read_only:
                self._commit(_ATTEMPTS)
            self._follow()

    def _follow(self) -> None:
        fresh = self._version == 0
        seen: Set[str] = set()
        whole, version = fresh, self._version
        said, count, size = time.monotonic(), 0, 0
        try:
            for page in self._client.all_changes(self.volume_id, self._version):
                if page.whole and not whole:
                    # Removals that this container has not seen are forgotten: all of the tree says them.
                    whole = True
                    if seen or count:
                        self._version = 0
                        self._follow()
                        return
                self._apply(page)
                count += len(page.entries)
                size += sum(entry.size for entry in page.entries)
                if whole:
                    seen.update(entry.path for entry in page.entries if entry.kind != REMOVED)
                version = page.version
                if fresh and time.monotonic() - said > _SAY_EVERY:
                    said = time.monotonic()
                    _say(
                        f"filling {self.shown}: {count:,} files, {size >> 20:,} MiB so far; "
                        "the container starts when all of the Volume is here"
                    )
        finally:
            self._sure.clear()
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None
        if whole:
            for path in set(self._base) - seen:
                self._remove(path)
        for path in sorted(self._emptied - set(self._base), reverse=True):
            # One that still has something in it stays: that is not committed yet.
            with contextlib.suppress(OSError):
                os.rmdir(self._path(path))
        self._emptied.clear()
        self._version = version

    def _apply(self, page: Changes) -> None:
        for entry in page.entries:
            if entry.kind == REMOVED:
                self._remove(entry.path)
            elif self._base.get(entry.path) != known(entry):
                self._put(entry)

    def _path(self, path: str) -> bytes:
        return os.path.join(self._root, to_bytes(path))

    def _remove(self, path: str) -> None:
        self._base.pop(path, None)
        self._stamps.pop(path, None)
        place = self._path(path)
        if not self._within(place):
            return
        try:
            os.unlink(place)
        except (IsADirectoryError, PermissionError):
            # When the rest is done: what is in it may be about to be removed as well.
            self._emptied.add(path)
        except (FileNotFoundError, NotADirectoryError):
            return

    def _put(self, entry: Entry) -> None:
        place = self._path(entry.path)
        self._make_parents(os.path.dirname(place))
        if entry.kind == DIRECTORY:
            self._make_directory(place)
            os.chmod(place, entry.mode)
        else:
            new = os.path.join(self._scratch, b"%d" % threading.get_ident())
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new)
            if entry.kind == SYMLINK:
                os.symlink(entry.data, new)
            else:
                self._write(new, entry)
            if os.path.isdir(place) and not os.path.islink(place):
                shutil.rmtree(place)
                self._forget_below(entry.path)
            os.replace(new, place)
        self._base[entry.path] = known(entry)
        self._stamps[entry.path] = _stamp(os.lstat(place))

    def _write(self, place: bytes, entry: Entry) -> None:
        with open(os.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            descriptor = file.fileno()
            if entry.data:
                file.write(entry.data)
                file.flush()
            elif entry.chunks:
                os.ftruncate(descriptor, entry.size)
                self._fill_chunks(descriptor, entry)
            os.fchmod(descriptor, entry.mode)
            os.utime(descriptor, ns=(entry.mtime, entry.mtime))

    def _fill_chunks(self, descriptor: int, entry: Entry) -> None:
        def fill(number: int) -> None:
            data, offset = memoryview(self._fetch(entry.chunks[number])), number * CHUNK_BYTES
            while data:
                written = os.pwrite(descriptor, data, offset)
                data, offset = data[written:], offset + written

        wanted = [number for number, sha in enumerate(entry.chunks) if sha != HOLE]
        if len(wanted) == 1:
            fill(wanted[0])
        elif wanted:
            if self._pool is None:
                from concurrent.futures import ThreadPoolExecutor

                self._pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="modal-chunks")
            list(self._pool.map(fill, wanted))

    def _within(self, place: bytes) -> bool:
        """Tell whether a path's parents are directories of the tree, and no links out of it."""
        folder = os.path.dirname(place)
        while folder != self._root:
            try:
                if not stat.S_ISDIR(os.lstat(folder).st_mode):
                    return False
            except OSError:
                return False
            folder = os.path.dirname(folder)
        return True

    def _make_parents(self, folder: bytes) -> None:
        if folder == self._root or folder in self._sure:
            return
        self._make_parents(os.path.dirname(folder))
        self._make_directory(folder)

    def _make_directory(self, folder: bytes) -> None:
        try:
            os.mkdir(folder, 0o755)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(folder).st_mode):
                # A link would lead out of the tree.
                os.unlink(folder)
                os.mkdir(folder, 0o755)
        self._sure.add(folder)

    def _forget_below(self, path: str) -> None:
        for other in [x for x in self._base if x.startswith(path + "/")]:
            self._base.pop(other, None)
            self._stamps.pop(other, None)
        self._sure = {x for x in self._sure if not x.startswith(self._path(path))}

    # --- from files to commits --------------------------------------------------------------------

    def commit(self) -> None:
        """Commit what changed here; returns when it is on the disk.

        Raises:
            Refused: the Volume is gone, or is mounted for reading only.
            OSError: the dispatcher could not be reached.
        """
        if self.read_only:
            raise Refused("InvalidError", f"the Volume at {self.shown} is mounted for reading only")
        with self._lock:
            self._commit(_ATTEMPTS)

    def commit_settled(self) -> None:
        """Commit what changed here, but leave files that are being written for the next time."""
        with self._lock:
            self._commit(1)

    def _commit(self, attempts: int) -> None:
        uploader = ChunkUploader(self._client.missing, self._client.put_chunk)
        entries: List[Entry] = []
        stamps: Dict[str, Stamp] = {}
        seen: Set[str] = set()
        try:
            for path, place, found in self._walk(self._root, ""):
                seen.add(path)
                stamp = _stamp(found)
                if self._stamps.get(path) == stamp:
                    continue
                described = self._describe(path, place, found, uploader, attempts)
                if described is None:
                    continue
                entry, stamps[path] = described
                if self._base.get(path) != known(entry):
                    entries.append(entry)
            uploader.flush()
        finally:
            uploader.close()
        gone = [path for path in self._base if path not in seen]
        if entries or gone:
            removals = (Entry(path, REMOVED) for path in gone)
            before, version = self._client.commit(self.volume_id, _both(entries, removals))
            if before == self._version:
                # Nobody else committed in between: there is nothing to follow.
                self._version = version
        for entry in entries:
            self._base[entry.path] = known(entry)
        for path in gone:
            del self._base[path]
            self._stamps.pop(path, None)
        self._stamps.update(stamps)

    def _walk(self, folder: bytes, prefix: str) -> Iterator[Tuple[str, bytes, os.stat_result]]:
        try:
            inside = sorted(os.scandir(folder), key=lambda x: x.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        for found in inside:
            path = prefix + from_bytes(found.name)
            if len(to_bytes(path)) > self._client.longest or len(found.path) >= _LONGEST:
                self._leave_out(path, "has too long a path")
                continue
            try:
                status = found.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            kind = stat.S_IFMT(status.st_mode)
            if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
                self._leave_out(path, "is no file, directory or link")
                continue
            yield path, found.path, status
            if kind == stat.S_IFDIR:
                yield from self._walk(found.path, path + "/")

    def _leave_out(self, path: str, why: str) -> None:
        if path not in self._odd:
            self._odd.add(path)
            shown = path if len(path) < 200 else f"{path[:99]}…{path[-99:]}"
            _say(f"{self.shown}/{shown} {why}: it is not committed")

    def _describe(
        self, path: str, place: bytes, found: os.stat_result, uploader: ChunkUploader, attempts: int
    ) -> Optional[Tuple[Entry, Stamp]]:
        """Return an entry and the stamp that goes with it; None for what vanished or is being written."""
        mode = stat.S_IMODE(found.st_mode)
        try:
            if stat.S_ISDIR(found.st_mode):
                return Entry(path, DIRECTORY, mode=mode), _stamp(found)
            if stat.S_ISLNK(found.st_mode):
                target = os.readlink(place)
                mtime = moment(found.st_mtime_ns)
                return Entry(path, SYMLINK, len(target), mtime, 0o777, (), target), _stamp(found)
            with open(os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
                for attempt in range(attempts):
                    before = os.fstat(file.fileno())
                    size, chunks, data = take_file(file.fileno(), before.st_size, uploader)
                    after = os.fstat(file.fileno())
                    if _stamp(before) == _stamp(after) or (attempts > 1 and attempt == attempts - 1):
                        entry = Entry(path, FILE, size, moment(before.st_mtime_ns), mode, chunks, data)
                        return entry, _stamp(before)
            return None
        except PermissionError:
            raise
        except OSError as error:
            if isinstance(error, (FileNotFoundError, NotADirectoryError)) or not os.path.lexists(place):
                return None
            raise


def known(entry: Entry) -> Known:
    """Return what tells an entry from another at the same path, in little memory."""
    if entry.kind == DIRECTORY:
        return (DIRECTORY, 0, 0, entry.mode, b"")
    digest = hashlib.blake2b("".join(entry.chunks).encode() + b"\0" + entry.data, digest_size=16).digest()
    return (entry.kind, entry.size, entry.mtime, entry.mode, digest)


def _both(first: Iterable[Entry], second: Iterable[Entry]) -> Iterator[Entry]:
    yield from first
    yield from second


def _stamp(found: os.stat_result) -> Stamp:
    if stat.S_ISDIR(found.st_mode):
        # Its times change with what is in it.
        return (found.st_mode,)
    return (found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def _say(text: str) -> None:
    sys.stderr.write(f"modal-nomad volumes: {text}\n")
    sys.stderr.flush()
