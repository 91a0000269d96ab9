"""One writer thread with group commit: whoever waits while a commit runs shares the next one."""

from __future__ import annotations

import abc
import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from modal_nomad.dispatcher.store.base import StoreError

T = TypeVar("T")
C = TypeVar("C")
Result = tuple[Any, "BaseException | None"]
_Item = tuple[Any, "asyncio.Future[Any]", asyncio.AbstractEventLoop]

MAX_GROUP = 4096
"""Writes per commit: bounds how long the first caller of a group waits for the last."""


class GroupWriter(abc.ABC, Generic[C]):
    """Runs writes on a thread of its own; each is answered after the commit that holds it.

    Args:
        idle_seconds: how long nothing has to be written for ``idle`` to be called; None for never.
        max_group: the most writes in one commit.
    """

    def __init__(self, idle_seconds: float | None = None, max_group: int = MAX_GROUP) -> None:
        self._idle_seconds = idle_seconds
        self._max_group = max_group
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="modal-nomad-store", daemon=True)
        self._thread.start()

    @abc.abstractmethod
    def commit(self, operations: list[Callable[[C], Any]]) -> list[Result]:
        """Run operations in one transaction and commit it; returns each one's value or failure.

        A refused operation does not undo its neighbours'. Raises what fails them all.
        """

    def idle(self) -> bool:
        """Called on the thread while nothing is written; says whether to call it again before a write."""
        return False

    async def write(self, operation: Callable[[C], T]) -> T:
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
        pause = self._idle_seconds
        while True:
            try:
                item = self._queue.get(timeout=pause)
            except queue.Empty:
                if not self.idle():
                    pause = None
                continue
            pause = self._idle_seconds
            group: list[_Item] = []
            while item is not None:
                group.append(item)
                if len(group) >= self._max_group:
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
        results: list[Result]
        try:
            results = self.commit([operation for operation, _, _ in group])
        except BaseException as exc:
            results = [(None, exc)] * len(group)
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Result]]] = {}
        for (_, future, loop), result in zip(group, results, strict=True):
            by_loop.setdefault(loop, []).append((future, result))
        for loop, answers in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver, answers)
            except RuntimeError:
                # That loop is closed: nobody waits there, and what was written stays written.
                continue


def _deliver(answers: list[tuple[asyncio.Future[Any], Result]]) -> None:
    for future, (value, failure) in answers:
        if future.done():
            continue
        if failure is None:
            future.set_result(value)
        else:
            future.set_exception(failure)
