"""A PostgreSQL that is there and does nothing: frozen, or long at one statement."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

pytest.importorskip("asyncpg")

from modal_nomad.dispatcher.store import (
    StoreError,
    _postgresql_session,
    _postgresql_watch,
    _postgresql_writer,
    postgresql,
)
from modal_nomad.dispatcher.store.objects import EnvironmentRecord, Item, Ticket
from modal_nomad.dispatcher.store.postgresql import PostgresqlStore
from tests._postgresql import Postgresql, family


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_postgresql_watch, "LOOK_SECONDS", 1.0)
    monkeypatch.setattr(_postgresql_session, "CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(_postgresql_session, "BEAT_SECONDS", 600.0)


def _signal(server: Postgresql, number: int) -> None:
    assert server.process is not None
    for pid in family(server.process.pid):
        os.kill(pid, number)


async def test_a_frozen_server_is_said_and_loses_nothing(
    own_postgresql: Postgresql, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (postgresql, _postgresql_writer):
        monkeypatch.setattr(module, "PATIENCE_SECONDS", 1.0)
    store = PostgresqlStore(own_postgresql.dsn())
    await store.open()

    async def put(number: int) -> None:
        await store.queue_put("qu-1", [(Item(number, "", 1, 1e12), b"x")], Ticket("c", number))

    await put(1)
    assert len(await store.queue_items("qu-1")) == 1
    _signal(own_postgresql, signal.SIGSTOP)
    try:
        told = await asyncio.wait_for(
            asyncio.gather(put(2), *(store.queue_items("qu-1") for _ in range(9)), return_exceptions=True),
            100,
        )
    finally:
        _signal(own_postgresql, signal.SIGCONT)
    for one in told:
        assert isinstance(one, StoreError) and "\n" not in str(one)
        assert "no answer within 1 s" in str(one)
    # What was refused may yet have been carried out: the same request again is the same.
    for number in (2, 3):
        await _until_kept(put, number)
    assert [x.number for x in await store.queue_items("qu-1")] == [1, 2, 3]
    await store.close()


async def _until_kept(put: object, number: int) -> None:
    while True:
        try:
            await put(number)  # type: ignore[operator]
            return
        except StoreError:
            await asyncio.sleep(0.1)


async def test_a_statement_that_takes_long_is_waited_for(
    postgresql: Postgresql, postgresql_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = PostgresqlStore(postgresql_database)
    await store.open()
    name = postgresql_database.rpartition("/")[2]
    postgresql.execute(
        "CREATE FUNCTION modal_nomad.later() RETURNS trigger AS"
        " 'BEGIN PERFORM pg_sleep(4); RETURN NEW; END' LANGUAGE plpgsql",
        name,
    )
    postgresql.execute(
        "CREATE TRIGGER later BEFORE INSERT ON modal_nomad.environments"
        " FOR EACH ROW EXECUTE FUNCTION modal_nomad.later()",
        name,
    )
    adding = store.add_environment(EnvironmentRecord("dev", 1.0))
    assert await asyncio.wait_for(adding, 100) is True
    assert "trying again" not in caplog.text
    await store.close()
