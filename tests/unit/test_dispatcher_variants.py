"""The dispatcher's variants: made once, following or retired, removed with their parents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher._containers import FunctionState
from modal_nomad.dispatcher._variants import Variants
from modal_nomad.dispatcher.store import FunctionRecord, SqliteStore
from modal_nomad.wire.spec import FunctionSpec

SPEC = FunctionSpec("app", "Model.*", is_class=True).to_dict()
JOB = {"ID": "app-Model", "Namespace": "default"}


class Engine:
    """Notes what is submitted and stopped."""

    def __init__(self) -> None:
        self.jobs: set[str] = set()

    async def submit(self, job: Any, token: Any = None) -> None:
        self.jobs.add(job["ID"])

    async def stop(self, job_id: str, **_: Any) -> None:
        self.jobs.discard(job_id)


class Room:
    """Variants of one class, and all that is around them."""

    def __init__(self, store: SqliteStore) -> None:
        self.engine = Engine()
        self.functions: dict[str, FunctionState] = {}
        self.events: list[ev.Event] = []
        self.busy: set[str] = set()
        self.tasks: list[asyncio.Task[Any]] = []
        self.variants = Variants(
            store,
            self.engine,  # type: ignore[arg-type]
            self.functions,
            self.events.append,
            self._pool,
            lambda work: self.tasks.append(asyncio.ensure_future(work)),
        )
        self.publish(SPEC)

    def _pool(self, function_id: str) -> Any:
        return SimpleNamespace(backlog=int(function_id in self.busy), running=0, prefetched=0)

    def publish(self, spec: dict[str, Any]) -> None:
        record = FunctionRecord("fu-1", "ap-1", "Model.*", "main", 1, spec, JOB)
        self.functions["fu-1"] = FunctionState(record)
        self.variants.follow("fu-1")

    async def options(self, **changes: Any) -> str:
        spec = {**SPEC, "timeout": 5.0, **changes}
        job = {"ID": f"app-Model--{changes.get('timeout', 5)}", "Namespace": "default"}
        return await self.variants.bind("fu-1", None, {"spec": spec, "job": job}, None)


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    store = SqliteStore(tmp_path / "store.db")
    await store.open()
    made = Room(store)
    yield made
    made.variants.close()
    await store.close()


async def test_the_same_is_made_once(room: Room) -> None:
    one = await room.variants.bind("fu-1", b"a", {}, None)
    assert await room.variants.bind("fu-1", b"a", {}, None) == one
    assert await room.variants.bind("fu-1", b"b", {}, None) != one
    assert [type(e) for e in room.events] == [ev.FunctionAdded, ev.FunctionAdded]
    assert room.engine.jobs == set(), "parameters alone have no job of their own"


async def test_parameters_follow_a_deployment(room: Room) -> None:
    one = await room.variants.bind("fu-1", b"a", {}, None)
    before = room.functions[one].version
    room.publish({**SPEC, "env": {"NEW": "1"}})
    assert room.functions[one].version != before and room.functions[one].params == b"a"


async def test_options_are_retired_when_nobody_asks_for_them_again(room: Room) -> None:
    options = await room.options()
    child = await room.variants.bind(options, b"a", {}, None)
    room.busy.add(child)
    room.publish({**SPEC, "env": {"NEW": "1"}})
    room.variants._retire(options)
    assert not room.tasks, "what works is let end"
    room.busy.clear()
    room.variants._retire(options)
    await asyncio.gather(*room.tasks)
    assert set(room.functions) == {"fu-1"} and room.engine.jobs == set()
    again = await room.options()
    assert again == options and room.engine.jobs == {"app-Model--5"}


async def test_who_asks_again_keeps_them(room: Room) -> None:
    options = await room.options()
    room.publish(SPEC)
    assert options in room.variants._graces._timers
    await room.options()
    assert options not in room.variants._graces._timers


async def test_all_of_them_go_with_their_parent(room: Room) -> None:
    await room.variants.bind(await room.options(), b"a", {}, None)
    await room.variants.bind("fu-1", b"a", {}, None)
    await room.variants.remove("fu-1", "its app was stopped", None)
    assert set(room.functions) == {"fu-1"} and room.engine.jobs == set()
    assert sum(type(e) is ev.FunctionRemoved for e in room.events) == 3


async def test_they_come_back_after_a_restart(room: Room, tmp_path: Path) -> None:
    options = await room.options()
    child = await room.variants.bind(options, b"a", {}, None)
    later = Room(room.variants._store)  # type: ignore[arg-type]
    await later.variants.resume()
    assert set(later.functions) == {"fu-1", options, child} and later.engine.jobs == {"app-Model--5"}
    assert later.functions[child].params == b"a" and later.functions[child].job_id == "app-Model--5"
