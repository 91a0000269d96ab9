"""The PostgreSQL store: for a cluster, whose dispatchers share it; one of them is at work at a time."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import asyncpg

from modal_nomad.dispatcher.store import _postgresql_bulk as bulk
from modal_nomad.dispatcher.store import _postgresql_once as once
from modal_nomad.dispatcher.store._postgresql_session import SCHEMA, Away, Session
from modal_nomad.dispatcher.store._postgresql_writer import PATIENCE_SECONDS, Bulk, Writer
from modal_nomad.dispatcher.store._references import referenced_blobs
from modal_nomad.dispatcher.store._sql import Connection
from modal_nomad.dispatcher.store._sql_store import SqlStore
from modal_nomad.dispatcher.store.base import References, StoreBusy, StoredInput, StoredOutput, StoreError
from modal_nomad.dispatcher.store.objects import Item, Kept, Ticket

T = TypeVar("T")
_READERS = 4
_RETRY_SECONDS = 0.1


class PostgresqlStore(SqlStore):
    """A store in a schema of a PostgreSQL database, shared by dispatchers of which one is at work.

    The one at work holds an advisory lock on the connection that it writes over: what lost the lock cannot
    write any more.

    Args:
        dsn: ``postgresql://user:password@host:port/database``, with libpq's parameters.
        clock: for tests.
        beside: open it while a dispatcher may have it, to read or write single rows.
        superseded: called once, on another thread, when another dispatcher took over.
    """

    shared = True

    def __init__(
        self,
        dsn: str,
        *,
        clock: Callable[[], float] = time.time,
        beside: bool = False,
        superseded: Callable[[], None] = lambda: None,
    ) -> None:
        self._dsn = dsn
        self._clock = clock
        self._beside = beside
        self._superseded = superseded
        self._waiting: Session | None = None
        self._writer: Writer | None = None
        self._readers: queue.LifoQueue[Session] = queue.LifoQueue()
        self._threads: ThreadPoolExecutor | None = None
        self._closed = False
        self._away = ""

    async def open(self) -> None:
        if self._writer is None:
            await asyncio.to_thread(self._open)

    def _open(self) -> None:
        session, self._waiting = self._waiting or Session(self._dsn), None
        try:
            if not session.connected:
                session.connect()
            if not self._beside and not session.lock():
                # Kept, so that the next try is one statement.
                self._waiting = session
                raise StoreBusy(f"the store {session.where} is in use by another dispatcher: stop that one")
            session.migrate()
        except StoreBusy:
            raise
        except Away as exc:
            session.close()
            raise StoreError(str(exc)) from exc
        except asyncpg.PostgresError as exc:
            error = session.describe(exc)
            session.close()
            raise error from exc
        except BaseException:
            session.close()
            raise
        self._closed = False
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix="modal-nomad-read")
        for _ in range(_READERS):
            self._readers.put(Session(self._dsn, read_only=True))
        self._writer = Writer(session, not self._beside, self._superseded)

    async def close(self) -> None:
        self._closed = True
        writer, threads, waiting = self._writer, self._threads, self._waiting
        self._writer = self._threads = self._waiting = None
        if waiting is not None:
            await asyncio.to_thread(waiting.close)
        if writer is not None and threads is not None:
            await asyncio.to_thread(writer.close)
            await asyncio.to_thread(threads.shutdown)
            while not self._readers.empty():
                await asyncio.to_thread(self._readers.get().close)

    async def _write(self, operation: Callable[[Connection], T]) -> T:
        if self._writer is None:
            raise StoreError("the store is closed: open it first")
        return await self._writer.write(operation)

    async def _look(self, operation: Callable[[Connection], T]) -> T:
        if self._threads is None:
            raise StoreError("the store is closed: open it first")
        deadline = time.monotonic() + PATIENCE_SECONDS
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, self._read, operation, deadline
        )

    def _read(self, operation: Callable[[Connection], T], deadline: float) -> T:
        # There are as many sessions as threads.
        session = self._readers.get()
        try:
            while True:
                away = self._away
                if away and time.monotonic() >= deadline:
                    # It has waited for others that found nobody: one try more would keep the next one.
                    raise StoreError(away)
                try:
                    if not session.connected:
                        session.connect()
                    found = operation(session)
                    self._away = ""
                    return found
                except Away as exc:
                    self._away = str(exc)
                    if self._closed or time.monotonic() >= deadline:
                        raise StoreError(str(exc)) from exc
                    time.sleep(_RETRY_SECONDS)
                except (asyncpg.PostgresError, asyncpg.InterfaceError, OverflowError) as exc:
                    raise session.describe(exc) from exc
        finally:
            self._readers.put(session)

    # What is written most

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
        value = bulk.NewInputs(
            call_id, function_id, inputs, kind, self._clock(), num_inputs, expires_at, method, environment
        )
        return await self._write(Bulk(bulk.add_inputs, value))

    async def add_outputs(
        self, call_id: str, outputs: Sequence[StoredOutput], *, expires_at: float | None = None
    ) -> None:
        await self._write(Bulk(bulk.add_outputs, bulk.NewOutputs(call_id, outputs, expires_at)))

    async def queue_put(self, object_id: str, items: Sequence[tuple[Item, bytes]], ticket: Ticket) -> Kept:
        said = Kept({"accepted": True})
        return await self._write(Bulk(once.move, once.Move(ticket, self._clock(), object_id, said, items)))

    async def queue_take(
        self, object_id: str, numbers: Collection[int], answer: Kept, ticket: Ticket
    ) -> Kept:
        value = once.Move(ticket, self._clock(), object_id, answer, take=numbers)
        return await self._write(Bulk(once.move, value))

    # What is looked at whole

    async def referenced_blobs(self) -> References:
        return await asyncio.to_thread(self._referenced_blobs)

    def _referenced_blobs(self) -> References:
        # Over a connection of its own: a long look keeps nobody waiting.
        session = Session(self._dsn, read_only=True)
        try:
            session.connect()
            session.script("BEGIN ISOLATION LEVEL REPEATABLE READ")
            tables: dict[str, list[str]] = {}
            for table, column in session.execute(
                "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = ?1",
                (SCHEMA,),
            ):
                tables.setdefault(table, []).append(column)
            return referenced_blobs(
                tables, session.scan, lambda table: f"SELECT payload FROM {table} WHERE (flags & 1) = 1"
            )
        except Away as exc:
            raise StoreError(str(exc)) from exc
        except asyncpg.PostgresError as exc:
            raise session.describe(exc) from exc
        finally:
            session.close()
