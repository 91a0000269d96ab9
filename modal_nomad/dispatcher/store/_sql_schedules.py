"""Schedules, in SQL."""

from __future__ import annotations

import dataclasses
import json

from modal_nomad.dispatcher.store._sql import SqlPart, upsert
from modal_nomad.dispatcher.store.schedules import ScheduleRecord
from modal_nomad.wire.spec import ScheduleSpec

_COLUMNS = "function_id, spec, anchor, next_at, last_call"


class SqlSchedules(SqlPart):
    """The part of a store that holds schedules."""

    async def schedules(self) -> list[ScheduleRecord]:
        return [
            ScheduleRecord(function_id, ScheduleSpec.from_dict(json.loads(spec)), *rest)
            for function_id, spec, *rest in await self._rows(f"SELECT {_COLUMNS} FROM schedules")
        ]

    async def put_schedule(self, record: ScheduleRecord) -> None:
        spec = json.dumps(dataclasses.asdict(record.spec))
        row = (record.function_id, spec, record.anchor, record.next_at, record.last_call)
        await self._execute(upsert("schedules", _COLUMNS, 1), row)

    async def remove_schedule(self, function_id: str) -> None:
        await self._execute("DELETE FROM schedules WHERE function_id = ?", (function_id,))
