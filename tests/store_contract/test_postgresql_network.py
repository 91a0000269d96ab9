"""PostgreSQL over a network: TLS, and what a cut does."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("asyncpg")

from modal_nomad.dispatcher.store import StoreError, _postgresql_session, _postgresql_watch
from modal_nomad.dispatcher.store.objects import EnvironmentRecord, Item, Ticket
from modal_nomad.dispatcher.store.postgresql import PostgresqlStore
from tests import _certificates
from tests._cut_proxy import CutProxy, cut_proxy
from tests._postgresql import Postgresql


@pytest.fixture
def proxy(postgresql: Postgresql) -> Iterator[CutProxy]:
    with cut_proxy(postgresql.port) as proxy:
        yield proxy


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_postgresql_watch, "LOOK_SECONDS", 1.0)
    monkeypatch.setattr(_postgresql_session, "BEAT_SECONDS", 1.0)
    monkeypatch.setattr(_postgresql_session, "CONNECT_SECONDS", 1.0)


def through(proxy: CutProxy, dsn: str, server: Postgresql) -> str:
    return dsn.replace(f":{server.port}/", f":{proxy.port}/")


async def _said(caplog: pytest.LogCaptureFixture, text: str) -> None:
    # It is another thread's word that this waits for.
    while text not in caplog.text:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("way", ["both", "there", "back"])
@pytest.mark.usefixtures("impatient")
async def test_a_cut_loses_nothing_doubles_nothing_and_is_said(
    proxy: CutProxy,
    postgresql: Postgresql,
    postgresql_database: str,
    way: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = PostgresqlStore(through(proxy, postgresql_database, postgresql))
    await store.open()
    done: list[int] = []

    async def put(number: int) -> None:
        await store.queue_put("qu-1", [(Item(number, "", 1, 1e12), b"x")], Ticket("c", number))
        done.append(number)

    await asyncio.gather(*map(put, range(1, 20)))
    with caplog.at_level(logging.WARNING, "modal_nomad.dispatcher"):
        proxy.cut(*(() if way == "both" else (getattr(proxy, way),)))
        writing = [asyncio.ensure_future(put(number)) for number in range(20, 60)]
        added = asyncio.ensure_future(store.add_environment(EnvironmentRecord("dev", 1.0)))
        await asyncio.wait_for(_said(caplog, "trying again"), 60)
        assert len(done) == 19 and not added.done()
        await asyncio.to_thread(proxy.mend)
        await asyncio.gather(*writing)
        # Told what was before, though it may have been carried out when the answer was lost.
        assert await added is True
        await asyncio.wait_for(_said(caplog, "the store is back"), 60)
    assert [x.number for x in await store.queue_items("qu-1")] == [*range(1, 60)]
    assert sorted(done) == [*range(1, 60)]
    await store.close()


@pytest.mark.usefixtures("impatient")
async def test_an_idle_dispatcher_notices_a_cut_and_has_its_lock_again(
    proxy: CutProxy, postgresql: Postgresql, postgresql_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = PostgresqlStore(through(proxy, postgresql_database, postgresql))
    await store.open()
    with caplog.at_level(logging.WARNING, "modal_nomad.dispatcher"):
        await asyncio.to_thread(proxy.cut)
        await asyncio.wait_for(_said(caplog, "trying again"), 60)
        await asyncio.to_thread(proxy.mend)
        await asyncio.wait_for(_said(caplog, "the store is back"), 60)
    other = PostgresqlStore(postgresql_database)
    with pytest.raises(StoreError, match="in use by another dispatcher"):
        await other.open()
    await other.close()
    assert await store.add_environment(EnvironmentRecord("dev", 1.0)) is True
    await store.close()


async def test_the_kernel_gives_up_a_server_that_is_cut_off(postgresql_database: str) -> None:
    def look() -> tuple[int, int]:
        session = _postgresql_session.Session(postgresql_database)
        session.connect()
        found = session._connection._transport.get_extra_info("socket")
        keep = found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        limit = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        session.close()
        return keep, limit

    assert await asyncio.to_thread(look) == (1, 10_000)


async def test_tls_as_the_address_asks_for_it(own_postgresql: Postgresql, tmp_path: Path) -> None:
    server = own_postgresql
    cert, key = _certificates.write(tmp_path, "127.0.0.1")
    other, _ = _certificates.write(tmp_path, "elsewhere.test")
    data = server.folder / "data"
    owner = (data / "postgresql.conf").stat()
    for source, name in ((cert, "server.crt"), (key, "server.key")):
        shutil.copy(source, data / name)
        os.chmod(data / name, 0o600)
        if os.geteuid() == 0:
            os.chown(data / name, owner.st_uid, owner.st_gid)
    (data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
    (data / "postgresql.auto.conf").write_text("ssl = on\n")
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(server.start)

    async def refused(options: str, text: str) -> None:
        with pytest.raises(StoreError, match=text) as raised:
            await PostgresqlStore(f"{server.dsn()}?{options}").open()
        assert "\n" not in str(raised.value)

    for mode in ("verify-full", "verify-ca", "require"):
        store = PostgresqlStore(f"{server.dsn()}?sslmode={mode}&sslrootcert={cert}")
        await store.open()
        rows = await asyncio.to_thread(
            server.execute,
            "SELECT count(*), bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
            " WHERE application_name = 'modal-nomad'",
        )
        assert rows[0][0] >= 1 and rows[0][1] is True
        assert await store.add_environment(EnvironmentRecord(mode, 1.0)) is True
        await store.close()
    await refused("sslmode=disable", "no pg_hba.conf entry")
    await refused(f"sslmode=verify-full&sslrootcert={other}", "no TLS connection .*sslrootcert")
    by_name = server.dsn().replace("127.0.0.1", "localhost")
    with pytest.raises(StoreError, match="no TLS connection"):
        await PostgresqlStore(f"{by_name}?sslmode=verify-full&sslrootcert={cert}").open()
