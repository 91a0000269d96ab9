"""The chunks that this node has fetched, for its later containers: a directory with a limit on its size."""

import contextlib
import errno
import hashlib
import os
import stat
import tempfile
import threading
from typing import Callable, Iterator, Mapping, Optional, Tuple, Union

DEFAULT_MIB = 10240
_NO_LIMIT = 1 << 62
_LOOK_EVERY = 64 << 20
"""Bytes that one container adds between two looks at the size of the whole."""


def from_environment(environ: Mapping[str, str], fetch: Callable[[str], bytes]) -> "Optional[ChunkCache]":
    """Return the node's cache of chunks, where there is one.

    Args:
        environ: ``MODAL_VOLUME_CACHE_MIB`` is the limit, 0 for no cache, and ``MODAL_VOLUME_CACHE_DIR`` the
            place. A dispatcher on this machine has the chunks here anyway: then there is none by default.
        fetch: asks the dispatcher.
    """
    address = environ.get("MODAL_SERVER_URL", "")
    # A relay's socket has a dispatcher of the network behind it.
    here = address.startswith("unix://") and "?" not in address
    limit = 0 if here and not environ.get("MODAL_VOLUME_CACHE_MIB") else _limit(environ)
    directory = cache_directory(environ)
    if limit <= 0 or not _own(directory):
        return None
    return ChunkCache(directory, limit, fetch)


def of_container(folder: str, environ: Mapping[str, str], fetch: Callable[[str], bytes]) -> "ChunkCache":
    """Return a cache for one container alone, for what would otherwise be fetched at every look.

    Args:
        folder: a directory of the container's own.
        environ: as for ``from_environment``; the limit holds here as well, unless it is 0.
        fetch: asks the dispatcher.
    """
    directory = os.path.join(folder, "chunks")
    os.makedirs(directory, mode=0o700, exist_ok=True)
    found = os.statvfs(directory)
    # The container's own files want room as well.
    room = found.f_bavail * found.f_frsize // 2
    return ChunkCache(directory, min(_limit(environ) or DEFAULT_MIB << 20, room), fetch)


def _limit(environ: Mapping[str, str]) -> int:
    try:
        return int(environ.get("MODAL_VOLUME_CACHE_MIB") or DEFAULT_MIB) << 20
    except ValueError:
        return DEFAULT_MIB << 20


def cache_directory(environ: Mapping[str, str]) -> str:
    """Return where this node keeps chunks."""
    return environ.get("MODAL_VOLUME_CACHE_DIR") or _default_directory(environ)


def _default_directory(environ: Mapping[str, str]) -> str:
    base = "/var/cache"
    if not os.access(base, os.W_OK):
        base = environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "modal-nomad", "chunks")


def _own(directory: str) -> bool:
    """Make the directory; False where it cannot be used, or somebody else could have filled it."""
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        found = os.lstat(directory)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


class ChunkCache:
    """Chunks in a directory that containers share. Those unused for longest are removed first.

    Args:
        directory: this user's own.
        limit: bytes that it may hold, about.
        fetch: gives what is not in it.
    """

    def __init__(self, directory: str, limit: int, fetch: Callable[[str], bytes]) -> None:
        self._directory = directory
        self._limit = limit
        self._fetch = fetch
        self._lock = threading.Lock()
        self._added = 0

    def get(self, sha: str) -> bytes:
        """Return a chunk. Raises what ``fetch`` raises."""
        found = self._read(sha)
        if found is not None:
            os.close(found[0])
            return found[1]
        data = self._fetch(sha)
        descriptor = self._keep(sha, data)
        if descriptor is not None:
            os.close(descriptor)
        return data

    def open(self, sha: str) -> Union[int, bytes]:
        """Return a chunk's descriptor, or the chunk where the disk is full. Raises what ``fetch`` raises."""
        found = self._read(sha)
        if found is not None:
            return found[0]
        data = self._fetch(sha)
        descriptor = self._keep(sha, data)
        return data if descriptor is None else descriptor

    def _path(self, sha: str) -> str:
        return os.path.join(self._directory, sha[:2], sha)

    def _read(self, sha: str) -> Optional[Tuple[int, bytes]]:
        path = self._path(sha)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read()
            if hashlib.sha256(data).hexdigest() == sha:
                # Removed by another container since, it is here all the same.
                with contextlib.suppress(OSError):
                    os.utime(path)
                return descriptor, data
        except OSError:
            pass
        os.close(descriptor)
        with contextlib.suppress(OSError):
            os.unlink(path)
        return None

    def _keep(self, sha: str, data: bytes) -> Optional[int]:
        """Keep a chunk and return its descriptor; None on a node without space left, which does without."""
        try:
            descriptor = self._write(sha, data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._halve():
                return None
            # A disk smaller than the limit: what was used lately is worth more than what was there first.
            try:
                descriptor = self._write(sha, data)
            except OSError:
                return None
        with self._lock:
            self._added += len(data)
            full = self._added >= min(_LOOK_EVERY, self._limit // 16)
            if full:
                self._added = 0
        if full:
            self.trim()
        return descriptor

    def _write(self, sha: str, data: bytes) -> int:
        path = self._path(sha)
        name = ""
        descriptor = -1
        try:
            # Somebody may have removed it meanwhile.
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self._directory)
            with open(descriptor, "wb", closefd=False) as file:
                file.write(data)
            # Where the limit is small, another container may have removed it already.
            with contextlib.suppress(FileNotFoundError):
                os.replace(name, path)
        except OSError:
            if descriptor >= 0:
                os.close(descriptor)
                with contextlib.suppress(OSError):
                    os.unlink(name)
            raise
        return descriptor

    def trim(self) -> None:
        """Remove the chunks unused for longest until the rest is within the limit."""
        with self._alone() as alone:
            if alone:
                self._trim(self._limit)

    def clear(self) -> bool:
        """Remove all chunks; False where there are none."""
        return self._trim(0) > 0

    def _halve(self) -> bool:
        """Remove the chunks unused for longest, half of all; False where another container is at it."""
        with self._alone() as alone:
            return alone and self._trim(self._trim(_NO_LIMIT) // 2) > 0

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        import fcntl

        try:
            folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            yield False
            return
        try:
            alone = True
            try:
                # One that is locked has another container at it.
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                alone = False
            yield alone
        finally:
            os.close(folder)

    def _trim(self, limit: int) -> int:
        """Return how many bytes were there."""
        files = []
        for folder, _, names in os.walk(self._directory):
            for name in names:
                path = os.path.join(folder, name)
                with contextlib.suppress(OSError):
                    found = os.lstat(path)
                    files.append((found.st_mtime_ns, found.st_size, path))
        total = before = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= limit:
                break
            # What a killed container left half written is among them.
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= size
        return before
