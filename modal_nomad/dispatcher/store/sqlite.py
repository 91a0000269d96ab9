"""The SQLite store: write-ahead log, one writer thread, one reader thread."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from modal_nomad.dispatcher.store import migrations
from modal_nomad.dispatcher.store._references import referenced_blobs
from modal_nomad.dispatcher.store._sql import Connection, Dialect
from modal_nomad.dispatcher.store._sql_store import SqlStore
from modal_nomad.dispatcher.store._wal import CHECKPOINT_PAGES, Room
from modal_nomad.dispatcher.store._writer import GroupWriter, Result
from modal_nomad.dispatcher.store.base import References, StoreBusy, StoreError, StoreFull

T = TypeVar("T")
_SQLITE = Dialect()
_REFUSED = (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError)
"""Failures of one operation, not of the file."""
_IDLE_SECONDS = 0.25


class _Connection(sqlite3.Connection):
    """A connection as shared SQL sees one."""

    dialect = _SQLITE


class _Writer(GroupWriter[Connection]):
    def __init__(
        self, connection: _Connection, describe: Callable[[Exception], StoreError], room: Room | None
    ) -> None:
        self._connection = connection
        self._describe = describe
        self._room = room
        super().__init__(None if room is None else _IDLE_SECONDS)

    def idle(self) -> bool:
        if self._room is not None:
            self._room.make()
        return False

    def commit(self, operations: list[Callable[[Connection], Any]]) -> list[Result]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            if len(operations) == 1:
                results = [self._alone(operations[0])]
            else:
                results = [self._one(operation) for operation in operations]
            if self._connection.in_transaction:
                self._connection.execute("COMMIT")
        except BaseException as exc:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if isinstance(exc, sqlite3.Error):
                raise self._describe(exc) from exc
            raise
        return results

    def _alone(self, operation: Callable[[Connection], Any]) -> Result:
        result = self._tried(operation)
        if result[1] is not None and self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        return result

    def _one(self, operation: Callable[[Connection], Any]) -> Result:
        # A savepoint each, so that one caller's refused write does not undo its neighbours'.
        self._connection.execute("SAVEPOINT one")
        result = self._tried(operation)
        if result[1] is not None:
            self._connection.execute("ROLLBACK TO one")
        self._connection.execute("RELEASE one")
        return result

    def _tried(self, operation: Callable[[Connection], Any]) -> Result:
        try:
            return operation(self._connection), None
        except (*_REFUSED, OverflowError) as exc:
            return None, self._describe(exc)
        except sqlite3.Error:
            raise
        except Exception as exc:
            return None, exc


class _Reader(GroupWriter[Connection]):
    """Reads in turn on a thread of its own; an executor takes several times as long to hand over."""

    def __init__(self, connection: _Connection, describe: Callable[[Exception], StoreError]) -> None:
        self._connection = connection
        self._describe = describe
        super().__init__(max_group=1)

    def commit(self, operations: list[Callable[[Connection], Any]]) -> list[Result]:
        try:
            return [(operation(self._connection), None) for operation in operations]
        except sqlite3.Error as exc:
            raise self._describe(exc) from exc


class SqliteStore(SqlStore):
    """A store in one file, for one dispatcher.

    Args:
        path: the file.
        clock: for tests.
        beside: open it while a dispatcher may have it, to read or write single rows.
        durability: what an acknowledged write outlives: ``power`` is a power cut, ``process`` the end of this
            process alone.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Callable[[], float] = time.time,
        beside: bool = False,
        durability: str = "power",
    ) -> None:
        self.path = Path(path)
        self._beside = beside
        # A log that is written and not synced outlives this process in the system's cache, whole.
        self._synchronous = {"power": "FULL", "process": "NORMAL"}[durability]
        self._clock = clock
        self._writer: _Writer | None = None
        self._reader: _Reader | None = None
        self._connections: list[_Connection] = []
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
            raise StoreBusy(f"the store {self.path} is in use by another dispatcher: stop that one") from exc
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
        # Where nothing is synced, nothing is gained by it.
        room = Room(self.path, writer) if self._synchronous == "FULL" and not self._beside else None
        self._writer = _Writer(writer, self._describe, room)
        self._reader = _Reader(reader, self._describe)

    def _connect(self) -> _Connection:
        # Each connection is used by one thread at a time; that is all SQLite asks for.
        connection = sqlite3.connect(
            self.path,
            isolation_level=None,
            check_same_thread=False,
            timeout=10,
            cached_statements=256,
            factory=_Connection,
        )
        self._connections.append(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        # Fewer, larger checkpoints: each one syncs the whole file besides the log.
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        return connection

    def _migrate(self, connection: _Connection) -> None:
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

    def _describe(self, exc: Exception) -> StoreError:
        text = str(exc)
        if "malformed" in text or "not a database" in text:
            return StoreError(
                f"the store {self.path} is damaged ({text}): restore a backup, or move the "
                "file away to start anew"
            )
        if "disk is full" in text:
            return StoreFull(f"no space left for the store {self.path}: free some disk space")
        return StoreError(
            f"the store {self.path} failed: {text}; check the file, its permissions and its disk"
        )

    async def close(self) -> None:
        writer, reader = self._writer, self._reader
        self._writer = self._reader = None
        if writer is not None and reader is not None:
            await asyncio.to_thread(writer.close)
            await asyncio.to_thread(reader.close)
            self._release()

    def _release(self) -> None:
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def _write(self, operation: Callable[[Connection], T]) -> T:
        if self._writer is None:
            raise StoreError("the store is closed: open it first")
        return await self._writer.write(operation)

    async def _look(self, operation: Callable[[Connection], T]) -> T:
        if self._reader is None:
            raise StoreError("the store is closed: open it first")
        return await self._reader.write(operation)

    async def referenced_blobs(self) -> References:
        try:
            return await asyncio.to_thread(_referenced_blobs, self.path)
        except sqlite3.Error as exc:
            raise self._describe(exc) from exc


def _referenced_blobs(path: Path) -> References:
    # Over a connection of its own: a long look keeps nobody waiting.
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as db:
        db.execute("BEGIN")
        names = [x[0] for x in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        tables = {x: [row[1] for row in db.execute(f"PRAGMA table_info({x})")] for x in names}

        def flagged(table: str) -> str:
            indexes = {row[1] for row in db.execute(f"PRAGMA index_list({table})")}
            index = f"{table}_by_blob"
            # Said by name: the planner may think a walk over all payloads cheaper.
            by = f" INDEXED BY {index}" if index in indexes else ""
            return f"SELECT payload FROM {table}{by} WHERE flags & 1"

        return referenced_blobs(tables, db.execute, flagged)
