"""What PostgreSQL alone can do to a store: be away, be killed, refuse, and give the store to another one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

pytest.importorskip("asyncpg")

from modal_nomad.dispatcher.store import StoredInput, StoreError, migrations
from modal_nomad.dispatcher.store.base import AppRecord, StoreBusy
from modal_nomad.dispatcher.store.objects import EnvironmentRecord
from modal_nomad.dispatcher.store.postgresql import PostgresqlStore
from tests._postgresql import Postgresql

LIMIT = 60.0


async def _until(condition: Callable[[], Awaitable[Any]]) -> None:
    async def wait() -> None:
        # It is another process that this waits for.
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    await asyncio.wait_for(wait(), LIMIT)


async def _taken_over(store: PostgresqlStore) -> bool:
    try:
        await store.open()
    except StoreBusy:
        return False
    return True


async def _indexes(store: PostgresqlStore) -> list[int]:
    return [x.index async for page in store.load_pending() for x in page.inputs]


def _connections(server: Postgresql, database: str) -> list[int]:
    rows = server.execute(
        f"SELECT pid FROM pg_stat_activity WHERE datname = '{database}' AND application_name = 'modal-nomad'"
    )
    return [row[0] for row in rows]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s.dsn(password="wrong"), r"refused the user .*PGPASSWORD"),
        (lambda s: s.dsn("nowhere"), r"there is no database .*createdb"),
        (lambda s: "postgresql://u:secret@127.0.0.1:1/db", r"no PostgreSQL answers at .*127\.0\.0\.1:1/db"),
        (lambda s: "postgresql://u:secret@127.0.0.1:port/db", r"`store` cannot be used"),
        (lambda s: s.dsn("guest", "guest", "guest"), r"refuses its user: .*GRANT CREATE"),
    ],
)
async def test_what_is_wrong_is_one_line_without_the_password(
    postgresql: Postgresql, change: Callable[[Postgresql], str], text: str
) -> None:
    if "guest" in change(postgresql):
        postgresql.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'")
        postgresql.execute("CREATE DATABASE guest")
    store = PostgresqlStore(change(postgresql))
    with pytest.raises(StoreError, match=text) as raised:
        await store.open()
    said = str(raised.value)
    assert "\n" not in said and "secret" not in said and "wrong@" not in said
    await store.close()


async def test_a_newer_schema_and_another_encoding_are_refused(
    postgresql: Postgresql, postgresql_database: str
) -> None:
    name = postgresql_database.rpartition("/")[2]
    postgresql.execute(f"UPDATE modal_nomad.schema_version SET version = {migrations.VERSION + 1}", name)
    with pytest.raises(StoreError, match=r"newer modal-nomad.*upgrade"):
        await PostgresqlStore(postgresql_database).open()
    postgresql.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(StoreError, match="ENCODING 'UTF8'"):
        await PostgresqlStore(postgresql.dsn("latin")).open()


async def test_two_that_start_on_an_empty_database_make_one_schema(postgresql: Postgresql) -> None:
    dsn = postgresql.database()
    stores = [PostgresqlStore(dsn, beside=True) for _ in range(3)]
    await asyncio.gather(*(store.open() for store in stores))
    for number, store in enumerate(stores):
        await store.add_inputs(f"fc-{number}", "fu-1", [StoredInput(0, b"")])
    assert await _indexes(stores[0]) == [0, 0, 0]
    for store in stores:
        await store.close()
        await store.close()
    with pytest.raises(StoreError, match="closed"):
        await stores[0].expire(0)


async def test_text_that_cannot_be_stored_fails_its_writer_alone(postgresql_database: str) -> None:
    store = PostgresqlStore(postgresql_database)
    await store.open()
    results = await asyncio.gather(
        store.add_inputs("fc-1", "fu-1", [StoredInput(0, b"")]),
        store.set_app_state("a\0", "stopped"),
        store.add_inputs("fc-2\0", "fu-1", [StoredInput(0, b"")]),
        store.add_inputs("fc-3", "fu-1", [StoredInput(0, b"")]),
        return_exceptions=True,
    )
    assert [isinstance(x, StoreError) for x in results] == [False, True, True, False]
    assert await _indexes(store) == [0, 0]
    await store.close()


async def test_a_killed_server_loses_nothing_acknowledged(own_postgresql: Postgresql) -> None:
    server = own_postgresql
    store = PostgresqlStore(server.dsn())
    await store.open()
    acknowledged: list[int] = []
    enough = asyncio.Event()

    async def write(first: int) -> None:
        for index in range(first, 100000, 8):
            await store.add_inputs("fc-1", "fu-1", [StoredInput(index, b"x")])
            acknowledged.append(index)
            if len(acknowledged) >= 400:
                enough.set()
            if index % 64 == first and enough.is_set():
                return

    writers = [asyncio.create_task(write(first)) for first in range(8)]
    for bound in (100, 200):
        await _until(lambda bound=bound: _true(len(acknowledged) >= bound))  # type: ignore[misc]
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
    await asyncio.gather(*writers)
    found = await _indexes(store)
    assert set(acknowledged) <= set(found) and len(found) == len(set(found))
    await store.close()


async def _true(value: bool) -> bool:
    return value


async def test_a_write_waits_for_a_server_that_is_away(own_postgresql: Postgresql) -> None:
    server = own_postgresql
    store = PostgresqlStore(server.dsn())
    await store.open()
    await asyncio.to_thread(server.kill)
    writing = asyncio.create_task(store.add_environment(EnvironmentRecord("dev", 1.0)))
    reading = asyncio.create_task(store.environments())
    done, _ = await asyncio.wait([writing, reading], timeout=0.3)
    assert not done
    await asyncio.to_thread(server.start)
    assert await writing is True
    assert {x.name for x in await reading} <= {"dev"}
    await store.close()


async def test_a_commit_whose_answer_was_lost_is_not_done_again(
    postgresql_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modal_nomad.dispatcher.store._postgresql_session import Away, Session

    store = PostgresqlStore(postgresql_database)
    await store.open()
    script = Session.script
    lost: list[str] = []

    def once(self: Session, sql: str) -> None:
        if sql == "COMMIT" and len(lost) < 2:
            lost.append(sql)
            if len(lost) == 2:
                # This one the server carried out, and nobody heard of it.
                script(self, sql)
            self.drop()
            raise Away("the answer was lost")
        script(self, sql)

    monkeypatch.setattr(Session, "script", once)
    assert await store.add_environment(EnvironmentRecord("dev", 1.0)) is True
    assert len(lost) == 2
    assert await store.add_environment(EnvironmentRecord("dev", 1.0)) is False
    await store.close()


async def test_a_standby_takes_over_and_who_lost_the_store_cannot_write(
    postgresql: Postgresql, postgresql_database: str
) -> None:
    told = threading.Event()
    first, second = (
        PostgresqlStore(postgresql_database, superseded=told.set),
        PostgresqlStore(postgresql_database),
    )
    beside = PostgresqlStore(postgresql_database, beside=True)
    await first.open()
    await first.add_inputs("fc-1", "fu-1", [StoredInput(0, b"")])
    with pytest.raises(StoreBusy, match="in use by another dispatcher"):
        await second.open()
    await beside.open()
    await beside.publish(AppRecord("ap-1", "a", "", "main", "deployed", 1, 1.0), None, [])
    # Whoever of the two is quicker has it: until it is the second.
    name = postgresql_database.rpartition("/")[2]
    holder = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND database = " + (
        f"(SELECT oid FROM pg_database WHERE datname = '{name}')"
    )

    async def taken() -> bool:
        await asyncio.to_thread(
            postgresql.execute, f"SELECT pg_terminate_backend(pid) FROM ({holder}) AS holders"
        )
        return await _taken_over(second)

    await _until(taken)
    writing = asyncio.create_task(first.add_inputs("fc-2", "fu-1", [StoredInput(0, b"")]))
    assert await asyncio.to_thread(told.wait, LIMIT)
    await second.add_inputs("fc-3", "fu-1", [StoredInput(0, b"")])
    assert not writing.done()
    await first.close()
    with pytest.raises(StoreError, match="took over"):
        await writing
    assert [page.call.call_id async for page in second.load_pending()] == ["fc-1", "fc-3"]
    assert [app.app_id for app in await second.apps()] == ["ap-1"]
    await second.close()
    await beside.close()


async def test_our_own_connection_that_the_server_still_has_is_ended(postgresql_database: str) -> None:
    store = PostgresqlStore(postgresql_database)
    await store.open()
    writer = store._writer
    assert writer is not None
    session = writer._session
    kept, session._connection = session._connection, None
    # The server sees nothing of this: as with a network that is cut.
    await store.add_inputs("fc-1", "fu-1", [StoredInput(0, b"")])
    assert await _indexes(store) == [0]
    session._loop.call_soon_threadsafe(kept.terminate)
    await store.close()
