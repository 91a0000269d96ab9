"""``stores`` gives every test each store in turn: an empty database, opened as often as a test likes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from modal_nomad.dispatcher.store import SqliteStore, Store
from modal_nomad.dispatcher.store.base import StoreBusy


@dataclass
class Stores:
    """An empty database.

    Attributes:
        kind: ``sqlite`` or ``postgresql``.
        address: a file, or ``postgresql://…``.
    """

    kind: str
    address: str
    made: list[Store] = field(default_factory=list)

    def make(self, clock: Callable[[], float] = time.time) -> Store:
        """Return a store on it, not open."""
        return make(self.kind, self.address, clock=clock)

    async def open(self, clock: Callable[[], float] = time.time) -> Store:
        """Return an open store on it, closed at the test's end at the latest."""
        store = self.make(clock)
        while True:
            try:
                await store.open()
                break
            except StoreBusy:
                # A server learns a little later that the one who had it was killed.
                await asyncio.sleep(0.05)
        self.made.append(store)
        return store


def make(kind: str, address: str, **options: Any) -> Store:
    if kind == "sqlite":
        return SqliteStore(address, **options)
    from modal_nomad.dispatcher.store.postgresql import PostgresqlStore

    return PostgresqlStore(address, **options)


@pytest.fixture(params=["sqlite", "postgresql"])
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stores]:
    if request.param == "sqlite":
        stores = Stores("sqlite", str(tmp_path / "store.db"))
    else:
        stores = Stores("postgresql", request.getfixturevalue("postgresql_database"))
    yield stores
    for store in stores.made:
        await store.close()


@pytest.fixture
async def store(stores: Stores) -> Store:
    return await stores.open(clock=lambda: 100.0)
