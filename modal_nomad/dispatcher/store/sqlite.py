"""The SQLite store: write-ahead log, one writer thread, one reader thread."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import json
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from modal_nomad.dispatcher.store import _graph, migrations
from modal_nomad.dispatcher.store._references import referenced_blobs
from modal_nomad.dispatcher.store._sqlite_objects import SqliteObjects
from modal_nomad.dispatcher.store._sqlite_schedules import SqliteSchedules
from modal_nomad.dispatcher.store._sqlite_volumes import SqliteVolumes
from modal_nomad.dispatcher.store._writer import GroupWriter
from modal_nomad.dispatcher.store.base import (
    AppRecord,
    CallRecord,
    FunctionRecord,
    GraphCall,
    GraphInput,
    PendingCall,
    Store,
    StoredInput,
    StoredOutput,
    StoreError,
    TokenRecord,
    VariantRecord,
    VersionRecord,
)

T = TypeVar("T")
PAGE = 1000
"""Rows per read while pending inputs are loaded: memory stays flat for a call of a million."""

_APP = "app_id, name, description, environment, state, version, created_at, stopped_at"
_VERSION = "app_id, version, deployed_at, client, deployed_by, tag"
_FUNCTION = "function_id, app_id, name, environment, version, spec, job, autoscaler"
_VARIANT = "function_id, parent_id, app_id, params, spec, job, autoscaler"
_CALL = "call_id, function_id, kind, created_at, num_inputs, expires_at, method"


class SqliteStore(SqliteObjects, SqliteVolumes, SqliteSchedules, Store):
    """A store in one file, for one dispatcher.

    Args:
        path: the file.
        clock: for tests.
        beside: open it while a dispatcher may have it, to read or write single rows.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Callable[[], float] = time.time,
        beside: bool = False,
    ) -> None:
        self.path = Path(path)
        self._beside = beside
        self._clock = clock
        self._writer: GroupWriter | None = None
        self._reader: ThreadPoolExecutor | None = None
        self._connections: list[sqlite3.Connection] = []
        self._lock: int | None = None

    async def open(self) -> None:
        if self._writer is None:
            await asyncio.to_thread(self._open)

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Held until closed: two dispatchers on one file would each lease the same inputs.
            self._lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise StoreError(f"cannot open the store {self.path}: {exc.strerror}; check the path") from exc
        try:
            if not self._beside:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            self._release()
            raise StoreError(f"the store {self.path} is in use by another dispatcher: stop that one") from exc
        try:
            writer = self._connect()
            self._migrate(writer)
            reader = self._connect()
            reader.execute("PRAGMA query_only = ON")
        except sqlite3.Error as exc:
            self._release()
            raise self._describe(exc) from exc
        except StoreError:
            self._release()
            raise
        self._writer = GroupWriter(writer, self._describe)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="modal-nomad-read")

    def _connect(self) -> sqlite3.Connection:
        # Each connection is used by one thread at a time; that is all SQLite asks for.
        connection = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, timeout=10, cached_statements=256
        )
        self._connections.append(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        # Fewer, larger checkpoints: each one syncs the whole file besides the log.
        connection.execute("PRAGMA wal_autocheckpoint = 8000")
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        owner = connection.execute("PRAGMA application_id").fetchone()[0]
        empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if not empty and owner != migrations.APPLICATION_ID:
            raise StoreError(f"{self.path} is another program's database: name another file for the store")
        if version > migrations.VERSION:
            raise StoreError(
                f"the store {self.path} has schema {version}, written by a newer modal-nomad; this one knows "
                f"{migrations.VERSION}: upgrade modal-nomad, or name another file"
            )
        for number, step in enumerate(migrations.STEPS[version:], version + 1):
            connection.executescript(
                f"BEGIN IMMEDIATE;{step};PRAGMA application_id = {migrations.APPLICATION_ID};"
                f"PRAGMA user_version = {number};COMMIT;"
            )
        os.chmod(self.path, 0o600)

    def _describe(self, exc: sqlite3.Error) -> StoreError:
        text = str(exc)
        if "malformed" in text or "not a database" in text:
            return StoreError(
                f"the store {self.path} is damaged ({text}): restore a backup, or move the "
                "file away to start anew"
            )
        if "disk is full" in text:
            return StoreError(f"no space left for the store {self.path}: free some disk space")
        return StoreError(
            f"the store {self.path} failed: {text}; check the file, its permissions and its disk"
        )

    async def close(self) -> None:
        writer, reader = self._writer, self._reader
        self._writer = self._reader = None
        if writer is not None and reader is not None:
            await asyncio.to_thread(writer.close)
            await asyncio.to_thread(reader.shutdown)
            self._release()

    def _release(self) -> None:
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def _write(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        if self._writer is None:
            raise StoreError("the store is closed: open it first")
        return await self._writer.write(operation)

    async def _read(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return await self._look(lambda db: db.execute(query, parameters).fetchall())

    async def _look(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        if self._reader is None:
            raise StoreError("the store is closed: open it first")
        connection = self._connections[1]

        def read() -> T:
            try:
                return operation(connection)
            except sqlite3.Error as exc:
                raise self._describe(exc) from exc

        return await asyncio.get_running_loop().run_in_executor(self._reader, read)

    # Apps and Functions

    async def publish(
        self, app: AppRecord, version: VersionRecord | None, functions: Sequence[FunctionRecord]
    ) -> None:
        rows = [
            (
                f.function_id,
                f.app_id,
                f.name,
                f.environment,
                f.version,
                json.dumps(f.spec),
                json.dumps(f.job),
                json.dumps(dict(f.autoscaler)),
            )
            for f in functions
        ]

        def write(db: sqlite3.Connection) -> None:
            db.execute(
                f"INSERT OR REPLACE INTO apps ({_APP}) VALUES (?,?,?,?,?,?,?,?)",
                dataclasses.astuple(app),
            )
            if version is not None:
                db.execute(
                    f"INSERT OR REPLACE INTO app_versions ({_VERSION}) VALUES (?,?,?,?,?,?)",
                    dataclasses.astuple(version),
                )
            db.execute("DELETE FROM functions WHERE app_id = ?", (app.app_id,))
            db.executemany(f"INSERT OR REPLACE INTO functions ({_FUNCTION}) VALUES (?,?,?,?,?,?,?,?)", rows)
            if app.state == "deployed" and app.name is not None:
                db.executemany(
                    "INSERT OR REPLACE INTO function_ids VALUES (?,?,?,?)",
                    [(f.environment, app.name, f.name, f.function_id) for f in functions],
                )

        await self._write(write)

    async def set_app_state(self, app_id: str, state: str, stopped_at: float | None = None) -> None:
        await self._execute(
            "UPDATE apps SET state = ?, stopped_at = ? WHERE app_id = ?", (state, stopped_at, app_id)
        )

    async def app(self, app_id: str) -> AppRecord | None:
        rows = await self._read(f"SELECT {_APP} FROM apps WHERE app_id = ?", (app_id,))
        return AppRecord(*rows[0]) if rows else None

    async def apps(self, environment: str | None = None) -> list[AppRecord]:
        rows = await self._read(
            f"SELECT {_APP} FROM apps WHERE ? IS NULL OR environment = ? ORDER BY created_at DESC, app_id",
            (environment, environment),
        )
        return [AppRecord(*row) for row in rows]

    async def apps_named(self, name: str, environment: str) -> list[AppRecord]:
        rows = await self._read(
            f"SELECT {_APP} FROM apps WHERE environment = ?"
            " AND (name = ? OR (name IS NULL AND description = ?)) ORDER BY created_at DESC, app_id",
            (environment, name, name),
        )
        return [AppRecord(*row) for row in rows]

    async def versions(self, app_id: str) -> list[VersionRecord]:
        rows = await self._read(
            f"SELECT {_VERSION} FROM app_versions WHERE app_id = ? ORDER BY version DESC", (app_id,)
        )
        return [VersionRecord(*row) for row in rows]

    async def functions(self, app_id: str | None = None) -> list[FunctionRecord]:
        rows = await self._read(
            f"SELECT {_FUNCTION} FROM functions WHERE CASE WHEN ? IS NULL THEN app_id IN"
            " (SELECT app_id FROM apps WHERE state != 'stopped') ELSE app_id = ? END ORDER BY app_id, name",
            (app_id, app_id),
        )
        return [_function(row) for row in rows]

    async def function(self, function_id: str) -> FunctionRecord | None:
        rows = await self._read(f"SELECT {_FUNCTION} FROM functions WHERE function_id = ?", (function_id,))
        return _function(rows[0]) if rows else None

    async def set_autoscaler(self, function_id: str, settings: Mapping[str, Any]) -> None:
        row = (json.dumps(dict(settings)), function_id)

        def write(db: sqlite3.Connection) -> None:
            # An id is a Function's or a variant's.
            for table in ("functions", "variants"):
                db.execute(f"UPDATE {table} SET autoscaler = ? WHERE function_id = ?", row)

        await self._write(write)

    async def function_ids(self, app_name: str, environment: str) -> dict[str, str]:
        rows = await self._read(
            "SELECT name, function_id FROM function_ids WHERE environment = ? AND app_name = ?",
            (environment, app_name),
        )
        return {row[0]: row[1] for row in rows}

    # Variants of Functions

    async def add_variant(self, variant: VariantRecord) -> None:
        await self._execute(
            f"INSERT OR IGNORE INTO variants ({_VARIANT}) VALUES (?,?,?,?,?,?,?)",
            (
                variant.function_id,
                variant.parent_id,
                variant.app_id,
                variant.params,
                None if variant.spec is None else json.dumps(variant.spec),
                None if variant.job is None else json.dumps(variant.job),
                json.dumps(dict(variant.autoscaler)),
            ),
        )

    async def variants(self) -> list[VariantRecord]:
        rows = await self._read(f"SELECT {_VARIANT} FROM variants ORDER BY key")
        return [
            VariantRecord(*row[:4], *(None if text is None else json.loads(text) for text in row[4:]))
            for row in rows
        ]

    async def remove_variants(self, function_ids: Sequence[str]) -> None:
        rows = [(x,) for x in function_ids]
        await self._write(lambda db: db.executemany("DELETE FROM variants WHERE function_id = ?", rows))

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
    ) -> Collection[int]:
        now = self._clock()

        def write(db: sqlite3.Connection) -> Collection[int]:
            key = _key(db, call_id)
            made = db.execute(
                f"INSERT INTO calls ({_CALL}) VALUES (?,?,?,?,?,?,?)"
                " ON CONFLICT (call_id) DO UPDATE SET"
                " num_inputs = coalesce(excluded.num_inputs, num_inputs),"
                " expires_at = coalesce(excluded.expires_at, expires_at)",
                (call_id, function_id, kind, now, num_inputs, expires_at, method),
            )
            answered: Collection[int] = ()
            if key is None:
                key = made.lastrowid
            else:
                rows = db.execute(
                    "SELECT idx FROM outputs WHERE call = ? AND idx IN (SELECT value FROM json_each(?))",
                    (key, json.dumps([x.index for x in inputs])),
                )
                answered = frozenset(row[0] for row in rows)
            db.executemany(
                "INSERT OR IGNORE INTO inputs VALUES (?,?,?,?,?,?)",
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
        def write(db: sqlite3.Connection) -> None:
            key = _key(db, call_id)
            if key is None:
                return
            db.executemany(
                "INSERT OR IGNORE INTO outputs VALUES (?,?,?,?,?,?)",
                [(key, x.index, x.status, x.payload, x.flags, x.task_id) for x in outputs],
            )
            db.executemany("DELETE FROM inputs WHERE call = ? AND idx = ?", [(key, x.index) for x in outputs])
            if expires_at is not None:
                db.execute("UPDATE calls SET expires_at = ? WHERE key = ?", (expires_at, key))

        await self._write(write)

    async def set_tries(self, call_id: str, tries: Mapping[int, tuple[int, int]]) -> None:
        def write(db: sqlite3.Connection) -> None:
            key = _key(db, call_id)
            db.executemany(
                "UPDATE inputs SET losses = ?, attempts = ? WHERE call = ? AND idx = ?",
                [(losses, attempts, key, index) for index, (losses, attempts) in tries.items()],
            )

        await self._write(write)

    async def call(self, call_id: str) -> CallRecord | None:
        rows = await self._read(f"SELECT {_CALL} FROM calls WHERE call_id = ?", (call_id,))
        return CallRecord(*rows[0]) if rows else None

    async def count_inputs(self, call_id: str) -> int:
        rows = await self._read(
            "SELECT (SELECT count(*) FROM inputs WHERE call = key)"
            " + (SELECT count(*) FROM outputs WHERE call = key) FROM calls WHERE call_id = ?",
            (call_id,),
        )
        return int(rows[0][0]) if rows else 0

    async def load_pending(self) -> AsyncIterator[PendingCall]:
        key = -1
        while True:
            calls = await self._read(
                f"SELECT key, {_CALL} FROM calls WHERE key > ?"
                " AND EXISTS (SELECT 1 FROM inputs WHERE call = key) ORDER BY key LIMIT ?",
                (key, PAGE),
            )
            if not calls:
                return
            for key, *fields in calls:
                call, index, full = CallRecord(*fields), -1, True
                while full:
                    rows = await self._read(
                        "SELECT idx, payload, flags, losses, attempts FROM inputs WHERE call = ? AND idx > ?"
                        " ORDER BY idx LIMIT ?",
                        (key, index, PAGE),
                    )
                    full = len(rows) == PAGE
                    if rows:
                        index = rows[-1][0]
                        yield PendingCall(call, [StoredInput(*row) for row in rows])

    async def outputs(self, call_id: str, indexes: Sequence[int] | None = None) -> list[StoredOutput]:
        # One JSON parameter instead of one per index: SQLite bounds the number of parameters.
        rows = await self._read(
            "SELECT idx, status, payload, flags FROM outputs"
            " WHERE call = (SELECT key FROM calls WHERE call_id = ?)"
            + ("" if indexes is None else " AND idx IN (SELECT value FROM json_each(?))")
            + " ORDER BY idx",
            (call_id,) if indexes is None else (call_id, json.dumps(list(indexes))),
        )
        return [StoredOutput(*row) for row in rows]

    async def add_items(
        self, call_id: str, index: int, first: int, items: Sequence[tuple[bytes, int]]
    ) -> None:
        def write(db: sqlite3.Connection) -> None:
            key = _key(db, call_id)
            if key is not None:
                db.executemany(
                    "INSERT OR IGNORE INTO items VALUES (?,?,?,?,?)",
                    [(key, index, number, *item) for number, item in enumerate(items, first)],
                )

        await self._write(write)

    async def items(self, call_id: str, index: int, start: int, limit: int) -> list[tuple[int, bytes, int]]:
        rows = await self._read(
            "SELECT number, payload, flags FROM items WHERE call = (SELECT key FROM calls WHERE call_id = ?)"
            " AND idx = ? AND number >= ? ORDER BY number LIMIT ?",
            (call_id, index, start, limit),
        )
        return [(number, payload, flags) for number, payload, flags in rows]

    async def count_items(self, call_id: str) -> dict[int, int]:
        # The end of the first run: the lowest number without a successor. Each look goes by the primary key.
        rows = await self._read(
            "SELECT idx, min(number) + 1 FROM items AS one"
            " WHERE call = (SELECT key FROM calls WHERE call_id = ?) AND NOT EXISTS (SELECT 1 FROM items"
            " WHERE call = one.call AND idx = one.idx AND number = one.number + 1) GROUP BY idx"
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
        def write(db: sqlite3.Connection) -> list[str]:
            rows = db.execute(
                "SELECT key, call_id FROM calls WHERE expires_at <= ?"
                " AND NOT EXISTS (SELECT 1 FROM inputs WHERE call = key)",
                (now,),
            ).fetchall()
            _forget(db, [(row[0],) for row in rows])
            _graph.forget(db, [row[1] for row in rows])
            return [row[1] for row in rows]

        return await self._write(write)

    async def referenced_blobs(self) -> set[str]:
        try:
            return await asyncio.to_thread(referenced_blobs, self.path)
        except sqlite3.Error as exc:
            raise self._describe(exc) from exc

    # Tokens

    async def add_token(self, token: TokenRecord) -> None:
        await self._execute(
            "INSERT OR REPLACE INTO tokens VALUES (?,?,?,?,?)",
            (
                token.token_id,
                token.secret_hash,
                json.dumps(token.environments),
                token.label,
                token.created_at,
            ),
        )

    async def token(self, token_id: str) -> TokenRecord | None:
        rows = await self._read("SELECT * FROM tokens WHERE token_id = ?", (token_id,))
        return _token(rows[0]) if rows else None

    async def tokens(self) -> list[TokenRecord]:
        return [_token(row) for row in await self._read("SELECT * FROM tokens ORDER BY created_at, token_id")]

    async def remove_token(self, token_id: str) -> None:
        await self._execute("DELETE FROM tokens WHERE token_id = ?", (token_id,))

    async def _execute(self, statement: str, parameters: Sequence[Any]) -> None:
        await self._write(lambda db: db.execute(statement, parameters) and None)


def _key(db: sqlite3.Connection, call_id: str) -> int | None:
    row = db.execute("SELECT key FROM calls WHERE call_id = ?", (call_id,)).fetchone()
    return None if row is None else int(row[0])


def _forget(db: sqlite3.Connection, keys: Sequence[tuple[int | None]]) -> None:
    db.executemany("DELETE FROM inputs WHERE call = ?", keys)
    db.executemany("DELETE FROM outputs WHERE call = ?", keys)
    db.executemany("DELETE FROM items WHERE call = ?", keys)
    db.executemany("DELETE FROM calls WHERE key = ?", keys)


def _function(row: tuple[Any, ...]) -> FunctionRecord:
    function_id, app_id, name, environment, version, *documents = row
    return FunctionRecord(function_id, app_id, name, environment, version, *map(json.loads, documents))


def _token(row: tuple[Any, ...]) -> TokenRecord:
    return TokenRecord(row[0], row[1], tuple(json.loads(row[2])), row[3], row[4])
