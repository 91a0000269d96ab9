"""Queues at the rim, over a real store."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from modal_nomad.dispatcher.objects.queues import Queues
from modal_nomad.dispatcher.store import SqliteStore
from modal_nomad.dispatcher.store.objects import ObjectRecord
from modal_nomad.exception import NotFoundError


async def test_who_asks_while_a_queue_that_goes_is_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(tmp_path / "store.db")
    await store.open()
    reached, go = asyncio.Event(), asyncio.Event()
    read = store.queue_items

    async def slowly(object_id: str) -> Any:
        reached.set()
        await go.wait()
        return await read(object_id)

    def background(coroutine: Coroutine[Any, Any, Any]) -> None:
        raise AssertionError("nothing expires here")

    monkeypatch.setattr(store, "queue_items", slowly)
    queues = Queues(store, background, lambda owner: True)
    waiting = asyncio.ensure_future(queues.get("qu-1", "cl-1", "k", "", 1, None))
    await reached.wait()
    deleting = asyncio.ensure_future(queues.deleted(ObjectRecord("qu-1", "queue", "a", "main", 0.0)))
    go.set()
    with pytest.raises(NotFoundError, match="deleted"):
        await waiting
    await deleting
    await store.close()
