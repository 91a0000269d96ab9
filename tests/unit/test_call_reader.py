"""What is asked of spawned calls: in order, without gaps, waiting for what is not there yet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modal_nomad.dispatcher import _call_reader, _durable_calls
from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher._call_reader import CallReader
from modal_nomad.dispatcher._durable_calls import DurableCalls
from modal_nomad.dispatcher._durable_items import DurableItems
from modal_nomad.dispatcher.call_engine import CallEngine
from modal_nomad.dispatcher.store import SqliteStore, StoredInput, StoredOutput, StoreError
from modal_nomad.exception import NotFoundError, OutputExpiredError
from modal_nomad.wire.ids import new_id


class Bench:
    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.told: list[ev.Event] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.durable = DurableCalls(store, CallEngine(), 7.0, self.told.append)
        self.reader = CallReader(store, self.durable)
        self.items = DurableItems(
            store, self.durable, self.told.append, lambda x: self.tasks.add(asyncio.ensure_future(x))
        )


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    store = SqliteStore(tmp_path / "store.db")
    await store.open()
    await store.add_inputs("fc-1", "fu-1", [StoredInput(i, b"") for i in range(5)])
    yield Bench(store)
    await store.close()


async def test_outputs_come_in_order_up_to_the_first_gap(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.durable.keep("fc-1", [(i, 0, b"x" * 10, 0) for i in (0, 1, 2, 4)])
    page = await bench.reader.outputs("fc-1", 0, 100, 0.0)
    assert [x.index for x in page.outputs] == [0, 1, 2] and page.num_inputs is None
    assert [x.index for x in (await bench.reader.outputs("fc-1", 1, 1, 0.0)).outputs] == [1]
    assert (await bench.reader.outputs("fc-1", 3, 100, 0.0)).outputs == []
    waiting = asyncio.ensure_future(bench.reader.outputs("fc-1", 3, 100, 30.0))
    await bench.durable.keep("fc-1", [(3, 0, b"late", 0)])
    assert [x.index for x in (await waiting).outputs] == [3, 4]
    monkeypatch.setattr(_call_reader, "MAX_ANSWER_BYTES", 25)
    assert [x.index for x in (await bench.reader.outputs("fc-1", 0, 100, 0.0)).outputs] == [0, 1]


async def test_the_end_of_a_call_is_known_once_its_caller_has_said_it(bench: Bench) -> None:
    call = await bench.reader.record("fc-1")
    assert await bench.reader.num_inputs(call) == 5
    await bench.durable.submit("fc-1", "fu-1", [], num_inputs=6)
    call = await bench.reader.record("fc-1")
    assert await bench.reader.num_inputs(call) == 6
    page = await bench.reader.outputs("fc-1", 6, 100, 30.0)
    assert page.outputs == [] and page.num_inputs == 6


async def test_items_come_before_the_output_that_ended_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modal_nomad.dispatcher._durable_items._FIRST_RETRY", 0.001)
    real, failures = bench.store.add_items, [StoreError("the disk is full")] * 2

    async def add_items(*args: object) -> None:
        if failures:
            raise failures.pop()
        await real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.store, "add_items", add_items)
    waiting = asyncio.ensure_future(bench.reader.items("fc-1", 0, 0, 100, 30.0))
    bench.items.keep(ev.DeliverItems("fc-1", 0, 0, [(b"a", 0), (b"b", 1)]))
    # However long the store fails, an output waits for the items before it.
    await bench.items.written("fc-1")
    await bench.durable.keep("fc-1", [(0, 0, b"2", 0)])
    page = await waiting
    assert page.items == [(b"a", 0), (b"b", 1)] and page.end is None
    assert ev.ItemsTaken("fc-1", 0, 2) in bench.told
    assert (await bench.reader.items("fc-1", 0, 1, 100, 0.0)).items == [(b"b", 1)]
    assert (await bench.reader.items("fc-1", 0, 2, 100, 0.0)).end == StoredOutput(0, 0, b"2")
    assert (await bench.reader.items("fc-1", 1, 0, 100, 0.0)) == _call_reader.ItemPage([], None)
    bench.told.clear()
    await bench.items.resume("fc-1")
    assert bench.told == [ev.ItemsTaken("fc-1", 0, 2)]


async def test_calls_that_are_not_there(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    old = new_id("fc")
    now = time.time()
    with pytest.raises(NotFoundError):
        await bench.reader.record(old)
    monkeypatch.setattr(_durable_calls.time, "time", lambda: now + 8 * 86400)
    for ask in (bench.reader.outputs(old, 0, 1, 0.0), bench.reader.items(old, 0, 0, 1, 0.0)):
        with pytest.raises(OutputExpiredError, match="no longer kept"):
            await ask
