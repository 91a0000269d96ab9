"""Removing and copying directories with very much below them: in slices, of one version of the tree."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from modal_nomad.dispatcher._large_commits import LargeCommits
from modal_nomad.dispatcher._volume_pins import Pins
from modal_nomad.dispatcher.store.base import Store
from modal_nomad.dispatcher.store.volumes import Committed
from modal_nomad.wire.ids import new_id
from modal_nomad.wire.volumes.client import LAST, OVER
from modal_nomad.wire.volumes.entries import DIRECTORY, REMOVED, Entry


class LargeTrees:
    """What is below directories of Volumes, taken together.

    Args:
        store: an open store.
        pins: keeps the version that is read.
        commits: carries out what comes of it.
        large_entries: more entries than this are large.
    """

    def __init__(self, store: Store, pins: Pins, commits: LargeCommits, large_entries: int) -> None:
        self._store = store
        self._pins = pins
        self._commits = commits
        self._large_entries = large_entries

    @asynccontextmanager
    async def large(self, object_id: str, paths: Sequence[str]) -> AsyncIterator[str]:
        """Pin a Volume in which there is very much below some paths; gives an empty id where there is not."""
        count = 0
        for path in paths:
            limit = self._large_entries + 1 - count
            count += len(
                await self._store.volume_list(object_id, path, recursive=True, after=None, limit=limit)
            )
            if count > self._large_entries:
                break
        else:
            yield ""
            return
        pin_id = new_id("pi")
        await self._pins.pin(object_id, pin_id)
        try:
            yield pin_id
        finally:
            self._pins.unpin(object_id, pin_id)

    async def remove(self, object_id: str, commit_id: str, pin_id: str, path: str, now: float) -> Committed:
        """Remove a directory of a pinned version; it stays where others put something into it meanwhile."""
        return await self._commits.commit_slices(
            object_id, commit_id, LAST, self._removed(object_id, pin_id, path), now
        )

    async def copy(
        self, object_id: str, commit_id: str, pin_id: str, copies: Sequence[tuple[Entry, str]], now: float
    ) -> Committed:
        """Copy what a pinned version has to other places. Raises VolumeConflict."""
        return await self._commits.commit_slices(
            object_id, commit_id, OVER, self._copied(object_id, pin_id, copies), now
        )

    async def _removed(self, object_id: str, pin_id: str, path: str) -> AsyncIterator[list[Entry]]:
        folders = [path] if path else []
        async for page in self._below(object_id, pin_id, path):
            folders += [x.path for x in page if x.kind == DIRECTORY]
            if files := [Entry(x.path, REMOVED) for x in page if x.kind != DIRECTORY]:
                yield files
        # By then they are empty, for what is deepest goes first.
        folders.sort(key=lambda x: x.count("/"), reverse=True)
        for start in range(0, len(folders), self._commits.slice_entries):
            yield [Entry(x, REMOVED) for x in folders[start : start + self._commits.slice_entries]]

    async def _copied(
        self, object_id: str, pin_id: str, copies: Sequence[tuple[Entry, str]]
    ) -> AsyncIterator[list[Entry]]:
        for found, place in copies:
            yield [found._replace(path=place)]
            if found.kind == DIRECTORY:
                async for page in self._below(object_id, pin_id, found.path):
                    yield [x._replace(path=place + x.path[len(found.path) :]) for x in page]

    async def _below(self, object_id: str, pin_id: str, path: str) -> AsyncIterator[list[Entry]]:
        after: str | None = None
        while page := await self._store.volume_below(
            object_id, pin_id, path, after, self._commits.slice_entries
        ):
            yield page
            after = page[-1].path
