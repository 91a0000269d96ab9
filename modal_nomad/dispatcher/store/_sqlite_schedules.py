"""Schedules in a SQLite store."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Callable
from typing import Any

from modal_nomad.dispatcher.store.schedules import ScheduleRecord, ScheduleStore
from modal_nomad.wire.spec import ScheduleSpec

_COLUMNS = "function_id, spec, anchor, next_at, last_call"


class SqliteSchedules(ScheduleStore):
    """The part of a SQLite store that holds schedules."""

    _write: Callable[[Callable[[sqlite3.Connection], Any]], Any]
    _look: Callable[[Callable[[sqlite3.Connection], Any]], Any]

    async def schedules(self) -> list[ScheduleRecord]:
        rows = await self._look(lambda db: db.execute(f"SELECT {_COLUMNS} FROM schedules").fetchall())
        return [
            ScheduleRecord(function_id, ScheduleSpec.from_dict(json.loads(spec)), *rest)
            for function_id, spec, *rest in rows
        ]

    async def put_schedule(self, record: ScheduleRecord) -> None:
        spec = json.dumps(dataclasses.asdict(record.spec))
        row = (record.function_id, spec, record.anchor, record.next_at, record.last_call)
        await self._write(
            lambda db: db.execute(f"REPLACE INTO schedules ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)", row)
        )

    async def remove_schedule(self, function_id: str) -> None:
        await self._write(
            lambda db: db.execute("DELETE FROM schedules WHERE function_id = ?", (function_id,))
        )
