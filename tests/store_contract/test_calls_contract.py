"""The store: what is acknowledged is there after the process is gone."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal

from modal_nomad.dispatcher.store import (
    AppRecord,
    FunctionRecord,
    PendingCall,
    Store,
    StoredInput,
    StoredOutput,
    StoreError,
    TokenRecord,
    VariantRecord,
    VersionRecord,
    hash_secret,
)
from modal_nomad.dispatcher.store.base import GraphCall, GraphInput
from tests.store_contract.conftest import Stores, make


def _inputs(*indexes: int) -> list[StoredInput]:
    return [StoredInput(i, b"in%d" % i) for i in indexes]


async def _pending(store: Store) -> list[PendingCall]:
    return [page async for page in store.load_pending()]


async def test_inputs_survive_reopening_and_answered_ones_do_not_return(stores: Stores) -> None:
    store = await stores.open(clock=lambda: 5.0)
    await store.add_inputs("fc-1", "fu-1", [*_inputs(0, 1), StoredInput(2, b"\x00", 1, 3)], num_inputs=3)
    await store.add_outputs("fc-1", [StoredOutput(1, 0, b"out", 1)])
    await store.close()

    again = await stores.open()
    (page,) = await _pending(again)
    assert (page.call.call_id, page.call.function_id, page.call.kind) == ("fc-1", "fu-1", "spawn")
    assert (page.call.num_inputs, page.call.created_at) == (3, 5.0)
    assert page.inputs == [StoredInput(0, b"in0"), StoredInput(2, b"\x00", 1, 3)]
    assert await again.outputs("fc-1") == [StoredOutput(1, 0, b"out", 1)]
    await again.close()


async def test_a_killed_process_loses_nothing_it_acknowledged(stores: Stores) -> None:
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_write_and_be_killed, args=(stores.kind, stores.address, send))
    process.start()
    acknowledged = receive.recv()
    process.join()
    assert process.exitcode == -signal.SIGKILL

    store = await stores.open()
    assert [x.index for page in await _pending(store) for x in page.inputs] == acknowledged
    await store.close()


def _write_and_be_killed(kind: str, address: str, send: multiprocessing.connection.Connection) -> None:
    async def write() -> None:
        store = make(kind, address)
        await store.open()
        await asyncio.gather(*(store.add_inputs("fc-1", "fu-1", _inputs(i)) for i in range(500)))
        send.send(list(range(500)))
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(write())


async def test_resending_changes_nothing(store: Store) -> None:
    await store.add_inputs("fc-1", "fu-1", _inputs(0, 1), num_inputs=2)
    await store.add_outputs("fc-1", [StoredOutput(0, 0, b"first")])
    assert list(await store.add_inputs("fc-1", "fu-1", _inputs(0, 1))) == [0]
    await store.add_outputs("fc-1", [StoredOutput(0, 1, b"second")])
    (page,) = await _pending(store)
    assert [x.index for x in page.inputs] == [1] and page.call.num_inputs == 2
    assert await store.outputs("fc-1") == [StoredOutput(0, 0, b"first")]


async def test_outputs_by_index_losses_and_unknown_calls(store: Store) -> None:
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


async def test_large_calls_are_loaded_in_pages(store: Store) -> None:
    await store.add_inputs("fc-1", "fu-1", _inputs(*range(2500)))
    await store.add_inputs("fc-2", "fu-1", _inputs(0))
    pages = await _pending(store)
    assert [(p.call.call_id, len(p.inputs)) for p in pages] == [
        ("fc-1", 1000), ("fc-1", 1000), ("fc-1", 500), ("fc-2", 1),
    ]  # fmt: skip
    assert [x.index for p in pages[:3] for x in p.inputs] == list(range(2500))


async def test_items_of_generators(store: Store) -> None:
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


async def test_expiry(store: Store) -> None:
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


async def test_a_refused_write_does_not_undo_its_neighbours(store: Store) -> None:
    results = await asyncio.gather(
        store.add_inputs("fc-1", "fu-1", _inputs(0)),
        store.add_inputs("fc-2", "fu-1", [StoredInput(0, None)]),  # type: ignore[arg-type]
        store.add_inputs("fc-3", "fu-1", [StoredInput(0, b"", 2**70)]),
        store.add_inputs("fc-4", "fu-1", _inputs(0)),
        return_exceptions=True,
    )
    assert results[::3] == [(), ()]
    assert {p.call.call_id for p in await _pending(store)} >= {"fc-1", "fc-4"}
    assert isinstance(results[2], StoreError) and await store.call("fc-3") is None


async def test_apps_functions_versions(store: Store) -> None:
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


async def test_autoscaler_settings_last_until_the_next_publication(store: Store) -> None:
    app = AppRecord("ap-1", "shop", "shop", "main", "deployed", 1, 100.0)
    function = FunctionRecord("fu-1", "ap-1", "f", "main", 1, {"name": "f"}, {"ID": "f"})
    await store.publish(app, None, [function])
    await store.set_autoscaler("fu-1", {"min_containers": 2})
    (kept,) = await store.functions()
    assert kept.autoscaler == {"min_containers": 2}
    await store.publish(app, None, [function])
    assert await store.functions() == [function]


async def test_tokens(store: Store) -> None:
    token = TokenRecord("tk-1", hash_secret("s"), ("main",), "ci", 1.0)
    await store.add_token(token)
    assert await store.token("tk-1") == token and await store.tokens() == [token]
    await store.remove_token("tk-1")
    assert await store.token("tk-1") is None
    assert hash_secret("s") != "s"


async def test_variants_come_back_parents_first_with_their_settings(stores: Stores) -> None:
    store = await stores.open()
    options = VariantRecord("fu-b", "fu-1", "ap-1", None, {"name": "M.*"}, {"ID": "a-M--1"})
    sized = VariantRecord("fu-a", "fu-b", "ap-1", b"\x00params")
    await store.add_variant(options)
    await store.add_variant(sized)
    await store.add_variant(options)
    await store.set_autoscaler("fu-a", {"min_containers": 2})
    await store.close()

    again = await stores.open()
    assert await again.variants() == [
        options,
        VariantRecord("fu-a", "fu-b", "ap-1", b"\x00params", autoscaler={"min_containers": 2}),
    ]
    await again.remove_variants(["fu-b", "fu-unknown"])
    assert [v.function_id for v in await again.variants()] == ["fu-a"]
    await again.close()


async def test_a_calls_method_and_environment_are_kept(store: Store) -> None:
    await store.add_inputs("fc-1", "fu-1", _inputs(0), method="predict", environment="prod")
    (page,) = await _pending(store)
    assert (page.call.method, page.call.environment) == ("predict", "prod")


async def test_closing_finishes_what_was_accepted(stores: Stores) -> None:
    store = await stores.open()
    writes = [asyncio.ensure_future(store.add_inputs("fc-1", "fu-1", _inputs(i))) for i in range(50)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*writes)
    await store.open()
    (page,) = await _pending(store)
    assert len(page.inputs) == 50
    await store.close()


async def test_graphs_are_read_from_the_top_and_forgotten_with_it(store: Store) -> None:
    await store.add_inputs("fc-0", "fu-1", _inputs(0, 1))
    calls = [GraphCall(f"fc-{n}", f"fc-{n - 1}", "in-1", "f", "m") for n in range(1, 5)]
    await store.add_graph(calls[:2], [GraphInput("fc-1", 0, None, "")])
    await store.add_graph(calls, [GraphInput("fc-1", 0, 0, "ta-1")])
    await store.add_outputs("fc-0", [StoredOutput(1, 0, b"", task_id="ta-2")], expires_at=1.0)
    found, inputs = await store.graph("fc-0", 100)
    assert found == [GraphCall("fc-0", "", "", "", ""), *calls]
    assert inputs == [
        GraphInput("fc-0", 0, None, ""), GraphInput("fc-0", 1, 0, "ta-2"), GraphInput("fc-1", 0, 0, "ta-1")
    ]  # fmt: skip
    found, inputs = await store.graph("fc-0", 2)
    assert [x.call_id for x in found] == ["fc-0", "fc-1"] and len(inputs) == 2
    assert await store.graph("fc-none", 9) == ([], [])
    await store.add_outputs("fc-0", [StoredOutput(0, 0, b"")])
    assert await store.expire(2.0) == ["fc-0"]
    assert await store.graph("fc-0", 100) == ([], [])


async def test_names_sort_as_bytes_do(store: Store) -> None:
    names = ["B", "_", "a", "ä"]
    app = AppRecord("ap-1", "shop", "", "main", "ephemeral", 1, 1.0)
    functions = [FunctionRecord(f"fu-{n}", "ap-1", n, "main", 1, {}, {}) for n in names[::-1]]
    await store.publish(app, None, functions)
    assert [f.name for f in await store.functions("ap-1")] == names
