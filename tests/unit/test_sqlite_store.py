"""The SQLite store's file: what is wrong with it is one clear error, and a full disk loses nothing before."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modal_nomad.dispatcher.store import (
    PendingCall,
    SqliteStore,
    StoredInput,
    StoreError,
    migrations,
)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "store.db", clock=lambda: 100.0)
    await store.open()
    yield store
    await store.close()


def _inputs(*indexes: int) -> list[StoredInput]:
    return [StoredInput(i, b"in%d" % i) for i in indexes]


async def _pending(store: SqliteStore) -> list[PendingCall]:
    return [page async for page in store.load_pending()]


@pytest.mark.parametrize("content", [b"not a database at all, but long enough for a header" * 99])
async def test_a_damaged_file_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "store.db").write_bytes(content)
    with pytest.raises(StoreError, match=r"damaged .*: restore a backup"):
        await SqliteStore(tmp_path / "store.db").open()
    assert (tmp_path / "store.db").read_bytes() == content


async def test_newer_foreign_and_busy_stores_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = SqliteStore(path)
    await store.open()
    with pytest.raises(StoreError, match="in use by another dispatcher"):
        await SqliteStore(path).open()
    await store.close()
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.expire(0)

    database = sqlite3.connect(path)
    database.execute(f"PRAGMA user_version = {migrations.VERSION + 1}")
    database.close()
    with pytest.raises(StoreError, match=r"newer modal-nomad.*upgrade"):
        await SqliteStore(path).open()

    database = sqlite3.connect(tmp_path / "other.db")
    database.execute("CREATE TABLE theirs (x)")
    database.close()
    with pytest.raises(StoreError, match="another program's database"):
        await SqliteStore(tmp_path / "other.db").open()


async def test_a_full_disk_refuses_every_write_of_a_commit_and_forgets_none_before(
    store: SqliteStore,
) -> None:
    await store.add_inputs("fc-before", "fu-1", _inputs(0))
    # What SQLite does at this bound is what it does on a full disk.
    (pages,) = await store._write(lambda db: db.execute("PRAGMA page_count").fetchone())
    await _bound(store, pages + 4)
    large = [StoredInput(i, b"x" * 4000) for i in range(50)]
    results = await asyncio.gather(
        *(store.add_inputs(f"fc-{i}", "fu-1", large) for i in range(3)), return_exceptions=True
    )
    assert all(isinstance(x, StoreError) and "free some disk space" in str(x) for x in results), results
    assert [page.call.call_id for page in await _pending(store)] == ["fc-before"]
    await _bound(store, 1 << 30)
    await store.add_inputs("fc-after", "fu-1", large)
    assert [page.call.call_id for page in await _pending(store)] == ["fc-before", "fc-after"]


@pytest.mark.parametrize("durability", ["power", "process"])
async def test_what_was_acknowledged_outlives_a_kill(tmp_path: Path, durability: str) -> None:
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_write_and_be_killed, args=(tmp_path / "store.db", durability, send))
    process.start()
    assert receive.recv() == 300
    process.join()
    assert process.exitcode == -signal.SIGKILL
    store = SqliteStore(tmp_path / "store.db")
    await store.open()
    (page,) = await _pending(store)
    assert len(page.inputs) == 300
    await store.close()


def _write_and_be_killed(path: Path, durability: str, send: multiprocessing.connection.Connection) -> None:
    async def write() -> None:
        store = SqliteStore(path, durability=durability)
        await store.open()
        for index in range(300):
            await store.add_inputs("fc-1", "fu-1", _inputs(index))
        # Nobody waits for the disk: it is the system that keeps what was written.
        synchronous = store._connections[0].execute("PRAGMA synchronous").fetchone()[0]
        assert (synchronous == 2) is (durability == "power")
        send.send(300)
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(write())


async def _bound(store: SqliteStore, pages: int) -> None:
    # Not by a write: those are inside a transaction already.
    store._connections[0].execute(f"PRAGMA max_page_count = {pages}")
