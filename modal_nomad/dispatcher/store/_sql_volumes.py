"""Volumes, in SQL."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from modal_nomad.dispatcher.store import _volume_pins as pins
from modal_nomad.dispatcher.store import _volume_rows as rows
from modal_nomad.dispatcher.store import _volume_stages as stages
from modal_nomad.dispatcher.store._sql import SqlPart
from modal_nomad.dispatcher.store.volumes import ChangePage, Committed, Listing, Switch
from modal_nomad.wire.volumes.entries import Entry


class SqlVolumes(SqlPart):
    """The part of a store that holds Volumes' trees."""

    async def volume_commit(
        self,
        object_id: str,
        commit_id: str,
        entries: Callable[[], Iterable[Entry]],
        *,
        rule: str,
        now: float,
    ) -> Committed:
        return await self._write(lambda db: rows.commit(db, object_id, commit_id, entries(), rule, now))

    async def volume_stage(self, object_id: str, stage_id: str, first: int, entries: Sequence[Entry]) -> None:
        await self._write(lambda db: stages.stage(db, object_id, stage_id, first, entries))

    async def volume_check(
        self, object_id: str, stage_id: str, first: int, limit: int, rule: str, now: float
    ) -> bool:
        return await self._look(lambda db: stages.check(db, object_id, stage_id, first, limit, rule, now))

    async def volume_done(self, object_id: str, commit_id: str) -> Committed | None:
        return await self._look(lambda db: rows.done(db, object_id, commit_id))

    async def volume_switch(self, object_id: str, stage_id: str, commit_id: str, now: float) -> None:
        return await self._write(lambda db: stages.switch(db, object_id, stage_id, commit_id, now))

    async def volume_stages(self) -> list[Switch]:
        return await self._look(stages.stages)

    async def volume_carry_out(self, switch: Switch, limit: int) -> frozenset[str] | None:
        return await self._write(lambda db: stages.carry_out(db, switch, limit))

    async def volume_finish(self, switch: Switch) -> Committed:
        return await self._write(lambda db: stages.finish(db, switch))

    async def volume_drop_stage(self, object_id: str, stage_id: str, limit: int) -> bool:
        return await self._write(lambda db: stages.drop(db, object_id, stage_id, limit))

    async def volume_pin(self, object_id: str, pin_id: str, now: float) -> int:
        return await self._write(lambda db: pins.pin(db, object_id, pin_id, now))

    async def volume_renew(self, object_id: str, pin_id: str, now: float) -> bool:
        return await self._write(lambda db: pins.renew(db, object_id, pin_id, now))

    async def volume_expired(self, before: float) -> list[tuple[str, str]]:
        return await self._look(lambda db: pins.expired(db, before))

    async def volume_unpin(self, object_id: str, pin_id: str, limit: int) -> bool:
        return await self._write(lambda db: pins.unpin(db, object_id, pin_id, limit))

    async def volume_listings(
        self,
        object_id: str,
        pin_id: str,
        paths: Sequence[str],
        after: str | None,
        name: str | None,
        max_rows: int,
        max_bytes: int,
    ) -> tuple[list[Listing], Entry | None]:
        return await self._look(
            lambda db: pins.listings(db, object_id, pin_id, paths, after, name, max_rows, max_bytes)
        )

    async def volume_below(
        self, object_id: str, pin_id: str, path: str, after: str | None, limit: int
    ) -> list[Entry]:
        return await self._look(lambda db: pins.below(db, object_id, pin_id, path, after, limit))

    async def volume_changes(
        self,
        object_id: str,
        since: int,
        after: tuple[int, str] | None,
        max_rows: int,
        max_bytes: int,
        pin_id: str | None = None,
    ) -> ChangePage:
        if pin_id is None:
            return await self._look(lambda db: rows.changes(db, object_id, since, after, max_rows, max_bytes))
        return await self._look(
            lambda db: pins.changes(db, object_id, since, pin_id, after, max_rows, max_bytes)
        )

    async def volume_entry(self, object_id: str, path: str) -> Entry | None:
        return await self._look(lambda db: rows.find(db, object_id, path))

    async def volume_list(
        self, object_id: str, path: str, *, recursive: bool, after: str | None, limit: int
    ) -> list[Entry]:
        return await self._look(lambda db: rows.listing(db, object_id, path, recursive, after, limit))

    async def volume_remove(
        self, object_id: str, commit_id: str, path: str, *, recursive: bool, now: float
    ) -> Committed:
        return await self._write(lambda db: rows.remove(db, object_id, commit_id, path, recursive, now))

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
        return await self._write(
            lambda db: rows.copy(db, object_id, commit_id, sources, target, recursive, now)
        )

    async def volume_plan_copy(
        self, object_id: str, sources: Sequence[str], target: str, *, recursive: bool
    ) -> list[tuple[Entry, str]]:
        return await self._look(lambda db: rows.plan_copy(db, object_id, sources, target, recursive))
