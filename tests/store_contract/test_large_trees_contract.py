"""Directories with very much below them, removed and copied in slices: as in one transaction."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modal_nomad.dispatcher._gates import Gates
from modal_nomad.dispatcher._large_commits import LargeCommits
from modal_nomad.dispatcher._large_trees import LargeTrees
from modal_nomad.dispatcher._volume_pins import Pins
from modal_nomad.dispatcher.store import Store
from modal_nomad.dispatcher.store.objects import ObjectRecord
from modal_nomad.dispatcher.store.volumes import VolumeConflict
from modal_nomad.wire.volumes.entries import DIRECTORY, Entry
from tests.store_contract.conftest import Stores
from tests.store_contract.test_large_commits_contract import OTHER, commits, tree
from tests.store_contract.test_volumes_contract import ENTRIES, PATHS, VOLUME, commit, empty, file


@pytest.fixture
async def store(stores: Stores) -> Store:
    store = await stores.open()
    await empty(store)
    return store


def trees(store: Store, large: int = 0) -> tuple[LargeTrees, LargeCommits, Pins]:
    gates = Gates()
    pins = Pins(store, gates, lambda: 0.0)
    made = commits(store, gates)
    return LargeTrees(store, pins, made, large), made, pins


async def settle(made: LargeCommits, pins: Pins) -> None:
    await asyncio.gather(*made._tasks, *pins._tasks, return_exceptions=True)


async def remove(of: LargeTrees, commit_id: str, path: str) -> bool:
    async with of.large(VOLUME, [path]) as pin_id:
        if pin_id:
            await of.remove(VOLUME, commit_id, pin_id, path, 5.0)
        return bool(pin_id)


async def copy(of: LargeTrees, store: Store, commit_id: str, sources: list[str], target: str) -> bool:
    async with of.large(VOLUME, sources) as pin_id:
        if pin_id:
            copies = await store.volume_plan_copy(VOLUME, sources, target, recursive=True)
            await of.copy(VOLUME, commit_id, pin_id, copies, 5.0)
        return bool(pin_id)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    made=st.lists(ENTRIES, min_size=1, max_size=9),
    work=st.lists(st.tuples(st.booleans(), PATHS, PATHS), max_size=4),
)
def test_slices_do_what_one_transaction_does(
    made: list[Entry], work: list[tuple[bool, str, str]], store: Store
) -> None:
    async def check() -> None:
        await empty(store)
        await store.remove_object(OTHER)
        await store.add_object(ObjectRecord(OTHER, "volume", "o", "main", 0.0))
        of, large, pins = trees(store)
        for volume in (VOLUME, OTHER):
            await store.volume_commit(volume, "first", made.__iter__, rule="last", now=0.0)
        for number, (removes, path, place) in enumerate(work):
            outcome: list[Any] = []
            for sliced in (True, False):
                try:
                    if removes and not (sliced and await remove(of, f"{number}", path)):
                        volume = VOLUME if sliced else OTHER
                        await store.volume_remove(volume, f"{number}", path, recursive=True, now=5.0)
                    if not removes and not (sliced and await copy(of, store, f"{number}", [path], place)):
                        volume = VOLUME if sliced else OTHER
                        await store.volume_copy(volume, f"{number}", [path], place, recursive=True, now=5.0)
                    outcome.append("done")
                except VolumeConflict as error:
                    outcome.append(error.kind)
            assert outcome[0] == outcome[1]
            mine, theirs = [
                await store.volume_list(x, "", recursive=True, after=None, limit=100) for x in (VOLUME, OTHER)
            ]
            assert mine == theirs
        await settle(large, pins)
        assert await store.volume_stages() == [] and await store.volume_expired(1e9) == []

    asyncio.run(check())


async def test_others_write_meanwhile_and_what_they_add_stays(store: Store) -> None:
    await commit(store, *(file(f"d/{n}") for n in range(9)), file("kept"))
    of, large, pins = trees(store)
    staging, added = store.volume_stage, 0

    async def staged(*arguments: Any) -> None:
        nonlocal added
        await staging(*arguments)
        added += 1
        await commit(store, file(f"d/new/{added}"), commit_id=f"add{added}")

    store.volume_stage = staged  # type: ignore[method-assign]
    assert await remove(of, "r", "d") and added == 6
    found, _ = await tree(store)
    assert set(found) == {"kept", "d", "d/new", *(f"d/new/{n + 1}" for n in range(6))}
    store.volume_stage = staging  # type: ignore[method-assign]
    assert await copy(of, store, "c", ["d"], "copied") and await remove(of, "s", "d")
    found, _ = await tree(store)
    assert {x for x in found if found[x][0] != DIRECTORY} == {
        "kept",
        *(f"copied/new/{n + 1}" for n in range(6)),
    }
    await settle(large, pins)
    assert await store._rows("SELECT * FROM volume_past") == []  # type: ignore[attr-defined]


async def test_what_is_small_is_not_sliced(store: Store) -> None:
    await commit(store, *(file(f"d/{n}") for n in range(3)), file("d/e/f"))
    of, _, pins = trees(store, 5)
    assert not await remove(of, "r", "d") and not pins._tasks
    async with of.large(VOLUME, ["d", "d/e"]) as pin_id:
        assert pin_id
    await asyncio.gather(*pins._tasks)
