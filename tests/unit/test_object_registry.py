"""The registry of named objects: whoever asks while an object goes, finds none, then and after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest

from modal_nomad.dispatcher.objects.registry import ObjectRegistry
from modal_nomad.dispatcher.store import SqliteStore, StoreError
from modal_nomad.dispatcher.store.objects import ObjectRecord
from modal_nomad.exception import NotFoundError


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "store.db")
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def registry(store: SqliteStore) -> AsyncIterator[ObjectRegistry]:
    tasks: list[asyncio.Task[Any]] = []

    def background(coroutine: Coroutine[Any, Any, Any]) -> None:
        tasks.append(asyncio.ensure_future(coroutine))

    registry = ObjectRegistry(store, 10.0, background)
    yield registry
    registry.close()
    await asyncio.gather(*tasks)


class Held:
    """A method of the store that waits for a test's word, before or after it does its work."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, store: SqliteStore, name: str, *, after: bool
    ) -> None:
        self.reached, self.go = asyncio.Event(), asyncio.Event()
        whole = getattr(store, name)

        async def held(*arguments: Any) -> Any:
            if after:
                answer = await whole(*arguments)
            self.reached.set()
            await self.go.wait()
            return answer if after else await whole(*arguments)

        monkeypatch.setattr(store, name, held)


async def test_an_object_that_is_being_deleted_is_not_found_and_not_remembered(
    store: SqliteStore, registry: ObjectRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, _ = await registry.create("dict", "a", None)
    removal = Held(monkeypatch, store, "remove_object", after=False)
    deleting = asyncio.ensure_future(registry.delete(record.object_id))
    await removal.reached.wait()
    for _ in range(2):
        with pytest.raises(NotFoundError):
            await registry.find(record.object_id)
    # It has its name until it is gone, but by name it is not remembered either.
    assert (await registry.named("dict", "a", None)).object_id == record.object_id
    twice = asyncio.ensure_future(registry.delete(record.object_id))
    removal.go.set()
    await asyncio.gather(deleting, twice)
    with pytest.raises(NotFoundError):
        await registry.find(record.object_id)


async def test_what_was_read_before_a_deletion_is_not_found_after_it(
    store: SqliteStore, registry: ObjectRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, _ = await registry.create("dict", "a", None)
    registry.forget_all()
    with monkeypatch.context() as patch:
        reading = Held(patch, store, "object", after=True)
        finding = asyncio.ensure_future(registry.find(record.object_id))
        await reading.reached.wait()
    await registry.delete(record.object_id)
    reading.go.set()
    with pytest.raises(NotFoundError):
        await finding
    with pytest.raises(NotFoundError):
        await registry.find(record.object_id)


async def test_an_object_that_could_not_be_deleted_is_there(
    store: SqliteStore, registry: ObjectRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: list[str] = []

    async def deleted(record: ObjectRecord) -> None:
        gone.append(record.object_id)

    registry.on_delete("dict", deleted)
    record, _ = await registry.create("dict", "a", None)

    async def full(*_: Any) -> None:
        raise StoreError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(store, "remove_object", full)
        with pytest.raises(StoreError):
            await registry.delete(record.object_id)
    assert await registry.find(record.object_id) == record
    await registry.delete(record.object_id)
    assert gone == [record.object_id] * 2
    with pytest.raises(NotFoundError):
        await registry.find(record.object_id)
