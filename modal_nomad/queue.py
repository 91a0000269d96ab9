"""Queues: first in, first out, shared between programs and containers."""

from __future__ import annotations

import queue as _queue
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from . import exception
from ._bridge import blocking, blocking_function, blocking_function_context, blocking_gen
from ._object_manager import ObjectManager
from ._options import warn_deprecated
from ._renamed import renamed
from .object import Object, _by_id
from .types import QueueInfo, described
from .wire.serialization import dumps, loads

if TYPE_CHECKING:
    import builtins

    from .client import Client

__all__ = ["Queue"]

MAX_ITEM_BYTES = 256 << 10
MAX_ITEMS = 5_000
MAX_PARTITION_BYTES = 64
DAY_SECONDS = 24 * 3600


class Queue(Object):
    """A queue on the server, shared by every program and container that knows its name.

    A Queue has up to 100,000 partitions, each a queue of its own with up to 5,000 items of up to 256 KiB.
    Without ``partition=`` all happens in the default partition. A partition is cleared 24 hours after the
    last put into it, or earlier by ``partition_ttl``.

    Example:
        >>> with modal.Queue.ephemeral() as jobs:
        ...     jobs.put("first")
        ...     jobs.put_many(["second", "third"])
        ...     jobs.get(), jobs.get_many(5)
        ('first', ['second', 'third'])
    """

    kind = "queue"
    label = "Queue"
    objects: ClassVar[ObjectManager[Queue]]

    @staticmethod
    def validate_partition_key(partition: str | None) -> bytes:
        """Return a partition's key as bytes; empty for the default partition.

        Raises:
            InvalidError: it is not text of 1 to 64 bytes.

        Example:
            >>> modal.Queue.validate_partition_key("mine"), modal.Queue.validate_partition_key(None)
            (b'mine', b'')
        """
        if partition is None:
            return b""
        data = partition.encode(errors="replace") if isinstance(partition, str) else b""
        if not 1 <= len(data) <= MAX_PARTITION_BYTES:
            raise exception.InvalidError(
                f"Invalid partition key {partition!r:.100}; give text of 1 to {MAX_PARTITION_BYTES} bytes"
            )
        return data

    @staticmethod
    @renamed("label", "name")
    def from_name(
        name: str,
        namespace: Any = None,
        environment_name: str | None = None,
        create_if_missing: bool = False,
        *,
        client: Client | None = None,
    ) -> Queue:
        """Refer to a Queue by name; nothing is asked of the server until it is used.

        Args:
            name: its name in the environment.
            namespace: ignored; older code passes it.
            environment_name: the environment, or the configured one.
            create_if_missing: whether it is created where there is none.
            client: the connection, or the configured one.

        Raises:
            InvalidError: for a name that cannot be.
            NotFoundError: on first use, when there is none.

        Example:
            >>> jobs = modal.Queue.from_name("jobs", create_if_missing=True)
            >>> jobs.put(42)
            >>> modal.Queue.from_name("jobs").get()
            42
            >>> modal.Queue.delete("jobs")
        """
        return Queue._named(name, environment_name, create_if_missing=create_if_missing, client=client)

    @staticmethod
    @blocking_function
    @renamed("label", "name")
    async def lookup(
        name: str,
        namespace: Any = None,
        client: Client | None = None,
        environment_name: str | None = None,
        create_if_missing: bool = False,
    ) -> Queue:
        """Deprecated form of ``from_name(...).hydrate()``."""
        Queue._deprecated_lookup()
        made = Queue.from_name(name, None, environment_name, create_if_missing, client=client)
        await made._target()
        return made

    @staticmethod
    def from_id(object_id: str, client: Client | None = None) -> Queue:
        """Refer to a Queue by its id.

        Example:
            >>> with modal.Queue.ephemeral() as one:
            ...     one.put("a")
            ...     modal.Queue.from_id(one.object_id).get()
            'a'
        """
        made = _by_id(Queue, object_id)
        made._client = client
        return made

    @staticmethod
    @blocking_function_context
    async def ephemeral(
        client: Client | None = None,
        environment_name: str | None = None,
        _heartbeat_sleep: float = 300.0,
    ) -> AsyncIterator[Queue]:
        """Create a Queue without a name, which is gone at the end of the block, or with this program.

        Example:
            >>> with modal.Queue.ephemeral() as q:
            ...     q.put(1)
            ...     q.len()
            1
        """
        body = Queue._ephemeral(client, environment_name)
        try:
            async for made in body:
                yield made
        finally:
            await body.aclose()  # type: ignore[attr-defined]

    @staticmethod
    @blocking_function
    @renamed("label", "name")
    async def delete(name: str, *, client: Client | None = None, environment_name: str | None = None) -> None:
        """Delete a named Queue with all that is in it.

        Raises:
            NotFoundError: there is none of that name.

        Example:
            >>> _ = modal.Queue.from_name("old", create_if_missing=True).hydrate()
            >>> modal.Queue.delete("old")
        """
        await Queue._delete(name, client, environment_name)

    if TYPE_CHECKING:

        @blocking
        async def hydrate(self, client: Client | None = None) -> Queue: ...

    @blocking
    async def info(self) -> QueueInfo:
        """Return its name, when it was made and by whom.

        Example:
            >>> with modal.Queue.ephemeral() as q:
            ...     q.info().name is None
            True
        """
        info: QueueInfo = described(QueueInfo, await self._described())
        return info

    # --- items ------------------------------------------------------------------------------------

    @blocking
    async def get(
        self, block: bool = True, timeout: float | None = None, *, partition: str | None = None
    ) -> Any:
        """Remove the next item and return it.

        Whoever waits is served in the order in which they came. An item is removed for good before it
        is returned, and goes back to its place when this program ends before.

        Args:
            block: wait for an item; else return None where there is none.
            timeout: wait at most so many seconds.
            partition: which partition; by default the default one.

        Raises:
            queue.Empty: nothing came in time (the standard library's exception).

        Example:
            >>> with modal.Queue.ephemeral() as q:
            ...     q.put("a")
            ...     q.get(), q.get(block=False)
            ('a', None)
        """
        found = await self._take(1, block, timeout, partition)
        return found[0] if found else None

    @blocking
    async def get_many(
        self,
        n_values: int,
        block: bool = True,
        timeout: float | None = None,
        *,
        partition: str | None = None,
    ) -> builtins.list[Any]:
        """Remove up to ``n_values`` items and return them; waits for one, not for all.

        Args:
            n_values: at most so many.
            block: wait for an item; else return an empty list where there is none.
            timeout: wait at most so many seconds.
            partition: which partition; by default the default one.

        Raises:
            queue.Empty: nothing came in time (the standard library's exception).

        Example:
            >>> with modal.Queue.ephemeral() as q:
            ...     q.put_many([1, 2, 3])
            ...     q.get_many(2), q.get_many(2), q.get_many(2, block=False)
            ([1, 2], [3], [])
        """
        if type(n_values) is not int or n_values < 1:
            raise exception.InvalidError(f"n_values is {n_values!r}; give a whole number of at least 1")
        return await self._take(n_values, block, timeout, partition)

    @blocking
    async def put(
        self,
        v: Any,
        block: bool = True,
        timeout: float | None = None,
        *,
        partition: str | None = None,
        partition_ttl: int = DAY_SECONDS,
    ) -> None:
        """Add an item at the end. The server's disk has it when this returns.

        Args:
            v: the item; whatever can be pickled, to at most 256 KiB.
            block: wait for room in a full partition.
            timeout: wait at most so many seconds.
            partition: which partition; by default the default one.
            partition_ttl: seconds until the partition is cleared, unless something is put before.

        Raises:
            queue.Full: the partition has 5,000 items, and none was taken in time.
            RequestSizeError: the item is too large.

        Example:
            >>> with modal.Queue.ephemeral() as q:
            ...     q.put({"job": 1}, partition="urgent", partition_ttl=600)
            ...     q.len(partition="urgent"), q.len()
            (1, 0)
        """
        await self._put([v], block, timeout, partition, partition_ttl)

    @blocking
    async def put_many(
        self,
        vs: Iterable[Any],
        block: bool = True,
        timeout: float | None = None,
        *,
        partition: str | None = None,
        partition_ttl: int = DAY_SECONDS,
    ) -> None:
        """Add several items at the end, in order; otherwise as ``put``.

        Example:
            >>> with modal.Queue.ephemeral() as q:
            ...     q.put_many(range(3))
            ...     q.len()
            3
        """
        await self._put(list(vs), block, timeout, partition, partition_ttl)

    @blocking
    async def len(self, *, partition: str | None = None, total: bool = False) -> int:
        """Count the items of a partition, or with ``total`` of all.

        Example:
            >>> with modal.Queue.ephemeral() as q:
            ...     q.put(1)
            ...     q.put(2, partition="other")
            ...     q.len(), q.len(total=True)
            (1, 2)
        """
        if partition is not None and total:
            raise exception.InvalidError("len() takes partition= or total=True, not both")
        client, args = await self._where(partition)
        return int((await client._ask("queue.len", {**args, "total": total}))[0]["len"])

    @blocking
    async def clear(self, *, partition: str | None = None, all: bool = False) -> None:
        """Remove all items of a partition, or with ``all`` of every one.

        Example:
            >>> with modal.Queue.ephemeral() as q:
            ...     q.put_many([1, 2])
            ...     q.clear()
            ...     q.len()
            0
        """
        if partition is not None and all:
            raise exception.InvalidError("clear() takes partition= or all=True, not both")
        client, args = await self._where(partition)
        await client._ask("queue.clear", {**args, "all": all})

    @blocking_gen
    async def iterate(
        self, *, partition: str | None = None, item_poll_timeout: float = 0.0
    ) -> AsyncIterator[Any]:
        """Yield the items in place, without removing them, and those that come while this goes on.

        Args:
            partition: which partition; by default the default one.
            item_poll_timeout: how many seconds after the last item to wait for another.

        Example:
            >>> with modal.Queue.ephemeral() as q:
            ...     q.put_many("ab")
            ...     list(q.iterate()), q.len()
            (['a', 'b'], 2)
        """
        async for item in self._in_place(partition, item_poll_timeout, loads):
            yield item

    @blocking_gen
    async def _peek(self, partition: str | None, read: Callable[[bytes], Any]) -> AsyncIterator[Any]:
        """Yield what ``read`` makes of the bytes of items in place."""
        async for item in self._in_place(partition, 0.0, read):
            yield item

    # ---

    async def _in_place(
        self, partition: str | None, item_poll_timeout: float, read: Callable[[bytes], Any]
    ) -> AsyncIterator[Any]:
        from ._queue_items import look

        wait = _seconds("item_poll_timeout", item_poll_timeout) or 0.0
        client, args = await self._where(partition)
        after = 0
        while True:
            numbers, payloads = await look(client, args, after, wait)
            if not numbers:
                return
            for payload in payloads:
                yield read(payload)
            after = numbers[-1]

    async def _where(self, partition: str | None) -> tuple[Client, dict[str, Any]]:
        name = Queue.validate_partition_key(partition).decode()
        client, object_id = await self._target()
        return client, {"object_id": object_id, "partition": name}

    async def _take(
        self, wanted: int, block: bool, timeout: float | None, partition: str | None
    ) -> builtins.list[Any]:
        from ._queue_items import take

        wait = _wait(block, timeout)
        client, args = await self._where(partition)
        found = await take(client, args, wanted, wait, loads)
        if not found and block:
            raise _queue.Empty
        return found

    async def _put(
        self,
        values: builtins.list[Any],
        block: bool,
        timeout: float | None,
        partition: str | None,
        ttl: float,
    ) -> None:
        from ._queue_items import put

        if not isinstance(ttl, (int, float)) or isinstance(ttl, bool) or not 0 < ttl <= DAY_SECONDS:
            raise exception.InvalidError(
                f"partition_ttl is {ttl!r}; give seconds above 0, at most {DAY_SECONDS} (a day)"
            )
        wait = _wait(block, timeout)
        client, args = await self._where(partition)
        payloads = [dumps(value) for value in values]
        largest = max(map(_size, payloads), default=0)
        if largest > MAX_ITEM_BYTES:
            raise exception.RequestSizeError(
                f"an item of {largest} bytes is too large, a Queue takes {MAX_ITEM_BYTES}:"
                " put a reference to it, such as the path of a file in a Volume"
            )
        fits = block or _size(payloads) <= MAX_ITEMS
        if not (fits and await put(client, {**args, "ttl": ttl}, payloads, wait)):
            which = f"partition {partition!r}" if partition is not None else "the default partition"
            raise _queue.Full(f"{which} of the Queue is full: it holds {MAX_ITEMS} items at most")


Queue.objects = ObjectManager(Queue)
# Methods of Queue have this name, too.
_size = len


def _wait(block: bool, timeout: float | None) -> float | None:
    """Return how long to wait: 0 not at all, None without an end."""
    if not block:
        if timeout is not None:
            warn_deprecated("timeout is ignored with block=False", UserWarning)
        return 0.0
    return _seconds("timeout", timeout)


def _seconds(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
        raise exception.InvalidError(f"{name} is {value!r}; give a number of seconds of at least 0")
    return float(value)
