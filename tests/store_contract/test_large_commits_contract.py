"""Commits of Volumes in slices: what one commit would have done, whoever is killed in between."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modal_nomad.dispatcher._gates import Gates
from modal_nomad.dispatcher._large_commits import LargeCommits
from modal_nomad.dispatcher.store import Store
from modal_nomad.dispatcher.store.base import StoreError
from modal_nomad.dispatcher.store.objects import ObjectRecord
from modal_nomad.dispatcher.store.volumes import Committed, VolumeConflict
from modal_nomad.wire.volumes.entries import DIRECTORY, REMOVED, Entry
from tests.store_contract.conftest import Stores
from tests.store_contract.test_volumes_contract import ENTRIES, VOLUME, empty, file, read

OTHER = "vo-2"


@pytest.fixture
async def store(stores: Stores) -> Store:
    store = await stores.open()
    await empty(store)
    return store


def ordered(entries: Sequence[Entry]) -> list[Entry]:
    removed = sorted((x for x in entries if x.kind == REMOVED), key=lambda x: -x.path.count("/"))
    return [x for x in entries if x.kind != REMOVED] + removed


async def nothing(_: frozenset[str]) -> None:
    pass


def commits(store: Store, gates: Gates | None = None, entries: int = 2) -> LargeCommits:
    return LargeCommits(store, gates or Gates(), nothing, entries)


async def tree(store: Store) -> tuple[dict[str, tuple[int, bytes]], int]:
    found, version = await read(store)
    return {x.path: (x.kind, x.data) for x in found if x.kind}, version


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=st.lists(st.lists(ENTRIES, min_size=1, max_size=7), max_size=4))
def test_slices_do_what_one_commit_does(made: list[list[Entry]], store: Store) -> None:
    async def check() -> None:
        await empty(store)
        await store.remove_object(OTHER)
        await store.add_object(ObjectRecord(OTHER, "volume", "o", "main", 0.0))
        large = commits(store)
        for number, entries in enumerate(made):
            await large.commit(VOLUME, f"c{number}", "last", ordered(entries), 5.0)
            await store.volume_commit(OTHER, f"c{number}", entries.__iter__, rule="last", now=5.0)
            mine, theirs = [
                await store.volume_list(x, "", recursive=True, after=None, limit=100) for x in (VOLUME, OTHER)
            ]
            assert mine == theirs
        assert (await tree(store))[1] == len(made) and await store.volume_stages() == []

    asyncio.run(check())


async def test_nobody_sees_a_commit_before_it_is_whole(store: Store) -> None:
    gates = Gates()
    large = commits(store, gates)
    await large.commit(VOLUME, "first", "last", [file("a", b"0")], 0.0)
    before = await tree(store)
    carry_out = store.volume_carry_out
    seen: list[Any] = []
    slices = 0

    async def watched(*arguments: Any) -> Any:
        nonlocal slices
        slices += 1
        done = await carry_out(*arguments)
        # Who reads now waits, and other Volumes and other writers have their turns.
        await store.volume_commit(OTHER, f"o{slices}", [file(f"{slices}")].__iter__, rule="last", now=0.0)
        if not seen:
            seen.append(asyncio.ensure_future(look()))
        return done

    async def look() -> Any:
        async with gates.shared(VOLUME):
            return await tree(store)

    await store.add_object(ObjectRecord(OTHER, "volume", "o", "main", 0.0))
    store.volume_carry_out = watched  # type: ignore[method-assign]
    staged = [file("a", b"1"), *(file(f"d/{n}") for n in range(6)), Entry("gone", REMOVED)]
    staging = store.volume_stage
    unseen: list[Any] = []

    async def staged_and_looked(*arguments: Any) -> None:
        await staging(*arguments)
        unseen.append(await tree(store))

    store.volume_stage = staged_and_looked  # type: ignore[method-assign]
    done = await large.commit(VOLUME, "second", "last", staged, 0.0)
    assert done == Committed(1, 2, frozenset()) and slices == 5 and unseen == [before] * 4
    after = await tree(store)
    assert await seen[0] == after and after[1] == 2 and len(after[0]) == 8
    assert await large.commit(VOLUME, "second", "last", [file("again")], 0.0) == done
    await asyncio.gather(*large._tasks)
    assert await tree(store) == after and await store.volume_stages() == []


@pytest.mark.parametrize("slices", [0, 1, 3, 4])
async def test_a_kill_in_the_middle_tears_nothing(stores: Stores, slices: int) -> None:
    store = await stores.open()
    await empty(store)
    large = commits(store)
    carry_out, killed = store.volume_carry_out, asyncio.Event()
    left = slices

    async def until_killed(*arguments: Any) -> Any:
        nonlocal left
        if not left:
            killed.set()
            await asyncio.Event().wait()
        left -= 1
        return await carry_out(*arguments)

    store.volume_carry_out = until_killed  # type: ignore[method-assign]
    entries = [file(f"{n}", b"%d" % n) for n in range(7)]
    waiting = asyncio.ensure_future(large.commit(VOLUME, "c", "last", entries, 3.0))
    await killed.wait()
    large.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await store.close()

    again = await stores.open()
    gates = Gates()
    resumed = commits(again, gates)
    await resumed.resume()
    async with gates.shared(VOLUME):
        found, version = await tree(again)
    assert found == {f"{n}": (1, b"%d" % n) for n in range(7)} and version == 1
    # The client sends it again, as it was not told, and it does not conflict with itself.
    assert await resumed.commit(VOLUME, "c", "new", entries, 9.0) == Committed(0, 1, frozenset())
    await asyncio.gather(*resumed._tasks)
    assert await again.volume_stages() == []


async def test_what_was_staged_before_a_kill_is_forgotten(store: Store) -> None:
    await store.volume_stage(VOLUME, "sg-1", 0, [file("a"), file("b"), file("c")])
    chunk = "7" * 64
    await store.volume_stage(VOLUME, "sg-1", 3, [Entry("d", 1, 5, chunks=(chunk,))])
    assert chunk in (await store.referenced_blobs()).names
    large = commits(store)
    await large.resume()
    await asyncio.gather(*large._tasks)
    assert await store.volume_stages() == [] and (await tree(store)) == ({}, 0)
    assert chunk not in (await store.referenced_blobs()).names


async def test_an_upload_leaves_directories_their_modes_however_large_it_is(store: Store) -> None:
    there = [Entry("a", DIRECTORY, mode=0o700), Entry("a/b", DIRECTORY, mode=0o711)]
    await store.volume_commit(VOLUME, "c0", lambda: there, rule="last", now=1.0)
    again = [Entry("a", DIRECTORY, mode=0o755), Entry("a/b", DIRECTORY, mode=0o755)]
    more = [Entry("a/c", DIRECTORY, mode=0o750), file("a/b/x", b"1")]
    await commits(store).commit(VOLUME, "c1", "over", again + more, 2.0)
    found, _ = await read(store)
    modes = {x.path: x.mode for x in found if x.kind == DIRECTORY}
    assert modes == {"a": 0o700, "a/b": 0o711, "a/c": 0o750}
    await commits(store).commit(VOLUME, "c2", "last", again + more, 3.0)
    found, _ = await read(store)
    assert {x.mode for x in found if x.path in ("a", "a/b")} == {0o755}


async def test_a_refused_one_changes_nothing(store: Store) -> None:
    large = commits(store)
    await large.commit(VOLUME, "base", "last", [file("e"), file("d/f")], 0.0)
    before = await tree(store)
    for number, (last, rule) in enumerate(
        [(file("e"), "new"), (file("d"), "over"), (file("e/below"), "over"), (Entry("e", DIRECTORY), "over")]
    ):
        with pytest.raises(VolumeConflict):
            entries = [*(file(f"n{n}") for n in range(5)), last]
            await large.commit(VOLUME, f"r{number}", rule, entries, 0.0)
        await asyncio.gather(*large._tasks, return_exceptions=True)
        assert await tree(store) == before and await store.volume_stages() == []
    await large.commit(VOLUME, "over", "over", [file("e", b"2"), file("d/f", b"3"), file("x")], 0.0)
    assert (await tree(store))[0]["e"] == (1, b"2")


async def test_a_volume_that_is_deleted_amid_a_commit(store: Store) -> None:
    large = commits(store)
    carry_out = store.volume_carry_out

    async def deleted(*arguments: Any) -> Any:
        await store.remove_object(VOLUME)
        return await carry_out(*arguments)

    store.volume_carry_out = deleted  # type: ignore[method-assign]
    with pytest.raises(VolumeConflict, match="deleted"):
        await large.commit(VOLUME, "c", "last", [file("a")], 0.0)
    with pytest.raises(VolumeConflict, match="deleted"):
        await large.commit(VOLUME, "d", "last", [file("a")], 0.0)
    await asyncio.gather(*large._tasks, return_exceptions=True)
    assert await store.volume_stages() == []


async def test_what_is_decided_is_done_once_the_store_can(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modal_nomad.dispatcher._large_commits._RETRY_SECONDS", 0.0)
    large = commits(store)
    carry_out, failures = store.volume_carry_out, 3

    async def full(*arguments: Any) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise StoreError("no space left for the store: free some disk space")
        return await carry_out(*arguments)

    store.volume_carry_out = full  # type: ignore[method-assign]
    assert (await large.commit(VOLUME, "c", "last", [file("a")], 0.0)).version == 1
    assert failures == 0 and set((await tree(store))[0]) == {"a"}
