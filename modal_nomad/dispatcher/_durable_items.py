"""What spawned generators yield: in the store before the generator may go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher._durable_calls import DurableCalls
from modal_nomad.dispatcher.store.base import Store, StoreError

logger = logging.getLogger("modal_nomad.dispatcher")

_FIRST_RETRY = 0.25
_MAX_RETRY = 30.0


class DurableItems:
    """Writes the items of spawned generators; the disk is their reader, as the call engine sees it.

    Args:
        store: an open store.
        durable: wakes those who wait for items.
        handle: gives the call engine an event.
        background: runs a coroutine that nobody waits for.
    """

    def __init__(
        self,
        store: Store,
        durable: DurableCalls,
        handle: Callable[[ev.Event], None],
        background: Callable[[Coroutine[Any, Any, Any]], None],
    ) -> None:
        self._store = store
        self._durable = durable
        self._handle = handle
        self._background = background
        self._writing: dict[str, int] = {}
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}

    def keep(self, command: ev.DeliverItems) -> None:
        """Put items into the store, however long that takes, then let the generator go on."""
        call_id = command.call_id
        self._writing[call_id] = self._writing.get(call_id, 0) + 1
        self._background(self._keep(command))

    async def written(self, call_id: str) -> None:
        """Wait until no items of a call are being written: its outputs come after them."""
        if call_id in self._writing:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(call_id, []).append(future)
            await future

    async def resume(self, call_id: str) -> None:
        """Tell the call engine, after a restart, which items of a call are there."""
        for index, count in (await self._store.count_items(call_id)).items():
            self._handle(ev.ItemsTaken(call_id, index, count))

    async def _keep(self, command: ev.DeliverItems) -> None:
        call_id, end = command.call_id, command.first + len(command.items)
        delay = _FIRST_RETRY
        try:
            while True:
                try:
                    await self._store.add_items(call_id, command.index, command.first, command.items)
                    break
                except StoreError as error:
                    logger.error("items of call %s wait for the store: %s", call_id, error)
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, _MAX_RETRY)
        finally:
            self._writing[call_id] -= 1
            if not self._writing[call_id]:
                del self._writing[call_id]
                for future in self._waiting.pop(call_id, ()):
                    if not future.done():
                        future.set_result(None)
        self._handle(ev.ItemsTaken(call_id, command.index, end))
        self._durable.wake(call_id)
