"""Blobs in a directory of the dispatcher's machine."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import AsyncIterable, Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from aiohttp import web

from modal_nomad.dispatcher.blobs.base import (
    BlobStore,
    BlobStoreError,
    BlobStoreFull,
    checked_content,
    checked_hash,
    checked_name,
    checked_size,
    not_here,
)
from modal_nomad.wire import blob_lists

_FLUSH = 1 << 20
_TEMPORARY = "incoming"
_PIECE = 1 << 20
"""Bytes that are read of a blob at a time while it is sent."""


class DirectoryBlobs(BlobStore):
    """A directory of blobs. The coroutines do their file work on threads.

    Args:
        directory: made when it is not there.
        clock: the time in seconds.
    """

    def __init__(self, directory: str | os.PathLike[str], *, clock: Callable[[], float] = time.time) -> None:
        self.directory = Path(directory)
        self._clock = clock
        # Held for one file at a time: none is removed between the look at its age and its renewal.
        self._ages = threading.Lock()

    def path(self, sha: str) -> Path:
        """Return where a blob stands, or would. Raises BlobError for what is no SHA-256 in hex."""
        return self.directory / checked_name(sha)[:2] / sha[2:4] / sha

    async def missing(self, hashes: Iterable[str]) -> list[str]:
        names = [checked_name(sha) for sha in dict.fromkeys(hashes)]
        top = os.fspath(self.directory)
        # Thousands are usual, which a Path for each would make slow.
        return await asyncio.to_thread(
            lambda: [x for x in names if not self._touch(f"{top}/{x[:2]}/{x[2:4]}/{x}")]
        )

    async def put(self, data: bytes, sha: str | None = None) -> str:
        return await asyncio.to_thread(self._put, data, sha)

    async def put_stream(
        self, chunks: AsyncIterable[bytes], sha: str | None = None, *, max_size: int | None = None
    ) -> str:
        if sha is not None:
            checked_name(sha)
        target: BinaryIO | None = None
        try:
            target = await asyncio.to_thread(self._temporary)
            digest, size, pending = hashlib.sha256(), 0, bytearray()
            async for chunk in chunks:
                size += len(chunk)
                checked_size(size, max_size)
                pending += chunk
                if len(pending) >= _FLUSH:
                    await asyncio.to_thread(_append, target, digest.update, bytes(pending))
                    pending.clear()
            await asyncio.to_thread(_append, target, digest.update, bytes(pending))
            return await asyncio.to_thread(self._keep, target, digest.hexdigest(), sha)
        except ConnectionError:
            # Who sends it went away.
            raise
        except OSError as error:
            raise self._describe(error) from error
        finally:
            if target is not None:
                # A no-op after success: the file was closed and renamed.
                await asyncio.shield(asyncio.to_thread(_discard, target))

    async def get(self, sha: str) -> bytes:
        path = self.path(sha)
        try:
            return await asyncio.to_thread(path.read_bytes)
        except FileNotFoundError:
            raise not_here(sha) from None

    async def get_some(self, hashes: Sequence[str]) -> list[bytes | None]:
        paths = [self.path(sha) for sha in hashes]

        def read() -> list[bytes | None]:
            found: list[bytes | None] = []
            size = 0
            for path in paths:
                data = _small(path)
                found.append(data)
                size += len(data or b"")
                if size >= blob_lists.MOST_BYTES:
                    break
            return found

        return await asyncio.to_thread(read)

    async def serve(self, sha: str, request: web.Request, content_type: str) -> web.StreamResponse:
        path = self.path(sha)
        if not await asyncio.to_thread(path.is_file):
            raise not_here(sha)
        return web.FileResponse(path, _PIECE, headers={"Content-Type": content_type})

    async def delete(self, hashes: Iterable[str]) -> None:
        paths = [self.path(sha) for sha in hashes]

        def unlink() -> None:
            for path in paths:
                path.unlink(missing_ok=True)

        await asyncio.to_thread(unlink)

    async def collect(self, keep: Collection[str], *, older_than: float) -> list[str]:
        return await asyncio.to_thread(self._collect, frozenset(keep), self._clock() - older_than)

    def _put(self, data: bytes, sha: str | None) -> str:
        found = checked_content(data, sha)
        if self._touch(self.path(found)):
            return found
        target: BinaryIO | None = None
        try:
            target = self._temporary()
            target.write(data)
            return self._keep(target, found, sha)
        except OSError as error:
            raise self._describe(error) from error
        finally:
            if target is not None:
                _discard(target)

    def _describe(self, error: OSError) -> BlobStoreError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return BlobStoreFull(f"no space left for blobs in {self.directory}: free some disk space there")
        return BlobStoreError(
            f"a blob cannot be kept in {self.directory} ({error.strerror}): check the directory and its disk"
        )

    def _temporary(self) -> BinaryIO:
        # In the store itself: a rename is atomic within one file system only.
        folder = self.directory / _TEMPORARY
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=folder)
        return open(name, "wb", opener=lambda *_: descriptor)

    def _keep(self, target: BinaryIO, found: str, announced: str | None) -> str:
        path = self.path(checked_hash(found, announced))
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

    def _touch(self, path: str | Path) -> bool:
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


def _small(path: Path) -> bytes | None:
    try:
        with open(path, "rb") as file:
            data = file.read(blob_lists.LARGEST + 1)
    except FileNotFoundError:
        return None
    return data if len(data) <= blob_lists.LARGEST else None


def _discard(target: BinaryIO) -> None:
    if not target.closed:
        # What is not written yet need not go anywhere: there may be no space for it.
        with contextlib.suppress(OSError):
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
