"""The book of who called whom: what it keeps, and that it is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest

from modal_nomad.call_graph import InputInfo, InputStatus, build
from modal_nomad.dispatcher import _call_graph
from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher._call_graph import CallGraph
from modal_nomad.dispatcher.call_engine import CallEngine
from modal_nomad.dispatcher.store import SqliteStore, StoredInput, StoredOutput
from modal_nomad.exception import NotFoundError


class Bench:
    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.durable = {"fc-root"}
        self.tasks: list[asyncio.Task[Any]] = []
        self.graph = CallGraph(store, CallEngine(), {}, self.durable, self.background)

    def background(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.tasks.append(asyncio.ensure_future(coroutine))

    def called(self, call_id: str, parent: str, *indexes: int) -> None:
        self.graph.called(call_id, "fu-1", "", parent, indexes)

    def answered(self, call_id: str, *statuses: int) -> None:
        outputs = [(i, status, b"", 0) for i, status in enumerate(statuses)]
        self.graph.answered(ev.Deliver(call_id, outputs), "ta-1")

    async def infos(self, call_id: str) -> list[InputInfo]:
        calls, inputs = await self.graph.graph(call_id)
        positions = {x.call_id: n for n, x in enumerate(calls)}
        rows = [(positions[x.call_id], x.input_index, x.status, x.task_id) for x in inputs]
        return build([(x.call_id, x.parent, x.name, x.module) for x in calls], rows)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    store = SqliteStore(tmp_path / "store.db")
    await store.open()
    await store.add_inputs("fc-root", "fu-1", [StoredInput(0, b"")])
    bench = Bench(store)
    yield bench
    for task in bench.tasks:
        task.cancel()
    await asyncio.gather(*bench.tasks, return_exceptions=True)
    await store.close()


async def test_what_a_durable_call_made_is_in_the_store(bench: Bench) -> None:
    bench.called("fc-a", "in-root:0", 0, 1)
    bench.answered("fc-a", 0, 1)
    bench.called("fc-b", "in-a:1", 0)
    bench.graph.ended("fc-a")
    (root,) = await bench.infos("fc-root")
    assert [x.status for x in root.children] == [InputStatus.SUCCESS, InputStatus.FAILURE]
    # Its parent was forgotten here before it came, but not what it belongs to; nobody runs it any more.
    assert [x.status for x in root.children[1].children] == [InputStatus.TERMINATED]
    # Another dispatcher on the same store knows as much.
    again = Bench(bench.store)
    assert [x.task_id for x in (await again.infos("fc-root"))[0].children] == ["ta-1", "ta-1"]
    await bench.store.add_outputs("fc-root", [StoredOutput(0, 4, b"", 0, "ta-9")], expires_at=10.0)
    assert [(x.status, x.task_id) for x in await again.infos("fc-root")] == [(InputStatus.TIMEOUT, "ta-9")]
    await bench.store.expire(11.0)
    assert await bench.store.graph("fc-root", 100) == ([], [])
    assert await bench.store.graph("fc-a", 100) == ([], [])


async def test_what_other_calls_made_is_remembered_up_to_a_bound(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_call_graph, "MAX_MEMORY", 10)
    bench.called("fc-1", "in-live:0", 0)
    bench.called("fc-2", "in-1:0", 0, 1)
    bench.answered("fc-2", 0, 5)
    (one,) = await bench.infos("fc-1")
    assert [x.status for x in one.children] == [InputStatus.SUCCESS, InputStatus.FAILURE]
    for number in range(3, 100):
        bench.called(f"fc-{number}", "in-live:0", 0)
    assert len(bench.graph._nodes) == 10 and bench.graph._memory == 10
    with pytest.raises(NotFoundError):
        await bench.infos("fc-1")


async def test_large_calls_are_written_down_in_part(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_call_graph, "MAX_INPUTS", 5)
    monkeypatch.setattr(_call_graph, "MAX_CALLS", 3)
    bench.called("fc-a", "in-root:0", *range(100))
    bench.answered("fc-a", *[0] * 100)
    assert len(await bench.infos("fc-a")) == 3
    for number in range(100):
        bench.called(f"fc-b{number}", "in-a:0", 0)
    assert len(bench.graph._nodes) <= 4


def test_the_statuses_of_the_wire() -> None:
    rows = [(0, n, status, "") for n, status in enumerate([None, 0, 1, 2, 3, 4, 5])]
    names = [x.status.name for x in build([("fc-x", "", "f", "m")], rows)]
    assert names == [
        "PENDING",
        "SUCCESS",
        "FAILURE",
        "INIT_FAILURE",
        "TERMINATED",
        "TIMEOUT",
        "FAILURE",
    ]
    assert build([], []) == []
