"""What can be asked of a spawned call: how many inputs it has, and its results in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from modal_nomad.dispatcher._durable_calls import DurableCalls
from modal_nomad.dispatcher.store.base import CallRecord, Store, StoredOutput

T = TypeVar("T")

MAX_ANSWER_BYTES = 8 << 20
"""An answer with results stops growing here: frames are bounded."""


@dataclass(frozen=True)
class Page:
    """Results in order; ``num_inputs`` is None while the caller may still add inputs."""

    outputs: list[StoredOutput]
    num_inputs: int | None


@dataclass(frozen=True)
class ItemPage:
    """What a generator yielded, in order; or, when there is no more of it, the output that ended it."""

    items: list[tuple[bytes, int]]
    end: StoredOutput | None


class CallReader:
    """Reads spawned calls, waiting for what is not there yet.

    Args:
        store: an open store.
        durable: wakes those who wait, and says why a call cannot be had.
    """

    def __init__(self, store: Store, durable: DurableCalls) -> None:
        self._store = store
        self._durable = durable
        self._loop = asyncio.get_running_loop()

    async def record(self, call_id: str) -> CallRecord:
        """Return a call. Raises NotFoundError or OutputExpiredError."""
        call = await self._store.call(call_id)
        if call is None:
            await self._durable.result(call_id, 0, 0.0)
            # It came between the two looks.
            return await self.record(call_id)
        self._durable.check_kept(call)
        return call

    async def num_inputs(self, call: CallRecord) -> int:
        """Return how many inputs a call has, or has so far."""
        if call.num_inputs is not None:
            return call.num_inputs
        return await self._store.count_inputs(call.call_id)

    async def outputs(self, call_id: str, start: int, limit: int, timeout: float) -> Page:
        """Return the outputs from ``start`` on that have no gap, waiting for the first of them.

        Raises:
            NotFoundError: there is no such call.
            OutputExpiredError: its results are no longer kept.
        """

        async def look() -> Page | None:
            call = await self.record(call_id)
            found = await self._store.outputs(call_id, range(start, start + limit))
            page: list[StoredOutput] = []
            size = 0
            for output in found:
                size += len(output.payload)
                if output.index != start + len(page) or (page and size > MAX_ANSWER_BYTES):
                    break
                page.append(output)
            ended = call.num_inputs is not None and start >= call.num_inputs
            return Page(page, call.num_inputs) if page or ended else None

        page = await self.until(call_id, timeout, look)
        return page if page is not None else Page([], (await self.record(call_id)).num_inputs)

    async def items(self, call_id: str, index: int, start: int, limit: int, timeout: float) -> ItemPage:
        """Return what a generator yielded from a number on, waiting for the first of it.

        Raises:
            NotFoundError: there is no such call.
            OutputExpiredError: its results are no longer kept.
        """

        async def look() -> ItemPage | None:
            await self.record(call_id)
            # In this order: an output is stored after all items.
            outputs = await self._store.outputs(call_id, [index])
            page: list[tuple[bytes, int]] = []
            size = 0
            for number, payload, flags in await self._store.items(call_id, index, start, limit):
                size += len(payload)
                if number != start + len(page) or (page and size > MAX_ANSWER_BYTES):
                    break
                page.append((payload, flags))
            if page:
                return ItemPage(page, None)
            return ItemPage([], outputs[0]) if outputs else None

        return await self.until(call_id, timeout, look) or ItemPage([], None)

    async def until(self, call_id: str, timeout: float, look: Callable[[], Awaitable[T | None]]) -> T | None:
        """Return what ``look`` finds, looking again whenever something of the call was stored."""
        deadline = self._loop.time() + timeout
        while True:
            with self._durable.waiter(call_id) as waiter:
                found = await look()
                if found is not None:
                    return found
                left = deadline - self._loop.time()
                if left <= 0:
                    return None
                try:
                    await asyncio.wait_for(waiter, left)
                except asyncio.TimeoutError:
                    return None
