"""Spawned calls: their inputs and outputs are in the store before anybody is told so."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher.call_engine import CallEngine
from modal_nomad.dispatcher.store.base import CallRecord, Store, StoredInput, StoredOutput, StoreError
from modal_nomad.exception import NotFoundError, OutputExpiredError
from modal_nomad.wire.ids import created_at

logger = logging.getLogger("modal_nomad.dispatcher")

EXPIRY_SECONDS = 600.0
"""How often results are looked through for those kept long enough."""
GENERATOR = "generator"
"""The kind of a stored call whose function yields."""
FIRST_RETRY = 0.25
MAX_RETRY = 30.0
"""Seconds between attempts to keep results while the store fails."""


class DurableCalls:
    """What is between the call engine and the store for calls that outlive their callers.

    Args:
        store: an open store.
        calls: the call engine, to look at.
        result_days: how long results are kept.
        handle: gives the call engine an event.
    """

    def __init__(
        self, store: Store, calls: CallEngine, result_days: float, handle: Callable[[ev.Event], None]
    ) -> None:
        self.ids: set[str] = set()
        """The durable calls that the call engine holds: no more than are in progress."""
        self._store = store
        self._calls = calls
        self._keep_seconds = result_days * 86400
        self._handle = handle
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._loop = asyncio.get_running_loop()

    async def resume(self) -> list[str]:
        """Give the call engine the inputs that have no output yet; returns the calls of generators."""
        generators: list[str] = []
        async for page in self._store.load_pending():
            call = page.call
            self.ids.add(call.call_id)
            items = [(i.index, i.payload, i.flags) for i in page.inputs]
            inputs = ev.InputsSubmitted(call.call_id, call.function_id, True, None, items, method=call.method)
            self._handle(inputs)
            tries = {i.index: (i.losses, i.attempts) for i in page.inputs if i.losses or i.attempts}
            if tries:
                self._handle(ev.TriesKnown(call.call_id, tries))
            if call.kind == GENERATOR:
                generators.append(call.call_id)
        return generators

    async def submit(
        self,
        call_id: str,
        function_id: str,
        items: Sequence[ev.SubmittedInput],
        *,
        kind: str = "spawn",
        num_inputs: int | None = None,
        method: str = "",
        environment: str = "",
    ) -> None:
        """Take inputs of a spawned call; returns when they are on the disk.

        Args:
            call_id: the call.
            function_id: whose call.
            items: some of its inputs.
            kind: ``spawn``, or ``generator`` when the function yields.
            num_inputs: how many inputs the call has in all, once that is known.
            method: which method of a class; empty for a plain function.
            environment: where the function is.

        Raises:
            StoreError: they are not, and none of them will run.
        """
        inputs = [StoredInput(*item) for item in items]
        answered = await self._store.add_inputs(
            call_id,
            function_id,
            inputs,
            kind=kind,
            num_inputs=num_inputs,
            method=method,
            environment=environment,
        )
        # The call engine has forgotten a call whose outputs are all stored.
        fresh = [item for item in items if item[0] not in answered] if answered else items
        if fresh:
            self.ids.add(call_id)
            self._handle(ev.InputsSubmitted(call_id, function_id, True, None, fresh, method=method))

    async def keep(self, call_id: str, outputs: Sequence[ev.Output], container_id: str = "") -> None:
        """Put outputs (of one container) into the store, however long that takes, then wake who waits."""
        stored = [StoredOutput(i, s, p, f, container_id) for i, s, p, f in outputs]
        delay = FIRST_RETRY
        while True:
            try:
                expires = time.time() + self._keep_seconds
                await self._store.add_outputs(call_id, stored, expires_at=expires)
                break
            except StoreError as error:
                logger.error("results of call %s wait for the store: %s", call_id, error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, MAX_RETRY)
        self._handle(ev.OutputsStored(call_id, [o[0] for o in outputs]))
        if self._calls.settled(call_id):
            self._handle(ev.CallClosed(call_id))
            self.ids.discard(call_id)
        self.wake(call_id)

    async def keep_tries(self, command: ev.KeepTries) -> None:
        """Put into the store how often inputs failed, and how many containers were lost under them."""
        try:
            await self._store.set_tries(command.call_id, command.tries)
        except StoreError as error:
            logger.warning("failed runs of call %s are not counted: %s", command.call_id, error)

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
                if found and not self._is_old(call_id):
                    return found[0]
                call = await self._store.call(call_id)
                if call is None:
                    self._refuse(call_id)
                self.check_kept(call)
                if found:
                    return found[0]
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

    def check_kept(self, call: CallRecord) -> None:
        """Refuse a call whose results were kept long enough, though they are not removed yet.

        Raises:
            OutputExpiredError: they were, and no input of it is left to run.
        """
        over = call.expires_at is not None and call.expires_at <= time.time()
        if over and call.call_id not in self.ids:
            raise _expired(call.call_id)

    def _is_old(self, call_id: str) -> bool:
        made = created_at(call_id)
        return made is not None and made < time.time() - self._keep_seconds

    def _refuse(self, call_id: str) -> NoReturn:
        if self._is_old(call_id):
            raise _expired(call_id)
        raise NotFoundError(
            f"there is no call {call_id}: check the id, and that it was spawned on this server"
        )

    async def expire(self) -> None:
        """Drop results that were kept long enough, for ever."""
        while True:
            try:
                await self._store.expire(time.time())
            except StoreError as error:
                logger.warning("old results cannot be dropped: %s", error)
            await asyncio.sleep(EXPIRY_SECONDS)


def _expired(call_id: str) -> OutputExpiredError:
    return OutputExpiredError(
        f"the results of call {call_id} are no longer kept: spawn it again, or raise result_days in the "
        "dispatcher's configuration"
    )
