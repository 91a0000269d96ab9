"""Spawned calls: their inputs and outputs are in the store before anybody is told so."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Container, Iterator, Sequence

from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher.store.base import Store, StoredInput, StoredOutput
from modal_nomad.exception import NotFoundError, OutputExpiredError

EXPIRY_SECONDS = 600.0
"""How often results are looked through for those kept long enough."""


class DurableCalls:
    """What is between the call engine and the store for calls that outlive their callers.

    Args:
        store: an open store.
        functions: the ids of the live Functions.
        result_days: how long results are kept.
        handle: gives the call engine an event.
    """

    def __init__(
        self,
        store: Store,
        functions: Container[str],
        result_days: float,
        handle: Callable[[ev.Event], None],
    ) -> None:
        self.ids: set[str] = set()
        self._store = store
        self._functions = functions
        self._keep_seconds = result_days * 86400
        self._handle = handle
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._loop = asyncio.get_running_loop()

    async def resume(self) -> None:
        """Give the call engine the inputs that have no output yet."""
        async for page in self._store.load_pending():
            call = page.call
            self.ids.add(call.call_id)
            if call.function_id not in self._functions:
                continue
            done = [o.index for o in await self._store.outputs(call.call_id)]
            again = ev.InputsSubmitted(call.call_id, call.function_id, True, None, [], method=call.method)
            self._handle(again)
            self._handle(ev.OutputsStored(call.call_id, done))
            items = [(i.index, i.payload, i.flags) for i in page.inputs]
            self._handle(dataclasses.replace(again, inputs=items))

    async def submit(
        self,
        call_id: str,
        function_id: str,
        items: Sequence[ev.SubmittedInput],
        *,
        kind: str = "spawn",
        num_inputs: int | None = None,
        method: str = "",
    ) -> None:
        """Take inputs of a spawned call; returns when they are on the disk.

        Args:
            call_id: the call.
            function_id: whose call.
            items: some of its inputs.
            kind: ``spawn``, or ``generator`` when the function yields.
            num_inputs: how many inputs the call has in all, once that is known.
            method: which method of a class; empty for a plain function.
        """
        self.ids.add(call_id)
        inputs = [StoredInput(*item) for item in items]
        await self._store.add_inputs(
            call_id, function_id, inputs, kind=kind, num_inputs=num_inputs, method=method
        )
        self._handle(ev.InputsSubmitted(call_id, function_id, True, None, items, method=method))

    async def keep(self, call_id: str, outputs: Sequence[ev.Output]) -> None:
        """Put outputs into the store, then wake who waits for them."""
        expires = time.time() + self._keep_seconds
        await self._store.add_outputs(
            call_id, [StoredOutput(i, s, p, f) for i, s, p, f in outputs], expires_at=expires
        )
        self._handle(ev.OutputsStored(call_id, [o[0] for o in outputs]))
        self.wake(call_id)

    async def result(self, call_id: str, index: int, timeout: float | None) -> StoredOutput | None:
        """Wait for an output of a durable call; None when ``timeout`` seconds pass without one.

        Raises:
            NotFoundError: there is no such call.
            OutputExpiredError: its results are no longer kept.
        """
        deadline = None if timeout is None else self._loop.time() + timeout
        while True:
            with self.waiter(call_id) as waiter:
                found = await self._store.outputs(call_id, [index])
                if found:
                    return found[0]
                call = await self._store.call(call_id)
                if call is None:
                    raise NotFoundError(
                        f"there is no call {call_id}: the id is wrong, or its results expired"
                    )
                if call.expires_at is not None and call.expires_at < time.time():
                    raise OutputExpiredError(f"the results of call {call_id} are no longer kept")
                left = None if deadline is None else deadline - self._loop.time()
                if left is not None and left <= 0:
                    return None
                try:
                    await asyncio.wait_for(waiter, left)
                except asyncio.TimeoutError:
                    return None

    @contextlib.contextmanager
    def waiter(self, call_id: str) -> Iterator[asyncio.Future[None]]:
        """Give a future that is done when something of the call was stored after now."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.setdefault(call_id, []).append(waiter)
        try:
            yield waiter
        finally:
            waiting = self._waiters.get(call_id, [])
            if waiter in waiting:
                waiting.remove(waiter)
            if not waiting:
                self._waiters.pop(call_id, None)

    def wake(self, call_id: str) -> None:
        """Wake who waits for something of a call."""
        for waiter in self._waiters.pop(call_id, ()):
            if not waiter.done():
                waiter.set_result(None)

    async def expire(self) -> None:
        """Drop results that were kept long enough, for ever."""
        while True:
            for call_id in await self._store.expire(time.time()):
                self.ids.discard(call_id)
                self._handle(ev.CallClosed(call_id))
            await asyncio.sleep(EXPIRY_SECONDS)
