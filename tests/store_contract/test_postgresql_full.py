"""A PostgreSQL whose disk is full: said as such, nothing accepted is lost, and work goes on afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("asyncpg")

from modal_nomad.dispatcher.store.base import StoreFull
from modal_nomad.dispatcher.store.objects import Entry, Item, Ticket
from modal_nomad.dispatcher.store.postgresql import PostgresqlStore
from tests._disks import filled, mounted
from tests._postgresql import Postgresql


@pytest.fixture
def small(own_postgresql: Postgresql) -> Iterator[Path]:
    """A directory of the server's that is a disk of its own."""
    folder = own_postgresql.folder / "small"
    with mounted(folder, 40):
        owner = (own_postgresql.folder / "data").stat()
        os.chown(folder, owner.st_uid, owner.st_gid)
        yield folder
        own_postgresql.stop()


async def test_a_full_disk(own_postgresql: Postgresql, small: Path) -> None:
    server = own_postgresql
    server.execute(f"CREATE TABLESPACE small LOCATION '{small}'")
    server.execute("CREATE DATABASE small TABLESPACE small")
    store = PostgresqlStore(server.dsn("small"))
    await store.open()
    put: list[int] = []

    async def some(start: int) -> None:
        for number in range(start, start + 5000):
            item = Item(number, "", 8000, 1e12)
            await store.queue_put("qu-1", [(item, os.urandom(8000))], Ticket("c", number, number))
            put.append(number)

    await store.dict_put("di-1", [Entry(b"a", b"1")], 1e12, 0.0, Ticket("d", 1))
    with filled(small):
        with pytest.raises(StoreFull, match=r"no space left for the store .*/small: free some disk space"):
            await some(1)
        with pytest.raises(StoreFull):
            await store.dict_put("di-1", [Entry(b"b", os.urandom(100_000))], 1e12, 0.0, Ticket("d", 2))
        entry = await store.dict_get("di-1", b"a", 0.0)
        assert entry is not None and entry.payload == b"1"
    # The same requests again.
    await store.dict_put("di-1", [Entry(b"b", b"2")], 1e12, 0.0, Ticket("d", 2))
    number = len(put) + 1
    await store.queue_put("qu-1", [(Item(number, "", 1, 1e12), b"x")], Ticket("c", number))
    assert [x.number for x in await store.queue_items("qu-1")] == [*put, number]
    assert await store.dict_len("di-1") == 2
    await store.close()
