"""The chunks that this node has fetched, for its later containers: a directory with a limit on its size."""

import contextlib
import hashlib
import os
import stat
import tempfile
from typing import Callable, Mapping, Optional

DEFAULT_MIB = 10240
_LOOK_EVERY = 256 << 20
"""Bytes that one container adds between two looks at the size of the whole."""


def from_environment(environ: Mapping[str, str], fetch: Callable[[str], bytes]) -> Callable[[str], bytes]:
    """Return what gives a chunk by its hash: through the node's cache, where there is one.

    Args:
        environ: ``MODAL_VOLUME_CACHE_MIB`` is the limit, 0 for no cache, and ``MODAL_VOLUME_CACHE_DIR`` the
            place. A dispatcher on this machine has the chunks here anyway: then there is none by default.
        fetch: asks the dispatcher.
    """
    here = environ.get("MODAL_SERVER_URL", "").startswith("unix://")
    try:
        limit = int(environ.get("MODAL_VOLUME_CACHE_MIB") or (0 if here else DEFAULT_MIB)) << 20
    except ValueError:
        limit = DEFAULT_MIB << 20
    directory = environ.get("MODAL_VOLUME_CACHE_DIR") or _default_directory(environ)
    if limit <= 0 or not _own(directory):
        return fetch
    return ChunkCache(directory, limit, fetch).get


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
        self._added = 0

    def get(self, sha: str) -> bytes:
        """Return a chunk. Raises what ``fetch`` raises."""
        found = self._read(sha)
        if found is not None:
            return found
        data = self._fetch(sha)
        # A node without space left works without a cache.
        with contextlib.suppress(OSError):
            self._keep(sha, data)
        return data

    def _path(self, sha: str) -> str:
        return os.path.join(self._directory, sha[:2], sha)

    def _read(self, sha: str) -> Optional[bytes]:
        path = self._path(sha)
        try:
            with open(path, "rb") as file:
                data = file.read()
            os.utime(path)
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest() == sha:
            return data
        with contextlib.suppress(OSError):
            os.unlink(path)
        return None

    def _keep(self, sha: str, data: bytes) -> None:
        path = self._path(sha)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self._directory)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
        self._added += len(data)
        if self._added >= min(_LOOK_EVERY, self._limit // 4):
            self._added = 0
            self.trim()

    def trim(self) -> None:
        """Remove the chunks unused for longest until the rest is within the limit."""
        files = []
        for folder, _, names in os.walk(self._directory):
            for name in names:
                path = os.path.join(folder, name)
                with contextlib.suppress(OSError):
                    found = os.lstat(path)
                    files.append((found.st_mtime_ns, found.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._limit:
                return
            # Another container may have been quicker.
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= size
