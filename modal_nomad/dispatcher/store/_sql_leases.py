"""Leases, in SQL."""

from __future__ import annotations

from collections.abc import Sequence

from modal_nomad.dispatcher.store._sql import Connection, SqlPart, upsert
from modal_nomad.dispatcher.store.leases import LeaseRecord

_COLUMNS = "lease_id, container_id, path"


class SqlLeases(SqlPart):
    """The part of a store that holds leases."""

    async def leases(self) -> list[LeaseRecord]:
        return [LeaseRecord(*row) for row in await self._rows(f"SELECT {_COLUMNS} FROM secret_leases")]

    async def put_lease(self, record: LeaseRecord) -> None:
        row = (record.lease_id, record.container_id, record.path)
        await self._execute(upsert("secret_leases", _COLUMNS, 1), row)

    async def remove_leases(self, lease_ids: Sequence[str]) -> None:
        def write(db: Connection) -> None:
            for lease_id in lease_ids:
                db.execute("DELETE FROM secret_leases WHERE lease_id = ?", (lease_id,))

        await self._write(write)
