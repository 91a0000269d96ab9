"""Content-addressed blobs in a directory: payloads above 2 MiB, code bundles, runtimes, pickles.

A blob's name is the SHA-256 of its bytes, so writing one twice is harmless and a reader never sees a
half: a blob appears under its name complete and synced, or not at all.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import tempfile
import threading
import time
from collections.abc import AsyncIterable, Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

_SHA = re.compile(r"[0-9a-f]{64}")
_FLUSH = 1 << 20
_TEMPORARY = "incoming"


class BlobError(Exception):
    """A blob was refused; the text says why."""


class BlobMissing(BlobError, KeyError):
    """No such blob is here."""

    def __str__(self) -> str:
        return str(self.args[0])


class BlobStore:
    """A directory of blobs. The coroutines do their file work on threads."""

    def __init__(self, directory: str | os.PathLike[str], *, clock: Callable[[], float] = time.time) -> None:
        self.directory = Path(directory)
        self._clock = clock
        # Held for one file at a time: none is removed between the look at its age and its renewal.
        self._ages = threading.Lock()

    def path(self, sha: str) -> Path:
        """Return where a blob stands, or would. Raises BlobError for what is no SHA-256 in hex."""
        if not _SHA.fullmatch(sha):
            raise BlobError(f"{sha[:80]!r} is no blob name: 64 lower-case hex digits are expected")
        return self.directory / sha[:2] / sha[2:4] / sha

    async def exists(self, sha: str) -> bool:
        """Say whether a blob is here."""
        return await asyncio.to_thread(self.path(sha).is_file)

    async def missing(self, hashes: Iterable[str]) -> list[str]:
        """Return which of these blobs are not here, in order, and keep the others from collection.

        A client that is told it need not upload a blob relies on it: its age starts anew.
        """
        paths = [(sha, self.path(sha)) for sha in dict.fromkeys(hashes)]
        return await asyncio.to_thread(lambda: [sha for sha, path in paths if not self._touch(path)])

    async def put(self, data: bytes, sha: str | None = None) -> str:
        """Keep bytes and return their SHA-256; BlobError when it is not the one announced."""
        return await asyncio.to_thread(self._put, data, sha)

    async def put_stream(
        self, chunks: AsyncIterable[bytes], sha: str | None = None, *, max_size: int | None = None
    ) -> str:
        """Keep what a stream yields, like ``put``. Nothing remains of one that breaks off."""
        if sha is not None:
            self.path(sha)
        target = await asyncio.to_thread(self._temporary)
        try:
            digest, size, pending = hashlib.sha256(), 0, bytearray()
            async for chunk in chunks:
                size += len(chunk)
                if max_size is not None and size > max_size:
                    raise BlobError(f"the blob is larger than the {max_size} bytes allowed here")
                pending += chunk
                if len(pending) >= _FLUSH:
                    await asyncio.to_thread(_append, target, digest.update, bytes(pending))
                    pending.clear()
            await asyncio.to_thread(_append, target, digest.update, bytes(pending))
            return await asyncio.to_thread(self._keep, target, digest.hexdigest(), sha)
        finally:
            # A no-op after success: the file was closed and renamed.
            await asyncio.shield(asyncio.to_thread(_discard, target))

    async def get(self, sha: str) -> bytes:
        """Return a blob's bytes. Raises BlobMissing."""
        path = self.path(sha)
        try:
            return await asyncio.to_thread(path.read_bytes)
        except FileNotFoundError:
            raise BlobMissing(f"blob {sha} is not here: upload it first") from None

    async def delete(self, hashes: Iterable[str]) -> None:
        """Remove blobs; those not here are no error."""
        paths = [self.path(sha) for sha in hashes]

        def unlink() -> None:
            for path in paths:
                path.unlink(missing_ok=True)

        await asyncio.to_thread(unlink)

    async def collect(self, keep: Collection[str], *, older_than: float) -> list[str]:
        """Remove the blobs that are not in ``keep`` and were last put or asked for too long ago.

        Args:
            keep: names still in use.
            older_than: seconds; it covers blobs uploaded for something not yet published.

        Returns:
            The removed names.
        """
        return await asyncio.to_thread(self._collect, frozenset(keep), self._clock() - older_than)

    def _put(self, data: bytes, sha: str | None) -> str:
        found = hashlib.sha256(data).hexdigest()
        if sha is not None and self.path(sha) and found != sha:
            raise BlobError(
                f"the content of blob {sha} hashes to {found}: it was damaged on its way, send it again"
            )
        if self._touch(self.path(found)):
            return found
        target = self._temporary()
        try:
            target.write(data)
            return self._keep(target, found, sha)
        finally:
            _discard(target)

    def _temporary(self) -> BinaryIO:
        # In the store itself: a rename is atomic within one file system only.
        folder = self.directory / _TEMPORARY
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=folder)
        return open(name, "wb", opener=lambda *_: descriptor)

    def _keep(self, target: BinaryIO, found: str, announced: str | None) -> str:
        if announced is not None and found != announced:
            raise BlobError(
                f"the content of blob {announced} hashes to {found}: it was damaged on its way, send it again"
            )
        path = self.path(found)
        if self._touch(path):
            return found
        target.flush()
        os.fsync(target.fileno())
        os.fchmod(target.fileno(), 0o600)
        target.close()
        _make_synced(path.parent, self.directory)
        os.replace(target.name, path)
        _sync(path.parent)
        return found

    def _touch(self, path: Path) -> bool:
        now = self._clock()
        with self._ages:
            try:
                os.utime(path, (now, now))
            except FileNotFoundError:
                return False
        return True

    def _collect(self, keep: frozenset[str], before: float) -> list[str]:
        removed = []
        for path in self._files():
            if path.name in keep:
                continue
            with self._ages:
                try:
                    if path.stat().st_mtime >= before:
                        continue
                    path.unlink()
                except FileNotFoundError:
                    continue
            if path.parent.name != _TEMPORARY:
                removed.append(path.name)
        return sorted(removed)

    def _files(self) -> Iterator[Path]:
        # Leftovers of a killed process stand in the temporary folder; they age like everything else.
        for pattern in ("??/??/*", f"{_TEMPORARY}/*"):
            yield from self.directory.glob(pattern)


def _append(target: BinaryIO, update: Callable[[bytes], None], data: bytes) -> None:
    update(data)
    target.write(data)


def _discard(target: BinaryIO) -> None:
    if not target.closed:
        target.close()
        Path(target.name).unlink(missing_ok=True)


def _make_synced(folder: Path, top: Path) -> None:
    if folder != top and not folder.is_dir():
        _make_synced(folder.parent, top)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
