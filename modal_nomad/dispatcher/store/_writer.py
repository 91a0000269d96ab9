"""One writer thread with group commit: whoever waits while a commit runs shares the next one."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from modal_nomad.dispatcher.store.base import StoreError

T = TypeVar("T")
Write = Callable[[sqlite3.Connection], Any]
_Item = tuple[Write, "asyncio.Future[Any]", asyncio.AbstractEventLoop]
_Result = tuple["asyncio.Future[Any]", Any, BaseException | None]

MAX_GROUP = 4096
"""Writes per commit: bounds how long the first caller of a group waits for the last."""


class GroupWriter:
    """Runs writes on a thread of its own; each is answered after the commit that holds it."""

    def __init__(
        self, connection: sqlite3.Connection, describe: Callable[[sqlite3.Error], StoreError]
    ) -> None:
        self._connection = connection
        self._describe = describe
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="modal-nomad-store", daemon=True)
        self._thread.start()

    async def write(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run one operation and return its result when it is on the disk."""
        if self._closed:
            raise StoreError("the store is closed: open it before writing")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._queue.put((operation, future, loop))
        return await future

    def close(self) -> None:
        """Commit what was accepted and end the thread. Blocks: call it off the loop."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            group: list[_Item] = []
            while item is not None:
                group.append(item)
                if len(group) >= MAX_GROUP:
                    break
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            if group:
                self._commit(group)
            if item is None:
                return

    def _commit(self, group: list[_Item]) -> None:
        answers: list[tuple[_Item, Any, BaseException | None]] = []
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for entry in group:
                answers.append((entry, *self._one(entry[0])))
            self._connection.execute("COMMIT")
        except BaseException as exc:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            error = self._describe(exc) if isinstance(exc, sqlite3.Error) else exc
            answers = [(entry, None, error) for entry in group]
        by_loop: dict[asyncio.AbstractEventLoop, list[_Result]] = {}
        for (_, future, loop), value, failure in answers:
            by_loop.setdefault(loop, []).append((future, value, failure))
        for loop, results in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver, results)
            except RuntimeError:
                # That loop is closed: nobody waits there, and what was written stays written.
                continue

    def _one(self, operation: Write) -> tuple[Any, BaseException | None]:
        # A savepoint each, so that one caller's refused write does not undo its neighbours'.
        self._connection.execute("SAVEPOINT one")
        try:
            value = operation(self._connection)
        except (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError) as exc:
            self._connection.execute("ROLLBACK TO one")
            self._connection.execute("RELEASE one")
            return None, self._describe(exc)
        except sqlite3.Error:
            raise
        except Exception as exc:
            self._connection.execute("ROLLBACK TO one")
            self._connection.execute("RELEASE one")
            return None, exc
        self._connection.execute("RELEASE one")
        return value, None


def _deliver(results: list[_Result]) -> None:
    for future, value, failure in results:
        if future.done():
            continue
        if failure is None:
            future.set_result(value)
        else:
            future.set_exception(failure)
