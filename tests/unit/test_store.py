"""The store: what is acknowledged is there after the process is gone."""

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
    AppRecord,
    FunctionRecord,
    PendingCall,
    SqliteStore,
    StoredInput,
    StoredOutput,
    StoreError,
    TokenRecord,
    VariantRecord,
    VersionRecord,
    hash_secret,
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


async def test_inputs_survive_reopening_and_answered_ones_do_not_return(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db", clock=lambda: 5.0)
    await store.open()
    await store.add_inputs("fc-1", "fu-1", [*_inputs(0, 1), StoredInput(2, b"\x00", 1, 3)], num_inputs=3)
    await store.add_outputs("fc-1", [StoredOutput(1, 0, b"out", 1)])
    await store.close()

    again = SqliteStore(tmp_path / "store.db")
    await again.open()
    (page,) = await _pending(again)
    assert (page.call.call_id, page.call.function_id, page.call.kind) == ("fc-1", "fu-1", "spawn")
    assert (page.call.num_inputs, page.call.created_at) == (3, 5.0)
    assert page.inputs == [StoredInput(0, b"in0"), StoredInput(2, b"\x00", 1, 3)]
    assert await again.outputs("fc-1") == [StoredOutput(1, 0, b"out", 1)]
    await again.close()


async def test_a_killed_process_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_write_and_be_killed, args=(str(tmp_path / "store.db"), send))
    process.start()
    acknowledged = receive.recv()
    process.join()
    assert process.exitcode == -signal.SIGKILL

    store = SqliteStore(tmp_path / "store.db")
    await store.open()
    assert [x.index for page in await _pending(store) for x in page.inputs] == acknowledged
    await store.close()


def _write_and_be_killed(path: str, send: multiprocessing.connection.Connection) -> None:
    async def write() -> None:
        store = SqliteStore(path)
        await store.open()
        await asyncio.gather(*(store.add_inputs("fc-1", "fu-1", _inputs(i)) for i in range(500)))
        send.send(list(range(500)))
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(write())


async def test_resending_changes_nothing(store: SqliteStore) -> None:
    await store.add_inputs("fc-1", "fu-1", _inputs(0, 1), num_inputs=2)
    await store.add_outputs("fc-1", [StoredOutput(0, 0, b"first")])
    assert list(await store.add_inputs("fc-1", "fu-1", _inputs(0, 1))) == [0]
    await store.add_outputs("fc-1", [StoredOutput(0, 1, b"second")])
    (page,) = await _pending(store)
    assert [x.index for x in page.inputs] == [1] and page.call.num_inputs == 2
    assert await store.outputs("fc-1") == [StoredOutput(0, 0, b"first")]


async def test_outputs_by_index_losses_and_unknown_calls(store: SqliteStore) -> None:
    await store.add_inputs("fc-1", "fu-1", _inputs(*range(5)))
    await store.set_tries("fc-1", {4: (2, 1)})
    await store.add_outputs("fc-1", [StoredOutput(i, 0, b"%d" % i) for i in (2, 0, 1)])
    assert [x.index for x in await store.outputs("fc-1", [2, 1, 4])] == [1, 2]
    assert await store.outputs("fc-1", []) == []
    (page,) = await _pending(store)
    assert [(x.index, x.losses, x.attempts) for x in page.inputs] == [(3, 0, 0), (4, 2, 1)]
    await store.add_outputs("fc-none", [StoredOutput(0, 0, b"")])
    assert await store.outputs("fc-none") == [] and await store.call("fc-none") is None
    await store.delete_call("fc-1")
    assert await store.call("fc-1") is None and await _pending(store) == []


async def test_large_calls_are_loaded_in_pages(store: SqliteStore) -> None:
    await store.add_inputs("fc-1", "fu-1", _inputs(*range(2500)))
    await store.add_inputs("fc-2", "fu-1", _inputs(0))
    pages = await _pending(store)
    assert [(p.call.call_id, len(p.inputs)) for p in pages] == [
        ("fc-1", 1000), ("fc-1", 1000), ("fc-1", 500), ("fc-2", 1),
    ]  # fmt: skip
    assert [x.index for p in pages[:3] for x in p.inputs] == list(range(2500))


async def test_items_of_generators(store: SqliteStore) -> None:
    await store.add_items("fc-1", 0, 0, [(b"lost", 0)])
    await store.add_inputs("fc-1", "fu-1", _inputs(0, 1), kind="generator")
    assert await store.items("fc-1", 0, 0, 10) == [] and await store.count_items("fc-1") == {}
    await store.add_items("fc-1", 0, 0, [(b"a", 0), (b"b", 1)])
    # Sent again, and further: the first one stands.
    await store.add_items("fc-1", 0, 1, [(b"other", 0), (b"c", 0)])
    await store.add_items("fc-1", 1, 0, [(b"of 1", 0)])
    assert await store.items("fc-1", 0, 0, 10) == [(0, b"a", 0), (1, b"b", 1), (2, b"c", 0)]
    assert await store.items("fc-1", 0, 1, 1) == [(1, b"b", 1)]
    assert await store.count_items("fc-1") == {0: 3, 1: 1}
    # A gap, which a failing disk can leave: what is after it is not counted.
    await store.add_items("fc-1", 0, 5, [(b"f", 0)])
    await store.add_items("fc-1", 1, 3, [(b"d", 0)])
    await store.add_items("fc-1", 2, 3, [(b"d", 0)])
    assert await store.count_items("fc-1") == {0: 3, 1: 1}
    assert await store.count_inputs("fc-1") == 2 and await store.count_inputs("fc-no") == 0
    await store.delete_call("fc-1")
    await store.add_inputs("fc-1", "fu-1", _inputs(0))
    assert await store.items("fc-1", 0, 0, 10) == []


async def test_expiry(store: SqliteStore) -> None:
    for call in ("fc-1", "fc-2"):
        await store.add_inputs(call, "fu-1", _inputs(0), expires_at=10.0)
        await store.add_outputs(call, [StoredOutput(0, 0, b"")])
    # An input that was accepted and not answered is never dropped.
    await store.add_inputs("fc-3", "fu-1", _inputs(0, 1), expires_at=10.0)
    await store.add_outputs("fc-3", [StoredOutput(0, 0, b"")])
    await store.add_outputs("fc-2", [StoredOutput(0, 0, b"")], expires_at=20.0)
    assert await store.expire(9.9) == []
    assert await store.expire(10.0) == ["fc-1"]
    assert await store.outputs("fc-2") != [] and await store.call("fc-1") is None
    assert await store.expire(1e12) == ["fc-2"]
    assert [p.call.call_id for p in await _pending(store)] == ["fc-3"]


async def test_a_refused_write_does_not_undo_its_neighbours(store: SqliteStore) -> None:
    results = await asyncio.gather(
        store.add_inputs("fc-1", "fu-1", _inputs(0)),
        store.add_inputs("fc-2", "fu-1", [StoredInput(0, None)]),  # type: ignore[arg-type]
        store.add_inputs("fc-3", "fu-1", [StoredInput(0, b"", 2**70)]),
        store.add_inputs("fc-4", "fu-1", _inputs(0)),
        return_exceptions=True,
    )
    assert results[::3] == [(), ()]
    assert {p.call.call_id for p in await _pending(store)} >= {"fc-1", "fc-4"}
    assert isinstance(results[2], OverflowError) and await store.call("fc-3") is None


async def test_apps_functions_versions(store: SqliteStore) -> None:
    app = AppRecord("ap-1", "shop", "shop", "main", "deployed", 1, 1.0)
    functions = [FunctionRecord(f"fu-{n}", "ap-1", n, "main", 1, {"name": n}, {"ID": n}) for n in ("b", "a")]
    await store.publish(app, VersionRecord("ap-1", 1, 1.0, "0.1", "ann", "v1"), functions)
    assert await store.app("ap-1") == app and await store.apps_named("shop", "main") == [app]
    assert await store.apps("other") == [] and await store.apps_named("shop", "other") == []
    assert [f.name for f in await store.functions("ap-1")] == ["a", "b"]
    assert await store.function("fu-a") == functions[1]

    await store.publish(app, VersionRecord("ap-1", 2, 2.0), functions[1:])
    assert [f.name for f in await store.functions()] == ["a"]
    assert await store.function_ids("shop", "main") == {"a": "fu-a", "b": "fu-b"}
    assert [v.version for v in await store.versions("ap-1")] == [2, 1]
    await store.set_app_state("ap-1", "stopped", 3.0)
    assert await store.functions() == [] and len(await store.functions("ap-1")) == 1


async def test_autoscaler_settings_last_until_the_next_publication(store: SqliteStore) -> None:
    app = AppRecord("ap-1", "shop", "shop", "main", "deployed", 1, 100.0)
    function = FunctionRecord("fu-1", "ap-1", "f", "main", 1, {"name": "f"}, {"ID": "f"})
    await store.publish(app, None, [function])
    await store.set_autoscaler("fu-1", {"min_containers": 2})
    (kept,) = await store.functions()
    assert kept.autoscaler == {"min_containers": 2}
    await store.publish(app, None, [function])
    assert await store.functions() == [function]


async def test_tokens(store: SqliteStore) -> None:
    token = TokenRecord("tk-1", hash_secret("s"), ("main",), "ci", 1.0)
    await store.add_token(token)
    assert await store.token("tk-1") == token and await store.tokens() == [token]
    await store.remove_token("tk-1")
    assert await store.token("tk-1") is None
    assert hash_secret("s") != "s"


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


async def test_closing_finishes_what_was_accepted(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    await store.open()
    writes = [asyncio.ensure_future(store.add_inputs("fc-1", "fu-1", _inputs(i))) for i in range(50)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*writes)
    await store.open()
    (page,) = await _pending(store)
    assert len(page.inputs) == 50
    await store.close()


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


async def _bound(store: SqliteStore, pages: int) -> None:
    # Not by a write: those are inside a transaction already.
    store._connections[0].execute(f"PRAGMA max_page_count = {pages}")


async def test_variants_come_back_parents_first_with_their_settings(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    await store.open()
    options = VariantRecord("fu-b", "fu-1", "ap-1", None, {"name": "M.*"}, {"ID": "a-M--1"})
    sized = VariantRecord("fu-a", "fu-b", "ap-1", b"\x00params")
    await store.add_variant(options)
    await store.add_variant(sized)
    await store.add_variant(options)
    await store.set_autoscaler("fu-a", {"min_containers": 2})
    await store.close()

    again = SqliteStore(tmp_path / "store.db")
    await again.open()
    assert await again.variants() == [
        options,
        VariantRecord("fu-a", "fu-b", "ap-1", b"\x00params", autoscaler={"min_containers": 2}),
    ]
    await again.remove_variants(["fu-b", "fu-unknown"])
    assert [v.function_id for v in await again.variants()] == ["fu-a"]
    await again.close()


async def test_a_calls_method_is_kept(store: SqliteStore) -> None:
    await store.add_inputs("fc-1", "fu-1", _inputs(0), method="predict")
    (page,) = await _pending(store)
    assert page.call.method == "predict"
