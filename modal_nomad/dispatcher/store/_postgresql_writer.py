"""The writer of a PostgreSQL store: group commit over the connection that holds the dispatcher's lock."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import asyncpg

from modal_nomad.dispatcher.store._postgresql_session import Away, Session
from modal_nomad.dispatcher.store._sql import Connection
from modal_nomad.dispatcher.store._writer import GroupWriter, Result
from modal_nomad.dispatcher.store.base import StoreError

logger = logging.getLogger("modal_nomad.dispatcher")

T = TypeVar("T")
V = TypeVar("V")
Operation = Callable[[Connection], Any]
PATIENCE_SECONDS = 60.0
"""How long writes wait for a server that is away before they fail."""
HEARTBEAT_SECONDS = 1.0
"""How often an idle writer makes sure that it still has the lock."""
_RETRY_SECONDS = 0.1
_AGAIN = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
_WHOLE = (asyncpg.InsufficientResourcesError, asyncpg.OperatorInterventionError, *_AGAIN)
"""Failures that are not one operation's."""
_MAX_TRIES = 5


@dataclass(frozen=True)
class Bulk(Generic[V, T]):
    """An operation that runs together with its like by the same few statements.

    Attributes:
        many: runs them all and returns their results in order.
        value: what this one is about.
    """

    many: Callable[[Connection, list[V]], list[T]]
    value: V

    def __call__(self, db: Connection) -> T:
        return self.many(db, [self.value])[0]


class _Uncertain(Exception):
    """The connection went while the server committed."""

    def __init__(self, transaction: str, results: list[Result]) -> None:
        super().__init__(transaction)
        self.transaction = transaction
        self.results = results


class Writer(GroupWriter[Connection]):
    """Writes groups of operations, over a new connection when the old one is gone.

    An operation is carried out once: where a commit's answer was lost the server is asked what became of it.

    Args:
        session: connected; with the lock if ``locked``.
        locked: whether this is the one dispatcher of the database.
        superseded: called once when another dispatcher has the lock. Who waits then waits on.
    """

    def __init__(self, session: Session, locked: bool, superseded: Callable[[], None]) -> None:
        self._session = session
        self._locked = locked
        self._superseded = superseded
        self._closing = threading.Event()
        self._down = False
        self._warned = False
        super().__init__(HEARTBEAT_SECONDS if locked else None)

    def close(self) -> None:
        self._closing.set()
        super().close()
        self._session.close()

    def idle(self) -> bool:
        try:
            if self._session.connected:
                self._session.beat()
                return True
        except Away as exc:
            self._warn(exc)
        except Exception as exc:
            logger.warning("the store is not well: %s", self._session.describe(exc))
            return True
        try:
            self._connect(0.0)
        except (Away, StoreError) as exc:
            self._warn(exc)
        return True

    def commit(self, operations: list[Operation]) -> list[Result]:
        careful, tries = False, 0
        uncertain: _Uncertain | None = None
        while True:
            try:
                self._ready()
                if uncertain is not None:
                    if self._committed(uncertain.transaction):
                        return uncertain.results
                    uncertain = None
                return self._transaction(operations, careful)
            except Away:
                continue
            except _Uncertain as exc:
                uncertain = exc
            except StoreError:
                raise
            except _AGAIN as exc:
                tries += 1
                if tries >= _MAX_TRIES:
                    raise self._session.describe(exc) from exc
            except Exception as exc:
                # Somebody's operation was refused: next time each has a savepoint of its own.
                if careful or isinstance(exc, _WHOLE):
                    raise self._session.describe(exc) from exc
                careful = True

    def _transaction(self, operations: list[Operation], careful: bool) -> list[Result]:
        db = self._session
        try:
            db.script("BEGIN")
            transaction = db.execute("SELECT CAST(pg_current_xact_id() AS TEXT)")[0][0]
            results = [self._one(x) for x in operations] if careful else self._all(operations)
        except Away:
            raise
        except BaseException:
            db.script("ROLLBACK")
            raise
        try:
            db.script("COMMIT")
        except Away:
            raise _Uncertain(transaction, results) from None
        return results

    def _all(self, operations: list[Operation]) -> list[Result]:
        # Operations of one group are of callers that wait for none of the others: their order is free.
        bulks: dict[Any, list[int]] = {}
        for number, operation in enumerate(operations):
            if isinstance(operation, Bulk):
                bulks.setdefault(operation.many, []).append(number)
        results: dict[int, Result] = {}
        for number, operation in enumerate(operations):
            if not isinstance(operation, Bulk):
                results[number] = (operation(self._session), None)
            elif number not in results:
                numbers = bulks[operation.many]
                found = operation.many(self._session, [operations[x].value for x in numbers])  # type: ignore[attr-defined]
                results.update(zip(numbers, ((value, None) for value in found), strict=True))
        return [results[number] for number in range(len(operations))]

    def _one(self, operation: Operation) -> Result:
        db = self._session
        db.script("SAVEPOINT one")
        try:
            value = operation(db)
        except (Away, *_WHOLE):
            raise
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OverflowError) as exc:
            failure: Exception = db.describe(exc)
        except Exception as exc:
            failure = exc
        else:
            db.script("RELEASE one")
            return value, None
        db.script("ROLLBACK TO one; RELEASE one")
        return None, failure

    def _committed(self, transaction: str) -> bool:
        while True:
            try:
                row = self._session.execute(
                    "SELECT pg_xact_status(CAST(CAST(?1 AS TEXT) AS xid8))", (transaction,)
                )[0]
            except asyncpg.PostgresError:
                # A server that never heard of it: one that took over without it.
                return False
            if row[0] != "in progress":
                return bool(row[0] == "committed")
            self._closing.wait(_RETRY_SECONDS)

    # --- the connection

    def _ready(self) -> None:
        if not self._session.connected:
            self._connect(0.0 if self._down else PATIENCE_SECONDS)

    def _connect(self, patience: float) -> None:
        """Connect again and take the lock. Raises StoreError when that takes too long."""
        deadline = time.monotonic() + patience
        while True:
            try:
                self._session.connect()
                if not self._locked or self._session.lock():
                    break
                # The server may not know yet that our own last connection is gone.
                if not self._session.end_former():
                    self._lose()
            except (Away, asyncpg.PostgresError) as exc:
                self._warn(exc)
                if time.monotonic() >= deadline or self._closing.is_set():
                    self._down = True
                    raise StoreError(str(exc)) from exc
            self._closing.wait(_RETRY_SECONDS)
        if self._warned:
            logger.warning("the store is back")
        self._down = self._warned = False

    def _warn(self, exc: Exception) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("%s; trying again", exc)

    def _lose(self) -> None:
        # Nobody is told that a write failed: it is for whoever has the lock now, and callers send again.
        self._session.drop()
        self._superseded()
        self._closing.wait()
        raise StoreError(
            f"another dispatcher took over the store {self._session.where}: this one has ended its work"
        )
