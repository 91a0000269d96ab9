"""Volumes in a SQLite store."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from modal_nomad.dispatcher.store import _volume_rows as rows
from modal_nomad.dispatcher.store.volumes import ChangePage, Committed, VolumeStore
from modal_nomad.wire.volumes.entries import Entry


class SqliteVolumes(VolumeStore):
    """The part of a SQLite store that holds Volumes' trees."""

    _write: Callable[[Callable[[sqlite3.Connection], Any]], Any]
    _look: Callable[[Callable[[sqlite3.Connection], Any]], Any]

    async def volume_commit(
        self,
        object_id: str,
        commit_id: str,
        entries: Callable[[], Iterable[Entry]],
        *,
        rule: str,
        now: float,
    ) -> Committed:
        found: Committed = await self._write(
            lambda db: rows.commit(db, object_id, commit_id, entries(), rule, now)
        )
        return found

    async def volume_changes(
        self, object_id: str, since: int, after: tuple[int, str] | None, max_rows: int, max_bytes: int
    ) -> ChangePage:
        found: ChangePage = await self._look(
            lambda db: rows.changes(db, object_id, since, after, max_rows, max_bytes)
        )
        return found

    async def volume_entry(self, object_id: str, path: str) -> Entry | None:
        found: Entry | None = await self._look(lambda db: rows.find(db, object_id, path))
        return found

    async def volume_list(
        self, object_id: str, path: str, *, recursive: bool, after: str | None, limit: int
    ) -> list[Entry]:
        found: list[Entry] = await self._look(
            lambda db: rows.listing(db, object_id, path, recursive, after, limit)
        )
        return found

    async def volume_remove(
        self, object_id: str, commit_id: str, path: str, *, recursive: bool, now: float
    ) -> Committed:
        found: Committed = await self._write(
            lambda db: rows.remove(db, object_id, commit_id, path, recursive, now)
        )
        return found

    async def volume_copy(
        self,
        object_id: str,
        commit_id: str,
        sources: Sequence[str],
        target: str,
        *,
        recursive: bool,
        now: float,
    ) -> Committed:
        found: Committed = await self._write(
            lambda db: rows.copy(db, object_id, commit_id, sources, target, recursive, now)
        )
        return found
