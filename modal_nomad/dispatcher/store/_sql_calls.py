"""Durable calls and call graphs, in SQL."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Mapping, Sequence

from modal_nomad.dispatcher.store import _graph
from modal_nomad.dispatcher.store._sql import Connection, SqlPart
from modal_nomad.dispatcher.store.base import (
    CallRecord,
    GraphCall,
    GraphInput,
    PendingCall,
    StoredInput,
    StoredOutput,
)

PAGE = 1000
"""Rows per read while pending inputs are loaded: memory stays flat for a call of a million."""

_CALL = "call_id, function_id, kind, created_at, num_inputs, expires_at, method, environment"


class SqlCalls(SqlPart):
    """The part of a store that holds spawned calls."""

    # Durable calls

    async def add_inputs(
        self,
        call_id: str,
        function_id: str,
        inputs: Sequence[StoredInput],
        *,
        kind: str = "spawn",
        num_inputs: int | None = None,
        expires_at: float | None = None,
        method: str = "",
        environment: str = "",
    ) -> Collection[int]:
        now = self._clock()

        def write(db: Connection) -> Collection[int]:
            key = _key(db, call_id)
            db.execute(
                f"INSERT INTO calls ({_CALL}) VALUES (?,?,?,?,?,?,?,?)"
                " ON CONFLICT (call_id) DO UPDATE SET"
                " num_inputs = coalesce(excluded.num_inputs, calls.num_inputs),"
                " expires_at = coalesce(excluded.expires_at, calls.expires_at)",
                (call_id, function_id, kind, now, num_inputs, expires_at, method, environment),
            )
            answered: Collection[int] = ()
            if key is None:
                key = _key(db, call_id)
            else:
                rows = db.execute(
                    f"SELECT idx FROM outputs WHERE call = ?1 AND {db.dialect.among('idx', '?2')}",
                    (key, json.dumps([x.index for x in inputs])),
                )
                answered = frozenset(row[0] for row in rows)
            db.executemany(
                "INSERT INTO inputs VALUES (?,?,?,?,?,?) ON CONFLICT DO NOTHING",
                [
                    (key, x.index, x.payload, x.flags, x.losses, x.attempts)
                    for x in inputs
                    if x.index not in answered
                ],
            )
            return answered

        return await self._write(write)

    async def add_outputs(
        self, call_id: str, outputs: Sequence[StoredOutput], *, expires_at: float | None = None
    ) -> None:
        def write(db: Connection) -> None:
            key = _key(db, call_id)
            if key is None:
                return
            db.executemany(
                "INSERT INTO outputs VALUES (?,?,?,?,?,?) ON CONFLICT DO NOTHING",
                [(key, x.index, x.status, x.payload, x.flags, x.task_id) for x in outputs],
            )
            db.executemany("DELETE FROM inputs WHERE call = ? AND idx = ?", [(key, x.index) for x in outputs])
            if expires_at is not None:
                db.execute("UPDATE calls SET expires_at = ? WHERE key = ?", (expires_at, key))

        await self._write(write)

    async def set_tries(self, call_id: str, tries: Mapping[int, tuple[int, int]]) -> None:
        def write(db: Connection) -> None:
            key = _key(db, call_id)
            db.executemany(
                "UPDATE inputs SET losses = ?, attempts = ? WHERE call = ? AND idx = ?",
                [(losses, attempts, key, index) for index, (losses, attempts) in tries.items()],
            )

        await self._write(write)

    async def call(self, call_id: str) -> CallRecord | None:
        rows = await self._rows(f"SELECT {_CALL} FROM calls WHERE call_id = ?", (call_id,))
        return CallRecord(*rows[0]) if rows else None

    async def count_inputs(self, call_id: str) -> int:
        rows = await self._rows(
            "SELECT (SELECT count(*) FROM inputs WHERE call = key)"
            " + (SELECT count(*) FROM outputs WHERE call = key) FROM calls WHERE call_id = ?",
            (call_id,),
        )
        return int(rows[0][0]) if rows else 0

    async def load_pending(self) -> AsyncIterator[PendingCall]:
        key = -1
        while True:
            calls = await self._rows(
                f"SELECT key, {_CALL} FROM calls WHERE key > ?"
                " AND EXISTS (SELECT 1 FROM inputs WHERE call = key) ORDER BY key LIMIT ?",
                (key, PAGE),
            )
            if not calls:
                return
            for key, *fields in calls:
                call, index, full = CallRecord(*fields), -1, True
                while full:
                    rows = await self._rows(
                        "SELECT idx, payload, flags, losses, attempts FROM inputs WHERE call = ? AND idx > ?"
                        " ORDER BY idx LIMIT ?",
                        (key, index, PAGE),
                    )
                    full = len(rows) == PAGE
                    if rows:
                        index = rows[-1][0]
                        yield PendingCall(call, [StoredInput(*row) for row in rows])

    async def outputs(self, call_id: str, indexes: Sequence[int] | None = None) -> list[StoredOutput]:
        def look(db: Connection) -> list[StoredOutput]:
            # One JSON parameter instead of one per index: databases bound the number of parameters.
            rows = db.execute(
                "SELECT idx, status, payload, flags FROM outputs"
                " WHERE call = (SELECT key FROM calls WHERE call_id = ?1)"
                + ("" if indexes is None else f" AND {db.dialect.among('idx', '?2')}")
                + " ORDER BY idx",
                (call_id,) if indexes is None else (call_id, json.dumps(list(indexes))),
            )
            return [StoredOutput(*row) for row in rows]

        return await self._look(look)

    async def add_items(
        self, call_id: str, index: int, first: int, items: Sequence[tuple[bytes, int]]
    ) -> None:
        def write(db: Connection) -> None:
            key = _key(db, call_id)
            if key is not None:
                db.executemany(
                    "INSERT INTO items VALUES (?,?,?,?,?) ON CONFLICT DO NOTHING",
                    [(key, index, number, *item) for number, item in enumerate(items, first)],
                )

        await self._write(write)

    async def items(self, call_id: str, index: int, start: int, limit: int) -> list[tuple[int, bytes, int]]:
        rows = await self._rows(
            "SELECT number, payload, flags FROM items WHERE call = (SELECT key FROM calls WHERE call_id = ?)"
            " AND idx = ? AND number >= ? ORDER BY number LIMIT ?",
            (call_id, index, start, limit),
        )
        return [(number, payload, flags) for number, payload, flags in rows]

    async def count_items(self, call_id: str) -> dict[int, int]:
        # The end of the first run: the lowest number without a successor. Each look goes by the primary key.
        rows = await self._rows(
            "SELECT idx, min(number) + 1 FROM items AS one"
            " WHERE call = (SELECT key FROM calls WHERE call_id = ?) AND NOT EXISTS (SELECT 1 FROM items"
            " WHERE call = one.call AND idx = one.idx AND number = one.number + 1) GROUP BY call, idx"
            " HAVING EXISTS (SELECT 1 FROM items WHERE call = one.call AND idx = one.idx AND number = 0)",
            (call_id,),
        )
        return dict(rows)

    async def add_graph(self, calls: Sequence[GraphCall], inputs: Sequence[GraphInput]) -> None:
        await self._write(lambda db: _graph.write(db, calls, inputs))

    async def graph(self, call_id: str, limit: int) -> tuple[list[GraphCall], list[GraphInput]]:
        return await self._look(lambda db: _graph.read(db, call_id, limit))

    async def delete_call(self, call_id: str) -> None:
        await self._write(lambda db: _forget(db, [(_key(db, call_id),)]))

    async def expire(self, now: float) -> list[str]:
        def write(db: Connection) -> list[str]:
            rows = db.execute(
                "SELECT key, call_id FROM calls WHERE expires_at <= ?"
                " AND NOT EXISTS (SELECT 1 FROM inputs WHERE call = key)",
                (now,),
            ).fetchall()
            _forget(db, [(row[0],) for row in rows])
            _graph.forget(db, [row[1] for row in rows])
            return [row[1] for row in rows]

        return await self._write(write)


def _key(db: Connection, call_id: str) -> int | None:
    row = db.execute("SELECT key FROM calls WHERE call_id = ?", (call_id,)).fetchone()
    return None if row is None else int(row[0])


def _forget(db: Connection, keys: Sequence[tuple[int | None]]) -> None:
    db.executemany("DELETE FROM inputs WHERE call = ?", keys)
    db.executemany("DELETE FROM outputs WHERE call = ?", keys)
    db.executemany("DELETE FROM items WHERE call = ?", keys)
    db.executemany("DELETE FROM calls WHERE key = ?", keys)
