"""Volumes: commits into the store, chunks in the blob store, and what clients ask of a tree."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from typing import BinaryIO, NoReturn, cast

from modal_nomad.dispatcher._gates import Gates
from modal_nomad.dispatcher._large_commits import LargeCommits
from modal_nomad.dispatcher._large_trees import LargeTrees
from modal_nomad.dispatcher._volume_pins import Pins
from modal_nomad.dispatcher.blob_rights import BlobRights
from modal_nomad.dispatcher.blobs import BlobStore
from modal_nomad.dispatcher.objects.registry import ObjectRegistry
from modal_nomad.dispatcher.store.base import Store, StoreFull
from modal_nomad.dispatcher.store.volumes import ChangePage, Committed, Listing, VolumeConflict
from modal_nomad.exception import AlreadyExistsError, Error, InvalidError, NotFoundError
from modal_nomad.wire.volumes.client import LAST, NEW, OVER
from modal_nomad.wire.volumes.entries import DIRECTORY, HOLE, REMOVED, Entry, clean_path, decode

KIND = "volume"
_IN_MEMORY = 8 << 20
_LARGE_ENTRIES = 2000
_MAX_LINE = 16 << 20
_PAGE_ROWS = 5000
_PAGE_BYTES = 8 << 20


class PathMissing(NotFoundError):
    """Nothing is at a path of a Volume."""


class PathExists(AlreadyExistsError):
    """Something is at a path of a Volume already."""


class VersionGone(NotFoundError):
    """A version that was pinned once is no longer kept."""


_ERRORS: dict[str, type[Error]] = {
    "exists": PathExists,
    "missing": PathMissing,
    "deleted": NotFoundError,
    "unpinned": VersionGone,
}


class Volumes:
    """The trees of all Volumes.

    Args:
        store: an open store.
        blobs: the blob store.
        objects: the registry of named objects.
        rights: who may read which blobs.
        clock: the time in seconds.
        large_entries: commits of more than so many are carried out in slices.
    """

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        objects: ObjectRegistry,
        rights: BlobRights,
        clock: Callable[[], float] = time.time,
        large_entries: int = _LARGE_ENTRIES,
    ) -> None:
        self._store = store
        self._gates = Gates()
        self._large = LargeCommits(store, self._gates, self._spare)
        self._large_entries = large_entries
        self.pins = Pins(store, self._gates, clock)
        self._trees = LargeTrees(store, self.pins, self._large, large_entries)
        self._blobs = blobs
        self._objects = objects
        self._rights = rights
        self._clock = clock

    async def commit(
        self,
        object_id: str,
        commit_id: str,
        rule: str,
        body: AsyncIterable[bytes],
        scope: Sequence[str] = (),
    ) -> Committed:
        """Carry out a commit whose entries come as lines; all of them, or none.

        ``scope`` is of who commits: its chunks are those that it may read.

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
                try:
                    await asyncio.to_thread(lines.write, part)
                except OSError as error:
                    raise _no_space(error) from None
            chunks, count = await asyncio.to_thread(_survey, lines, rule)
            # Asked for, they are safe from collection until the commit names them.
            missing = await self._rights.missing(scope, list(chunks))
            if missing:
                raise InvalidError(
                    f"{len(missing)} chunks of the commit were never sent, or are gone by now: commit again"
                )
            try:
                if count > self._large_entries:
                    ordered = _in_order(lines)
                    return await self._large.commit(object_id, commit_id, rule, ordered, self._clock())
                async with self._gates.shared(object_id):
                    done = await self._store.volume_commit(
                        object_id, commit_id, lambda: _entries(lines), rule=rule, now=self._clock()
                    )
            except VolumeConflict as error:
                _raise(error)
        return await self._spared(done)

    async def resume(self) -> None:
        """Carry on with commits that an earlier process began."""
        await self._large.resume()

    def close(self) -> None:
        """Stop what goes on by itself."""
        self._large.close()
        self.pins.close()

    async def changes(
        self, object_id: str, since: int, after: tuple[int, str] | None, pin_id: str | None = None
    ) -> ChangePage:
        """Return a page of what changed after a version, up to a pinned one or now. Raises NotFoundError."""
        await self._objects.find(object_id, KIND)
        ask = self._store.volume_changes
        if pin_id is not None:
            try:
                return await ask(object_id, since, after, _PAGE_ROWS, _PAGE_BYTES, pin_id)
            except VolumeConflict as error:
                _raise(error)
        async with self._gates.shared(object_id):
            return await ask(object_id, since, after, _PAGE_ROWS, _PAGE_BYTES)

    async def pin(self, object_id: str, pin_id: str) -> int:
        """Keep the version that a Volume has readable as it is; gives it. Raises NotFoundError."""
        try:
            return await self.pins.pin(object_id, pin_id)
        except VolumeConflict as error:
            _raise(error)

    async def listings(
        self,
        object_id: str,
        pin_id: str,
        paths: Sequence[str],
        after: str | None,
        name: str | None,
        rows: int,
    ) -> tuple[list[Listing], Entry | None]:
        """Return what directories hold in a pinned version; see ``VolumeStore.volume_listings``.

        Raises:
            NotFoundError: the version is no longer kept.
        """
        clean = [_path(path) for path in paths]
        limit = max(1, min(rows, _PAGE_ROWS))
        try:
            return await self._store.volume_listings(
                object_id, pin_id, clean, after, name, limit, _PAGE_BYTES
            )
        except VolumeConflict as error:
            _raise(error)

    async def entry(self, object_id: str, path: str) -> Entry:
        """Return what stands at a path. Raises NotFoundError."""
        await self._objects.find(object_id, KIND)
        async with self._gates.shared(object_id):
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
        async with self._gates.shared(object_id):
            found = await self._store.volume_list(
                object_id, there.path, recursive=recursive, after=after, limit=_PAGE_ROWS
            )
        return found, found[-1].path if len(found) == _PAGE_ROWS else None

    async def remove(self, object_id: str, commit_id: str, path: str, *, recursive: bool) -> None:
        """Remove a file, or a directory with all below. Raises NotFoundError, InvalidError."""
        await self._objects.find(object_id, KIND)
        clean, now = _path(path), self._clock()
        try:
            async with self._trees.large(object_id, [clean] if recursive else []) as pin_id:
                if pin_id:
                    await self._trees.remove(object_id, commit_id, pin_id, clean, now)
                    return
            async with self._gates.shared(object_id):
                done = await self._store.volume_remove(
                    object_id, commit_id, clean, recursive=recursive, now=now
                )
        except VolumeConflict as error:
            _raise(error)
        await self._spared(done)

    async def copy(
        self, object_id: str, commit_id: str, sources: Sequence[str], target: str, *, recursive: bool
    ) -> None:
        """Copy within a Volume, as ``cp`` does. Raises NotFoundError, InvalidError."""
        await self._objects.find(object_id, KIND)
        clean, place, now = [_path(source) for source in sources], _path(target), self._clock()
        try:
            async with self._trees.large(object_id, clean if recursive else []) as pin_id:
                if pin_id:
                    async with self._gates.shared(object_id):
                        copies = await self._store.volume_plan_copy(
                            object_id, clean, place, recursive=recursive
                        )
                    await self._trees.copy(object_id, commit_id, pin_id, copies, now)
                    return
            async with self._gates.shared(object_id):
                done = await self._store.volume_copy(
                    object_id, commit_id, clean, place, recursive=recursive, now=now
                )
        except VolumeConflict as error:
            _raise(error)
        await self._spared(done)

    async def _spared(self, done: Committed) -> Committed:
        await self._spare(done.displaced)
        return done

    async def _spare(self, displaced: frozenset[str]) -> None:
        # Their age starts anew: who read the tree a moment ago may still fetch them.
        await self._blobs.missing(displaced - {HOLE})


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


def _in_order(file: BinaryIO) -> Iterable[Entry]:
    """Yield what is written, then what is removed: what is deepest first, so that directories are empty."""
    removed = []
    for entry in _entries(file):
        if entry.kind == REMOVED:
            removed.append(entry)
        else:
            yield entry
    yield from sorted(removed, key=lambda x: x.path.count("/"), reverse=True)


def _no_space(error: OSError) -> StoreFull:
    where = tempfile.gettempdir()
    return StoreFull(
        f"the dispatcher could not keep a commit in {where} ({error.strerror}): free some space there"
    )


def _survey(file: BinaryIO, rule: str) -> tuple[set[str], int]:
    """Return the chunks that entries name, and how many entries there are.

    All are read: a bad line is found before anything is done, and so are entries of an upload that contradict
    each other, which slices of it would not see.
    """
    names: set[str] = set()
    files: set[str] = set()
    folders: set[str] = set()
    count = 0
    try:
        for entry in _entries(file):
            count += 1
            names.update(entry.chunks)
            if rule == LAST:
                continue
            if entry.kind == DIRECTORY:
                folders.add(entry.path)
            elif rule == NEW and entry.path in files:
                raise PathExists(f"{entry.path} is there twice in what is to be committed")
            else:
                files.add(entry.path)
            parent = entry.parent
            while parent and parent not in folders:
                folders.add(parent)
                parent = parent.rpartition("/")[0]
    except ValueError as error:
        raise InvalidError(f"the commit cannot be read: {error}") from None
    except OSError as error:
        raise _no_space(error) from None
    for path in sorted(files & folders)[:1]:
        raise PathExists(f"{path} is a file and a directory in what is to be committed")
    return names - {HOLE}, count
