"""Queues at the rim: the engine's commands carried out, items in the store, who waits for what.

An item may be given to a get while the put that brought it is still on its way to the disk: taking it is
written after it, so that no answer says more than the disk has.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any

from modal_nomad.dispatcher._requests import Answer
from modal_nomad.dispatcher.objects import queue_commands as qe
from modal_nomad.dispatcher.objects.answers import answer
from modal_nomad.dispatcher.objects.queue_engine import QueueEngine
from modal_nomad.dispatcher.store.base import Store
from modal_nomad.dispatcher.store.objects import Item, Kept, ObjectRecord, Ticket
from modal_nomad.exception import InvalidError, NotFoundError

_CACHE_BYTES = 64 << 20
_AT_ONCE_BYTES = 256 << 10
"""What is taken at once is kept with the answer until the client has it: not too much of it."""
_NOT_ACCEPTED: Answer = {"accepted": False}, []
_NO_ITEMS: Answer = {"items": [], "more": False}, []


class _Payloads:
    """Payloads of recent items: all that are not on the disk yet, and others as long as there is room."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._unwritten: dict[int, bytes] = {}
        self._recent: dict[int, bytes] = {}
        self._size = 0

    def add(self, number: int, payload: bytes) -> None:
        self._unwritten[number] = payload

    def written(self, numbers: Collection[int]) -> None:
        for number in numbers:
            payload = self._unwritten.pop(number, None)
            if payload is not None:
                self._recent[number] = payload
                self._size += len(payload)
        while self._size > self._limit:
            self._size -= len(self._recent.pop(next(iter(self._recent))))

    def get(self, number: int) -> bytes | None:
        found = self._recent.get(number)
        return self._unwritten.get(number) if found is None else found

    def drop(self, numbers: Collection[int]) -> None:
        for number in numbers:
            self._unwritten.pop(number, None)
            self._size -= len(self._recent.pop(number, b""))


class _Live:
    """A Queue that was asked for: its engine, who waits for its commands, its timer."""

    def __init__(self, object_id: str, engine: QueueEngine) -> None:
        self.object_id = object_id
        self.engine = engine
        self.waiting: dict[str, asyncio.Future[qe.Command]] = {}
        self.timer: asyncio.TimerHandle | None = None
        self.timer_at = 0.0
        self.gone = False


class Queues:
    """The items of all Queues.

    Args:
        store: an open store.
        background: runs a coroutine that nobody waits for.
        here: says whether a client is connected, by its owner id.
        limits: how much a Queue holds.
    """

    def __init__(
        self,
        store: Store,
        background: Callable[[Coroutine[Any, Any, Any]], None],
        here: Callable[[str], bool],
        limits: qe.Limits | None = None,
    ) -> None:
        self._store = store
        self._background = background
        self._here = here
        self._limits = limits or qe.Limits()
        self._live: dict[str, asyncio.Task[_Live]] = {}
        self._payloads = _Payloads(_CACHE_BYTES)
        self._number: itertools.count[int] | None = None
        self._owners: dict[str, set[str]] = {}
        # Wall time that no change of the clock can turn back while we run.
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        """Return the time in seconds since 1970."""
        return time.monotonic() + self._offset

    # --- requests ---------------------------------------------------------------------------------

    async def put(
        self,
        object_id: str,
        owner: str,
        key: str,
        partition: str,
        payloads: Sequence[bytes],
        ttl: float,
        wait: float | None,
        ticket: Ticket,
    ) -> Answer:
        """Add items, waiting up to ``wait`` seconds for room; None waits for ever.

        Returns:
            ``accepted``; when it is true the disk has them.

        Raises:
            InvalidError: the Queue has as many partitions as it may have.
        """
        live = await self._find(object_id)
        if wait != 0 and not self._here(owner):
            return _NOT_ACCEPTED
        future = self._expect(live, owner, key)
        now = self.now()
        sizes = [len(x) for x in payloads]
        self._carry(live, live.engine.put(key, owner, partition, sizes, ttl, _deadline(wait, now), now))
        command = await future
        if isinstance(command, qe.Full) and command.partitions:
            raise InvalidError(
                f"the Queue has {self._limits.partitions} partitions, the most there can be:"
                " clear some, or put into those that there are"
            )
        if not isinstance(command, qe.Accepted):
            return _NOT_ACCEPTED
        numbers = [x.number for x in command.items]
        for number, payload in zip(numbers, payloads, strict=True):
            self._payloads.add(number, payload)
        return await self._keep(live, partition, list(zip(command.items, payloads, strict=True)), ticket)

    async def _keep(
        self, live: _Live, partition: str, items: list[tuple[Item, bytes]], ticket: Ticket
    ) -> Answer:
        numbers = [item.number for item, _ in items]
        try:
            kept = await self._store.queue_put(live.object_id, items, ticket)
        except BaseException:
            self._payloads.drop(numbers)
            live.engine.forget(partition, numbers)
            self._carry(live, live.engine.pump(self.now()))
            raise
        self._payloads.written(numbers)
        return answer(kept)

    async def get(
        self,
        object_id: str,
        owner: str,
        key: str,
        partition: str,
        wanted: int,
        wait: float | None,
        ticket: Ticket | None = None,
    ) -> Answer:
        """Give items to a get, waiting up to ``wait`` seconds for one; they are to be taken then.

        Args:
            object_id: the Queue.
            owner: whose get.
            key: which.
            partition: where.
            wanted: at most so many.
            wait: seconds; None waits for ever.
            ticket: what is there now is taken at once. Whoever asks in this moment is there; of who has
                waited for long nobody knows.
        """
        live = await self._find(object_id)
        if not self._here(owner):
            # It left meanwhile: what it was given now would be nobody's.
            return _NO_ITEMS
        if ticket is not None:
            taken, more = live.engine.take_ready(partition, wanted, _AT_ONCE_BYTES, self.now())
            if taken:
                return await self._take_at_once(live, partition, taken, more, ticket)
        future = live.waiting.get(key) or self._expect(live, owner, key)
        now = self.now()
        self._carry(live, live.engine.get(key, owner, partition, wanted, _deadline(wait, now), now))
        command = await asyncio.shield(future)
        if not isinstance(command, qe.Given):
            return _NO_ITEMS
        return await self._with_payloads(live, command.numbers, {"more": command.more})

    async def look(
        self, object_id: str, owner: str, key: str, partition: str, after: int, wanted: int, wait: float
    ) -> Answer:
        """Return items in place, waiting up to ``wait`` seconds for one."""
        live = await self._find(object_id)
        if not self._here(owner):
            # It left meanwhile: what it was given now would be nobody's.
            return _NO_ITEMS
        future = live.waiting.get(key) or self._expect(live, owner, key)
        now = self.now()
        deadline = _deadline(wait, now)
        self._carry(live, live.engine.look(key, owner, partition, after, wanted, deadline, now))
        command = await asyncio.shield(future)
        if not isinstance(command, qe.Seen):
            return _NO_ITEMS
        return await self._with_payloads(live, command.numbers, {})

    async def take(
        self, object_id: str, key: str, partition: str, numbers: Sequence[int], ticket: Ticket
    ) -> Answer:
        """Remove items that a get was given; the answer says which were still its own to take."""
        live = await self._find(object_id)
        taken = live.engine.take(key, partition, numbers, self.now())
        if not taken:
            self._carry(live, live.engine.pump(self.now()))
            return {"taken": []}, []
        return await self._remove(live, partition, taken, Kept({"taken": taken}), ticket)

    async def _take_at_once(
        self, live: _Live, partition: str, taken: list[int], more: bool, ticket: Ticket
    ) -> Answer:
        try:
            value, payloads = await self._with_payloads(live, taken, {})
        except BaseException:
            self._carry(live, live.engine.restore(partition, taken, self.now()))
            raise
        value |= {"taken": True, "more": more, "sizes": [len(x) for x in payloads]}
        return await self._remove(live, partition, taken, Kept(value, b"".join(payloads)), ticket)

    async def _remove(
        self, live: _Live, partition: str, taken: list[int], said: Kept, ticket: Ticket
    ) -> Answer:
        try:
            kept = await self._store.queue_take(live.object_id, taken, said, ticket)
        except BaseException:
            self._carry(live, live.engine.restore(partition, taken, self.now()))
            raise
        self._carry(live, live.engine.done(partition, taken, self.now()))
        self._payloads.drop(taken)
        return answer(kept)

    async def put_back(
        self,
        object_id: str,
        partition: str,
        numbers: Sequence[int],
        payloads: Sequence[bytes],
        ttl: float,
        ticket: Ticket,
    ) -> Answer:
        """Take items back that a get had taken when it was interrupted; they come to where they were."""
        live = await self._find(object_id)
        given = dict(zip(numbers, payloads, strict=True))
        items = live.engine.put_back(partition, {x: len(y) for x, y in given.items()}, ttl, self.now())
        kept = [(item, given[number]) for number, item in items.items()]
        for item, payload in kept:
            self._payloads.add(item.number, payload)
        self._carry(live, live.engine.pump(self.now()))
        return await self._keep(live, partition, kept, ticket)

    async def release(self, object_id: str, key: str) -> None:
        """End what a client does not wait for any more."""
        live = await self._find(object_id)
        self._carry(live, live.engine.release(key, self.now()))

    async def length(self, object_id: str, partition: str | None) -> int:
        """Count the items of a partition, or of all."""
        live = await self._find(object_id)
        found = live.engine.length(partition, self.now())
        self._carry(live, live.engine.pump(self.now()))
        return found

    async def clear(self, object_id: str, partition: str | None) -> None:
        """Remove what is in a partition, or in all."""
        live = await self._find(object_id)
        numbers = live.engine.clear(partition, self.now())
        # Dropped before those who waited for the room put: the writes are in this order too.
        dropped = asyncio.ensure_future(self._drop(object_id, numbers))
        await asyncio.sleep(0)
        self._carry(live, live.engine.pump(self.now()))
        await dropped

    def owner_left(self, owner: str) -> None:
        """Release everything of a client whose connection is gone."""
        for object_id in self._owners.pop(owner, ()):
            task = self._live.get(object_id)
            if task is not None and task.done() and not task.cancelled() and task.exception() is None:
                live = task.result()
                self._carry(live, live.engine.owner_left(owner, self.now()))

    async def deleted(self, record: ObjectRecord) -> None:
        """Forget a Queue; whoever waits for an item of it gets none."""
        task = self._live.pop(record.object_id, None)
        if task is None:
            return
        live = await task
        live.gone = True
        if live.timer is not None:
            live.timer.cancel()
        self._payloads.drop(live.engine.clear(None, self.now()))
        for future in list(live.waiting.values()):
            if not future.done():
                future.set_exception(_deleted(record.object_id))

    # --- below ------------------------------------------------------------------------------------

    async def _find(self, object_id: str) -> _Live:
        task = self._live.get(object_id)
        if task is None:
            task = self._live[object_id] = asyncio.ensure_future(self._load(object_id))
        try:
            live = await asyncio.shield(task)
        except Exception:
            if self._live.get(object_id) is task:
                del self._live[object_id]
            raise
        if live.gone:
            # While it was read: nobody would ever be woken.
            raise _deleted(object_id)
        return live

    async def _load(self, object_id: str) -> _Live:
        items = await self._store.queue_items(object_id)
        if self._number is None:
            # Numbers of an earlier process must never be taken for ours, even of items that are gone.
            last = await self._store.last_item()
            if self._number is None:
                self._number = itertools.count(max(last + 1, int(time.time() * 1000) << 10))
        engine = QueueEngine(self._number.__next__, self._limits)
        engine.load(items)
        live = _Live(object_id, engine)
        self._carry(live, engine.tick(self.now()))
        return live

    def _expect(self, live: _Live, owner: str, key: str) -> asyncio.Future[qe.Command]:
        future = live.waiting[key] = asyncio.get_running_loop().create_future()
        self._owners.setdefault(owner, set()).add(live.object_id)
        future.add_done_callback(lambda _: live.waiting.pop(key, None))
        return future

    def _carry(self, live: _Live, commands: Sequence[qe.Command]) -> None:
        for command in commands:
            if isinstance(command, qe.Dropped):
                self._background(self._drop(live.object_id, command.numbers))
                continue
            future = live.waiting.get(command.key)
            if future is not None and not future.done():
                future.set_result(command)
        wakeup = live.engine.next_wakeup()
        if wakeup is None or (live.timer is not None and live.timer_at <= wakeup):
            return
        if live.timer is not None:
            live.timer.cancel()
        live.timer_at = wakeup
        delay = max(0.0, wakeup - self.now())
        live.timer = asyncio.get_running_loop().call_later(delay, self._tick, live)

    def _tick(self, live: _Live) -> None:
        live.timer = None
        self._carry(live, live.engine.tick(self.now()))

    async def _drop(self, object_id: str, numbers: Collection[int]) -> None:
        if numbers:
            self._payloads.drop(numbers)
            await self._store.queue_drop(object_id, numbers)

    async def _with_payloads(self, live: _Live, numbers: Sequence[int], value: dict[str, Any]) -> Answer:
        found = {number: self._payloads.get(number) for number in numbers}
        absent = [number for number, payload in found.items() if payload is None]
        if absent:
            found.update(await self._store.queue_payloads(live.object_id, absent))
        present = [(number, payload) for number, payload in found.items() if payload is not None]
        return {**value, "items": [x[0] for x in present]}, [x[1] for x in present]


def _deleted(object_id: str) -> NotFoundError:
    return NotFoundError(f"Queue {object_id} was deleted")


def _deadline(wait: float | None, now: float) -> float:
    return qe.FOREVER if wait is None else now + wait
