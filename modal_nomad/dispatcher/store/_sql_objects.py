"""Named objects, in SQL."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from modal_nomad.dispatcher.store._sql import Connection, SqlPart
from modal_nomad.dispatcher.store.objects import (
    Entry,
    EnvironmentRecord,
    Item,
    Kept,
    ObjectRecord,
    Ticket,
)

T = TypeVar("T")
CONTENTS = (
    "dict_entries",
    "queue_items",
    "volumes",
    "volume_files",
    "volume_commits",
    "volume_stages",
    "volume_staged",
    "volume_pins",
    "volume_past",
)
"""Tables whose rows go with the object that their ``object_id`` names."""

_OBJECT = "object_id, kind, name, environment, created_at, created_by, owner, detail"


class SqlObjects(SqlPart):
    """The part of a store that holds named objects."""

    # The registry

    async def add_object(self, record: ObjectRecord) -> ObjectRecord:
        def write(db: Connection) -> ObjectRecord:
            if record.name is not None:
                found = _named(db, record.kind, record.name, record.environment)
                if found is not None:
                    return found
            db.execute(
                f"INSERT INTO objects ({_OBJECT}) VALUES (?,?,?,?,?,?,?,?)",
                (
                    record.object_id,
                    record.kind,
                    record.name,
                    record.environment,
                    record.created_at,
                    record.created_by,
                    record.owner,
                    json.dumps(dict(record.detail)),
                ),
            )
            return record

        return await self._write(write)

    async def object(self, object_id: str) -> ObjectRecord | None:
        rows = await self._rows(f"SELECT {_OBJECT} FROM objects WHERE object_id = ?", (object_id,))
        return _object(rows[0]) if rows else None

    async def object_named(self, kind: str, name: str, environment: str) -> ObjectRecord | None:
        return await self._look(lambda db: _named(db, kind, name, environment))

    async def objects(
        self,
        kind: str | None = None,
        environment: str | None = None,
        *,
        limit: int | None = None,
        created_before: float | None = None,
        ephemeral: bool = False,
    ) -> list[ObjectRecord]:
        where, values = [f"name IS {'' if ephemeral else 'NOT '}NULL"], []
        for column, sign, value in (
            ("kind", "=", kind),
            ("environment", "=", environment),
            ("created_at", "<", created_before),
        ):
            if value is not None:
                where.append(f"{column} {sign} ?")
                values.append(value)
        query = f"SELECT {_OBJECT} FROM objects WHERE {' AND '.join(where)} ORDER BY created_at DESC, name"
        if limit is not None:
            query += f" LIMIT {int(limit)}"
        return [_object(row) for row in await self._rows(query, values)]

    async def set_object_name(self, object_id: str, name: str) -> bool:
        def write(db: Connection) -> bool:
            row = db.execute(
                "SELECT kind, environment FROM objects WHERE object_id = ?", (object_id,)
            ).fetchone()
            if row is None:
                return False
            other = _named(db, row[0], name, row[1])
            if other is not None:
                return other.object_id == object_id
            db.execute("UPDATE objects SET name = ? WHERE object_id = ?", (name, object_id))
            return True

        return await self._write(write)

    async def set_object_detail(self, object_id: str, detail: Mapping[str, Any]) -> None:
        text = json.dumps(dict(detail))
        await self._execute("UPDATE objects SET detail = ? WHERE object_id = ?", (text, object_id))

    async def remove_object(self, object_id: str) -> None:
        await self._write(lambda db: _remove(db, [object_id]))

    async def kept_answer(self, ticket: Ticket) -> Kept | None:
        return await self._look(lambda db: _kept(db, ticket))

    async def forget_answers(self, client: str) -> None:
        await self._execute("DELETE FROM object_answers WHERE client = ?", (client,))

    async def expire_objects(self, now: float, answers_before: float) -> None:
        def write(db: Connection) -> None:
            db.execute("DELETE FROM dict_entries WHERE expires_at <= ?", (now,))
            db.execute("DELETE FROM object_answers WHERE at < ?", (answers_before,))

        await self._write(write)

    async def drop_orphans(self) -> None:
        def write(db: Connection) -> None:
            for table in CONTENTS:
                for object_id in _orphans(db, table):
                    db.execute(f"DELETE FROM {table} WHERE object_id = ?", (object_id,))

        await self._write(write)

    # Environments

    async def environments(self) -> list[EnvironmentRecord]:
        rows = await self._rows(
            "SELECT name, created_at, web_suffix FROM environments UNION ALL"
            " SELECT environment, min(created_at), '' FROM ("
            " SELECT environment, created_at FROM apps WHERE state != 'stopped' UNION ALL"
            " SELECT environment, created_at FROM objects) AS used"
            " WHERE environment NOT IN (SELECT name FROM environments) GROUP BY environment ORDER BY 1"
        )
        return [EnvironmentRecord(*row) for row in rows]

    async def add_environment(self, record: EnvironmentRecord) -> bool:
        def write(db: Connection) -> bool:
            found = db.execute("SELECT 1 FROM environments WHERE name = ?", (record.name,)).fetchone()
            db.execute("DELETE FROM environments WHERE name = ?", (record.name,))
            db.execute(
                "INSERT INTO environments (name, created_at, web_suffix) VALUES (?,?,?)",
                (record.name, record.created_at, record.web_suffix),
            )
            return found is None

        return await self._write(write)

    async def rename_environment(self, old: str, new: str) -> None:
        def write(db: Connection) -> None:
            db.execute("UPDATE environments SET name = ? WHERE name = ?", (new, old))
            for table in ("objects", "apps", "functions", "function_ids"):
                db.execute(f"UPDATE {table} SET environment = ? WHERE environment = ?", (new, old))
            for token_id, text in db.execute("SELECT token_id, environments FROM tokens").fetchall():
                names = json.loads(text)
                if old in names:
                    changed = json.dumps([new if x == old else x for x in names])
                    db.execute("UPDATE tokens SET environments = ? WHERE token_id = ?", (changed, token_id))

        await self._write(write)

    async def remove_environment(self, name: str) -> None:
        def write(db: Connection) -> None:
            rows = db.execute("SELECT object_id FROM objects WHERE environment = ?", (name,)).fetchall()
            _remove(db, [row[0] for row in rows])
            db.execute("DELETE FROM environments WHERE name = ?", (name,))

        await self._write(write)

    # Dicts

    async def dict_put(
        self,
        object_id: str,
        entries: Sequence[Entry],
        expires_at: float,
        now: float,
        ticket: Ticket,
        *,
        only_missing: bool = False,
    ) -> Kept:
        def write(db: Connection) -> Kept:
            written = 0
            for entry in entries:
                row = db.execute(
                    "SELECT position, expires_at FROM dict_entries"
                    f" WHERE object_id = ?1 AND {db.dialect.same('key', '?2')}",
                    (object_id, entry.key),
                ).fetchone()
                if row is not None and only_missing and row[1] > now:
                    continue
                written += 1
                if row is None:
                    db.execute(
                        "INSERT INTO dict_entries (object_id, key, payload, flags, expires_at)"
                        " VALUES (?,?,?,?,?)",
                        (object_id, entry.key, entry.payload, entry.flags, expires_at),
                    )
                else:
                    db.execute(
                        "UPDATE dict_entries SET payload = ?, flags = ?, expires_at = ? WHERE position = ?",
                        (entry.payload, entry.flags, expires_at, row[0]),
                    )
            return Kept({"written": written})

        return await self._once(ticket, write)

    async def dict_get(self, object_id: str, key: bytes, now: float) -> Entry | None:
        def look(db: Connection) -> Entry | None:
            row = db.execute(
                "SELECT key, payload, flags, position FROM dict_entries"
                f" WHERE object_id = ?1 AND {db.dialect.same('key', '?2')} AND expires_at > ?3",
                (object_id, key, now),
            ).fetchone()
            return Entry(*row) if row else None

        return await self._look(look)

    async def dict_pop(self, object_id: str, key: bytes, now: float, ticket: Ticket) -> Kept:
        def write(db: Connection) -> Kept:
            row = db.execute(
                "SELECT position, payload, flags, expires_at FROM dict_entries"
                f" WHERE object_id = ?1 AND {db.dialect.same('key', '?2')}",
                (object_id, key),
            ).fetchone()
            if row is None:
                return Kept({"found": False})
            db.execute("DELETE FROM dict_entries WHERE position = ?", (row[0],))
            return Kept({"found": True}, row[1], row[2]) if row[3] > now else Kept({"found": False})

        return await self._once(ticket, write)

    async def dict_len(self, object_id: str) -> int:
        rows = await self._rows("SELECT count(*) FROM dict_entries WHERE object_id = ?", (object_id,))
        return int(rows[0][0])

    async def dict_entries(self, object_id: str, after: int, limit: int, now: float) -> list[Entry]:
        rows = await self._rows(
            "SELECT key, payload, flags, position FROM dict_entries"
            " WHERE object_id = ? AND position > ? AND expires_at > ? ORDER BY position LIMIT ?",
            (object_id, after, now, limit),
        )
        return [Entry(*row) for row in rows]

    async def dict_clear(self, object_id: str, ticket: Ticket) -> Kept:
        def write(db: Connection) -> Kept:
            db.execute("DELETE FROM dict_entries WHERE object_id = ?", (object_id,))
            return Kept({})

        return await self._once(ticket, write)

    # Queues

    async def queue_items(self, object_id: str) -> list[Item]:
        rows = await self._rows(
            "SELECT number, part, length(payload), expires_at FROM queue_items"
            " WHERE object_id = ? ORDER BY number",
            (object_id,),
        )
        return [Item(*row) for row in rows]

    async def queue_payloads(self, object_id: str, numbers: Iterable[int]) -> dict[int, bytes]:
        wanted = json.dumps(list(numbers))

        def look(db: Connection) -> dict[int, bytes]:
            rows = db.execute(
                "SELECT number, payload FROM queue_items"
                f" WHERE {db.dialect.among('number', '?1')} AND object_id = ?2",
                (wanted, object_id),
            )
            return dict(rows.fetchall())

        return await self._look(look)

    async def queue_put(self, object_id: str, items: Sequence[tuple[Item, bytes]], ticket: Ticket) -> Kept:
        def write(db: Connection) -> Kept:
            db.executemany(
                "INSERT INTO queue_items (number, object_id, part, payload, expires_at) VALUES (?,?,?,?,?)",
                [
                    (item.number, object_id, item.partition, payload, item.expires_at)
                    for item, payload in items
                ],
            )
            return Kept({"accepted": True})

        return await self._once(ticket, write)

    async def queue_take(
        self, object_id: str, numbers: Collection[int], answer: Kept, ticket: Ticket
    ) -> Kept:
        def write(db: Connection) -> Kept:
            _drop(db, object_id, numbers)
            return answer

        return await self._once(ticket, write)

    async def queue_drop(self, object_id: str, numbers: Collection[int]) -> None:
        await self._write(lambda db: _drop(db, object_id, numbers))

    async def last_item(self) -> int:
        rows = await self._rows("SELECT coalesce(max(number), 0) FROM queue_items")
        return int(rows[0][0])

    # ---

    async def _once(self, ticket: Ticket, operation: Callable[[Connection], Kept]) -> Kept:
        now = self._clock()

        def write(db: Connection) -> Kept:
            found = _kept(db, ticket)
            if found is not None:
                return found
            made = operation(db)
            db.execute(
                "DELETE FROM object_answers WHERE client = ? AND number < ?", (ticket.client, ticket.answered)
            )
            if ticket.confirmed:
                db.executemany(
                    "DELETE FROM object_answers WHERE client = ? AND number = ?",
                    [(ticket.client, x) for x in ticket.confirmed],
                )
            db.execute(
                "INSERT INTO object_answers (client, number, at, value, payload, flags) VALUES (?,?,?,?,?,?)",
                (ticket.client, ticket.number, now, json.dumps(made.value), made.payload, made.flags),
            )
            return made

        return await self._write(write)


def _object(row: tuple[Any, ...]) -> ObjectRecord:
    object_id, kind, name, environment, created_at, created_by, owner, detail = row
    return ObjectRecord(object_id, kind, name, environment, created_at, created_by, owner, json.loads(detail))


def _named(db: Connection, kind: str, name: str, environment: str) -> ObjectRecord | None:
    row = db.execute(
        f"SELECT {_OBJECT} FROM objects WHERE kind = ? AND environment = ? AND name = ?",
        (kind, environment, name),
    ).fetchone()
    return None if row is None else _object(row)


def _kept(db: Connection, ticket: Ticket) -> Kept | None:
    row = db.execute(
        "SELECT value, payload, flags FROM object_answers WHERE client = ? AND number = ?", ticket[:2]
    ).fetchone()
    return None if row is None else Kept(json.loads(row[0]), row[1], row[2])


def _remove(db: Connection, object_ids: Sequence[str]) -> None:
    rows = [(x,) for x in object_ids]
    for table in (*CONTENTS, "objects"):
        db.executemany(f"DELETE FROM {table} WHERE object_id = ?", rows)


def _orphans(db: Connection, table: str) -> list[str]:
    # From one object to the next by the index: as many steps as there are objects, not rows.
    rows = db.execute(
        f"WITH RECURSIVE here(it) AS (SELECT min(object_id) FROM {table} UNION ALL"
        f" SELECT (SELECT min(object_id) FROM {table} WHERE object_id > here.it) FROM here"
        " WHERE here.it IS NOT NULL)"
        " SELECT it FROM here WHERE it IS NOT NULL AND NOT EXISTS"
        " (SELECT 1 FROM objects WHERE objects.object_id = here.it)"
    )
    return [row[0] for row in rows.fetchall()]


def _drop(db: Connection, object_id: str, numbers: Collection[int]) -> None:
    db.executemany(
        "DELETE FROM queue_items WHERE number = ? AND object_id = ?", [(x, object_id) for x in numbers]
    )
