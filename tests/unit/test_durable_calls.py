"""Spawned calls between the call engine and the store: accepted means on the disk, answered means kept."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from modal_nomad.dispatcher import _durable_calls
from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher._call_reader import CallReader
from modal_nomad.dispatcher._durable_calls import DurableCalls
from modal_nomad.dispatcher._upkeep import MAX_LOSSES
from modal_nomad.dispatcher.call_engine import CallEngine
from modal_nomad.dispatcher.store import SqliteStore, StoreError
from modal_nomad.exception import NotFoundError, OutputExpiredError
from modal_nomad.wire.ids import created_at, new_id
from modal_nomad.wire.spec import RetrySpec


class Dispatcher:
    """A call engine with one Function, its durable calls and what is told to containers."""

    def __init__(self, store: SqliteStore, *, days: float = 7.0) -> None:
        self.calls = CallEngine()
        self.durable = DurableCalls(store, self.calls, days, self.handle)
        self.leased: dict[str, list[tuple[int, int]]] = {}
        self.tasks: list[Awaitable[None]] = []

    def live(self) -> None:
        self.handle(ev.FunctionAdded("fu", ev.FunctionPolicy("v1", max_containers=1)))

    def handle(self, event: ev.Event) -> None:
        for command in self.calls.handle(event, time.monotonic()):
            if isinstance(command, ev.Lease):
                leases = [(x[0], x[2]) for x in command.inputs]
                self.leased.setdefault(command.container_id, []).extend(leases)
            elif isinstance(command, ev.Deliver):
                self.tasks.append(asyncio.create_task(self.durable.keep(command.call_id, command.outputs)))
            elif isinstance(command, ev.KeepTries):
                self.tasks.append(asyncio.create_task(self.durable.keep_tries(command)))

    async def settle(self) -> None:
        """Wait until the store has what was told to it."""
        while self.tasks:
            await self.tasks.pop(0)

    def container(self, name: str) -> list[tuple[int, int]]:
        """Bring a container up and return the leases and indexes that it gets."""
        self.handle(ev.ContainersStarting("fu", "v1", [name]))
        self.handle(ev.WorkerReady(name, "fu", "v1"))
        return self.leased.get(name, [])

    def answer(self, name: str) -> None:
        leases = self.leased.pop(name)
        self.handle(ev.OutputsReturned(name, [(x, 0, b"out%d" % i, 0) for x, i in leases], 0.0))


@asynccontextmanager
async def _opened(path: Path, **options: Any) -> AsyncIterator[tuple[SqliteStore, Dispatcher]]:
    store = SqliteStore(path / "store.db")
    await store.open()
    try:
        yield store, Dispatcher(store, **options)
    finally:
        await store.close()


def _failing(times: int, real: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    left = iter(range(times))

    async def call(*args: Any, **options: Any) -> Any:
        if next(left, None) is not None:
            raise StoreError("no space left for the store: free some disk space")
        return await real(*args, **options)

    return call


async def test_lost_containers_are_counted_over_restarts(tmp_path: Path) -> None:
    call, lost = new_id("fc"), 0
    async with _opened(tmp_path) as (_, dispatcher):
        dispatcher.live()
        await dispatcher.durable.submit(call, "fu", [(0, b"poison", 0)])
    for _ in range(3):
        async with _opened(tmp_path) as (_, dispatcher):
            dispatcher.live()
            await dispatcher.durable.resume()
            for number in range(4):
                if not dispatcher.container(f"ta-{number}"):
                    break
                lost += 1
                dispatcher.handle(ev.WorkerLost(f"ta-{number}", "killed"))
            await dispatcher.settle()
    assert lost == MAX_LOSSES + 1
    async with _opened(tmp_path) as (_, dispatcher):
        output = await dispatcher.durable.result(call, 0, 0)
        assert output is not None and output.status == ev.INTERNAL
        assert b"lost 9 times" in output.payload


async def test_retries_are_counted_over_restarts(tmp_path: Path) -> None:
    call, runs = new_id("fc"), 0
    policy = ev.FunctionPolicy("v1", max_containers=1, retries=RetrySpec(3, 1.0, 0.0, 0.0))

    def live(dispatcher: Dispatcher) -> None:
        dispatcher.handle(ev.FunctionAdded("fu", policy))

    async with _opened(tmp_path) as (_, dispatcher):
        live(dispatcher)
        await dispatcher.durable.submit(call, "fu", [(0, b"in", 0), (1, b"in", 0)])
    for number in range(10):
        async with _opened(tmp_path) as (_, dispatcher):
            live(dispatcher)
            await dispatcher.durable.resume()
            leases = [x for x in dispatcher.container("ta") if x[1] == 0]
            if not leases:
                break
            runs += 1
            outputs = [(lease, ev.FAILURE, b"run %d" % number, 0) for lease, _ in leases]
            dispatcher.handle(ev.OutputsReturned("ta", outputs, 0.0))
            await dispatcher.settle()
    assert runs == 4
    async with _opened(tmp_path) as (store, dispatcher):
        output = await dispatcher.durable.result(call, 0, 0)
        assert output is not None and (output.status, output.payload) == (ev.FAILURE, b"run 3")
        (page,) = [page async for page in store.load_pending()]
        assert [(x.index, x.losses, x.attempts) for x in page.inputs] == [(1, 0, 0)]


async def test_what_the_store_refuses_is_not_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _opened(tmp_path) as (store, dispatcher):
        dispatcher.live()
        monkeypatch.setattr(store, "add_inputs", _failing(1, store.add_inputs))
        with pytest.raises(StoreError, match="free some disk space"):
            await dispatcher.durable.submit("fc-1", "fu", [(0, b"in", 0)])
        assert dispatcher.container("ta-1") == []
        assert dispatcher.calls.pending("fc-1") is None and not dispatcher.durable.ids
        await dispatcher.durable.submit("fc-1", "fu", [(0, b"in", 0)])
        assert [index for _, index in dispatcher.leased["ta-1"]] == [0]


async def test_results_wait_for_a_store_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_durable_calls, "FIRST_RETRY", 0.001)
    async with _opened(tmp_path) as (store, dispatcher):
        dispatcher.live()
        await dispatcher.durable.submit("fc-1", "fu", [(0, b"in", 0)])
        dispatcher.container("ta-1")
        monkeypatch.setattr(store, "add_outputs", _failing(3, store.add_outputs))
        dispatcher.answer("ta-1")
        output = await dispatcher.durable.result("fc-1", 0, 20)
        assert output is not None and output.payload == b"out0"


async def test_a_finished_call_is_forgotten_and_does_not_run_again(tmp_path: Path) -> None:
    async with _opened(tmp_path) as (_, dispatcher):
        dispatcher.live()
        await dispatcher.durable.submit("fc-1", "fu", [(0, b"in", 0), (1, b"in", 0)])
        while dispatcher.leased or dispatcher.container("ta-1"):
            dispatcher.answer("ta-1")
        await dispatcher.settle()
        assert dispatcher.calls.stats().calls == 0 and not dispatcher.durable.ids
        # Its client comes back and sends everything once more, and one input besides.
        await dispatcher.durable.submit("fc-1", "fu", [(i, b"in", 0) for i in range(3)])
        assert [index for _, index in dispatcher.leased["ta-1"]] == [2]


async def test_inputs_of_a_function_that_is_gone_are_answered_at_the_next_start(tmp_path: Path) -> None:
    async with _opened(tmp_path) as (store, dispatcher):
        await store.add_inputs("fc-1", "fu-gone", [])
        dispatcher.live()
        await dispatcher.durable.submit("fc-2", "fu", [(0, b"in", 0)])
    async with _opened(tmp_path) as (_, dispatcher):
        await dispatcher.durable.resume()
        output = await dispatcher.durable.result("fc-2", 0, 20)
        assert output is not None and output.status == ev.INTERNAL and b"deploy" in output.payload


async def test_results_expire_and_are_said_to_have_expired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = new_id("fc")
    now = time.time()
    async with _opened(tmp_path, days=7) as (store, dispatcher):
        dispatcher.live()
        await dispatcher.durable.submit(call, "fu", [(0, b"in", 0)])
        dispatcher.container("ta-1")
        dispatcher.answer("ta-1")
        assert await dispatcher.durable.result(call, 0, 20) is not None
        with pytest.raises(NotFoundError, match="there is no call"):
            await dispatcher.durable.result(new_id("fc"), 0, 0)
        monkeypatch.setattr(_durable_calls.time, "time", lambda: now + 6.9 * 86400)
        assert await store.expire(now + 6.9 * 86400) == []
        assert await dispatcher.durable.result(call, 0, 0) is not None
        monkeypatch.setattr(_durable_calls.time, "time", lambda: now + 7.1 * 86400)
        # Before they are removed, too.
        reader = CallReader(store, dispatcher.durable)
        for look in (dispatcher.durable.result(call, 0, 0), reader.outputs(call, 0, 1, 0.0)):
            with pytest.raises(OutputExpiredError, match="no longer kept"):
                await look
        assert await store.expire(now + 7.1 * 86400) == [call]
        with pytest.raises(OutputExpiredError, match="no longer kept"):
            await dispatcher.durable.result(call, 0, 0)
        for other in ("fc-nonsense", "", "fc-" + "z" * 22):
            with pytest.raises(NotFoundError):
                await dispatcher.durable.result(other, 0, 0)


def test_ids_tell_when_they_were_made_and_sort_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: Collection[str] = []
    for now in (0, 1_700_000_000, 1_800_000_000, 4_000_000_000):
        monkeypatch.setattr(time, "time", lambda now=now: now + 0.7)
        made = [*made, new_id("fc")]
        assert created_at(made[-1]) == now
    again = set()
    for _ in range(2):
        # Programs that are seeded alike do not share their ids.
        random.seed(42)
        again.add(new_id("fc"))
    assert len(again) == 2
    assert made == sorted(made) and len({len(x) for x in made}) == 1
    assert created_at("fc-short") is None and created_at(f"{made[0]}\n") is None
