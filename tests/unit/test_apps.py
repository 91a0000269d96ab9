"""The registry of Apps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from modal_nomad.dispatcher.apps import AppRegistry
from modal_nomad.dispatcher.store import SqliteStore
from modal_nomad.exception import InvalidError, NotFoundError


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "store.db")
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def registry(store: SqliteStore) -> AppRegistry:
    ticks = iter(range(1, 1000))
    return AppRegistry(store, tasks=lambda app_id: 3, clock=lambda: float(next(ticks)))


def _args(*names: str, **more: Any) -> dict[str, Any]:
    functions = [{"spec": {"name": n, "is_generator": n == "gen"}, "job": {"ID": f"shop-{n}"}} for n in names]
    return {"state": "deployed", "name": "shop", "functions": functions, "client_version": "0.1", **more}


async def test_redeploying_keeps_ids_and_drops_what_is_gone(registry: AppRegistry) -> None:
    first = await registry.publish(_args("a", "b", tag="v1"), deployed_by="ann")
    second = await registry.publish(_args("b", "c"))
    assert second.app.app_id == first.app.app_id and second.app.version == 2
    assert [f.name for f in second.removed] == ["a"]
    one, two = first.result(url="u"), second.result()
    assert one["functions"]["b"] == two["functions"]["b"] and one["url"] == "u"
    assert (await registry.publish(_args("a"))).result()["functions"]["a"] == one["functions"]["a"]
    history = (await registry.history("shop"))["versions"]
    assert [v["version"] for v in history] == [3, 2, 1]
    assert history[-1] == {
        "version": 1,
        "deployed_at": 1.0,
        "client": "0.1",
        "deployed_by": "ann",
        "tag": "v1",
    }


async def test_function_lookup(registry: AppRegistry) -> None:
    published = await registry.publish(_args("gen"))
    found = await registry.function_lookup("shop", "gen")
    assert found == {
        "function_id": published.functions[0].function_id,
        "is_generator": True,
        "spec": {"name": "gen", "is_generator": True},
    }
    with pytest.raises(NotFoundError, match="its Functions are gen"):
        await registry.function_lookup("shop", "x")
    with pytest.raises(NotFoundError, match=r"environment 'dev'.*deploy"):
        await registry.function_lookup("shop", "gen", "dev")


async def test_stopping_and_deploying_again_keeps_function_ids(registry: AppRegistry) -> None:
    first = await registry.publish(_args("a"))
    assert [f.job["ID"] for f in await registry.stop(first.app.app_id)] == ["shop-a"]
    await registry.stop(first.app.app_id)
    with pytest.raises(NotFoundError):
        await registry.function_lookup("shop", "a")
    assert (await registry.resolve("shop"))["state"] == "stopped"
    second = await registry.publish(_args("a"))
    assert second.app.app_id != first.app.app_id
    assert second.functions[0].function_id == first.functions[0].function_id
    assert await registry.resolve("shop") == {
        "app_id": second.app.app_id,
        "name": "shop",
        "state": "deployed",
    }
    states = [(a["state"], a["tasks"], a["stopped_at"]) for a in (await registry.list())["apps"]]
    assert states == [("deployed", 3, None), ("stopped", 3, 2.0)]


async def test_ephemeral_apps_are_their_own_and_found_again(
    registry: AppRegistry, store: SqliteStore
) -> None:
    deployed = await registry.publish(_args("a"))
    run = await registry.publish(_args("a", state="ephemeral"))
    assert run.app.app_id != deployed.app.app_id
    assert run.functions[0].function_id != deployed.functions[0].function_id
    assert (await registry.resolve("shop"))["app_id"] == deployed.app.app_id

    restarted = AppRegistry(store)
    assert {app.app_id for app, _ in await restarted.active()} == {run.app.app_id, deployed.app.app_id}
    again = await restarted.publish(_args("a", state="ephemeral", app_id=run.app.app_id))
    assert again.result()["functions"] == run.result()["functions"] and again.app.version == 2
    await restarted.detach(run.app.app_id)
    assert (await restarted.resolve(run.app.app_id))["state"] == "detached"
    await restarted.stop(run.app.app_id)
    with pytest.raises(InvalidError, match="was stopped"):
        await restarted.publish(_args(state="ephemeral", app_id=run.app.app_id))


async def test_lookup_makes_an_app(registry: AppRegistry) -> None:
    with pytest.raises(NotFoundError, match="create_if_missing"):
        await registry.lookup("shop")
    made = await registry.lookup("shop", create_if_missing=True)
    assert await registry.lookup("shop") == made
    published = await registry.publish(_args("a"))
    assert (published.app.app_id, published.app.version) == (made["app_id"], 1)


async def test_environments_are_apart(registry: AppRegistry) -> None:
    main = await registry.publish(_args("a"))
    dev = await registry.publish(_args("a", environment="dev"))
    assert main.app.app_id != dev.app.app_id
    assert main.functions[0].function_id != dev.functions[0].function_id
    assert [a["app_id"] for a in (await registry.list("dev"))["apps"]] == [dev.app.app_id]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (_args(state="running"), "state 'running' is unknown"),
        (_args(name=None), "needs a name"),
        (_args(name="a b"), "is invalid"),
        (_args(name="ap-" + "a" * 22), "is invalid"),
        (_args("a", "a"), "two Functions named 'a'"),
        ({**_args(), "functions": [{"spec": {}}]}, "needs a spec"),
    ],
)
async def test_bad_publications(registry: AppRegistry, args: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        await registry.publish(args)


async def test_unknown_apps(registry: AppRegistry) -> None:
    for app in ("nope", "ap-" + "0" * 22):
        with pytest.raises(NotFoundError, match="modal-nomad app list"):
            await registry.resolve(app)
    with pytest.raises(NotFoundError):
        await registry.publish(_args(app_id="ap-" + "0" * 22))
