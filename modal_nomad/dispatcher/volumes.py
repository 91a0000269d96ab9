"""Volumes: commits into the store, chunks in the blob store, and what clients ask of a tree."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from typing import BinaryIO, NoReturn, cast

from modal_nomad.dispatcher.blobs import BlobStore
from modal_nomad.dispatcher.objects.registry import ObjectRegistry
from modal_nomad.dispatcher.store.base import Store
from modal_nomad.dispatcher.store.volumes import ChangePage, Committed, VolumeConflict
from modal_nomad.exception import AlreadyExistsError, Error, ExecutionError, InvalidError, NotFoundError
from modal_nomad.wire.volumes.client import LAST, NEW, OVER
from modal_nomad.wire.volumes.entries import DIRECTORY, HOLE, Entry, clean_path, decode

KIND = "volume"
_IN_MEMORY = 8 << 20
_MAX_LINE = 16 << 20
_PAGE_ROWS = 5000
_PAGE_BYTES = 8 << 20


class PathMissing(NotFoundError):
    """Nothing is at a path of a Volume."""


class PathExists(AlreadyExistsError):
    """Something is at a path of a Volume already."""


_ERRORS: dict[str, type[Error]] = {"exists": PathExists, "missing": PathMissing, "deleted": NotFoundError}


class Volumes:
    """The trees of all Volumes.

    Args:
        store: an open store.
        blobs: the blob store.
        objects: the registry of named objects.
        clock: the time in seconds.
    """

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        objects: ObjectRegistry,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._objects = objects
        self._clock = clock

    async def commit(
        self, object_id: str, commit_id: str, rule: str, body: AsyncIterable[bytes]
    ) -> Committed:
        """Carry out a commit whose entries come as lines; all of them, or none.

        Raises:
            NotFoundError: the Volume is gone.
            AlreadyExistsError: a file is there, and the rule forbids to replace it.
            InvalidError: the lines are no entries, or name chunks that were not sent.
        """
        if rule not in (LAST, NEW, OVER):
            raise InvalidError("the rule of a commit is one of last, new and over")
        await self._objects.find(object_id, KIND)
        with tempfile.SpooledTemporaryFile(_IN_MEMORY) as file:
            lines = cast("BinaryIO", file)
            async for part in body:
                await asyncio.to_thread(lines.write, part)
            chunks = await asyncio.to_thread(_chunks, lines)
            # Asked for, they are safe from collection until the commit names them.
            missing = await self._blobs.missing(chunks)
            if missing:
                raise InvalidError(
                    f"{len(missing)} chunks of the commit were never sent, or are gone by now: commit again"
                )
            try:
                done = await self._store.volume_commit(
                    object_id, commit_id, lambda: _entries(lines), rule=rule, now=self._clock()
                )
            except VolumeConflict as error:
                _raise(error)
        return await self._spared(done)

    async def changes(self, object_id: str, since: int, after: tuple[int, str] | None) -> ChangePage:
        """Return a page of what changed after a version. Raises NotFoundError."""
        await self._objects.find(object_id, KIND)
        return await self._store.volume_changes(object_id, since, after, _PAGE_ROWS, _PAGE_BYTES)

    async def entry(self, object_id: str, path: str) -> Entry:
        """Return what stands at a path. Raises NotFoundError."""
        await self._objects.find(object_id, KIND)
        found = await self._store.volume_entry(object_id, _path(path))
        if found is None:
            raise PathMissing(f"there is no {path!r} in the Volume")
        return found

    async def list(
        self, object_id: str, path: str, *, recursive: bool, after: str | None
    ) -> tuple[list[Entry], str | None]:
        """Return a page of what a directory holds (a file is alone), and where the next page begins."""
        there = await self.entry(object_id, path)
        if there.kind != DIRECTORY:
            return [there], None
        found = await self._store.volume_list(
            object_id, there.path, recursive=recursive, after=after, limit=_PAGE_ROWS
        )
        return found, found[-1].path if len(found) == _PAGE_ROWS else None

    async def remove(self, object_id: str, commit_id: str, path: str, *, recursive: bool) -> None:
        """Remove a file, or a directory with all below. Raises NotFoundError, InvalidError."""
        await self._objects.find(object_id, KIND)
        try:
            done = await self._store.volume_remove(
                object_id, commit_id, _path(path), recursive=recursive, now=self._clock()
            )
        except VolumeConflict as error:
            _raise(error)
        await self._spared(done)

    async def copy(
        self, object_id: str, commit_id: str, sources: Sequence[str], target: str, *, recursive: bool
    ) -> None:
        """Copy within a Volume, as ``cp`` does. Raises NotFoundError, InvalidError."""
        await self._objects.find(object_id, KIND)
        try:
            done = await self._store.volume_copy(
                object_id,
                commit_id,
                [_path(source) for source in sources],
                _path(target),
                recursive=recursive,
                now=self._clock(),
            )
        except VolumeConflict as error:
            _raise(error)
        await self._spared(done)

    async def _spared(self, done: Committed) -> Committed:
        # Their age starts anew: who read the tree a moment ago may still fetch them.
        await self._blobs.missing(done.displaced - {HOLE})
        return done


def _path(path: str) -> str:
    try:
        return clean_path(path)
    except ValueError as error:
        raise InvalidError(str(error)) from None


def _raise(error: VolumeConflict) -> NoReturn:
    raise _ERRORS.get(error.kind, InvalidError)(str(error)) from None


def _entries(file: BinaryIO) -> Iterable[Entry]:
    file.seek(0)
    while line := file.readline(_MAX_LINE):
        yield decode(line)


def _chunks(file: BinaryIO) -> set[str]:
    """Return the chunks that entries name. All are read: a bad line is found before anything is done."""
    names: set[str] = set()
    try:
        for entry in _entries(file):
            names.update(entry.chunks)
    except ValueError as error:
        raise InvalidError(f"the commit cannot be read: {error}") from None
    except OSError as error:
        raise ExecutionError(
            f"the dispatcher could not keep the commit ({error.strerror}): free some space there"
        ) from None
    return names - {HOLE}
