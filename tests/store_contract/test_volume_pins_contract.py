"""Pinned versions of Volumes: read by directory as they were, whatever is committed meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modal_nomad.dispatcher.store import Store
from modal_nomad.dispatcher.store.volumes import VolumeConflict
from modal_nomad.wire.volumes.entries import CHUNK_BYTES, DIRECTORY, FILE, REMOVED, Entry
from tests.store_contract.conftest import Stores
from tests.store_contract.test_volumes_contract import ENTRIES, VOLUME, Tree, apply, commit, empty, file


@pytest.fixture
async def store(stores: Stores) -> Store:
    store = await stores.open()
    await empty(store)
    return store


async def walk(store: Store, pin_id: str, rows: int) -> Tree:
    """Read a pinned version by its directories, each in pages."""
    found: Tree = {}
    waiting: list[tuple[str, str | None]] = [("", None)]
    while waiting:
        path, after = waiting.pop()
        listings, _ = await store.volume_listings(VOLUME, pin_id, [path], after, None, rows, 1 << 20)
        listed = {x.path for x in listings}
        for listing in listings:
            for entry in listing.entries:
                assert entry.path not in found and entry.parent == listing.path
                found[entry.path] = (entry.kind, entry.data)
                if entry.kind == DIRECTORY and entry.path not in listed:
                    waiting.append((entry.path, None))
            if not listing.complete:
                waiting.append((listing.path, listing.entries[-1].path))
    return found


async def follow(store: Store, since: int, pin_id: str, tree: Tree) -> int:
    after = None
    while True:
        page = await store.volume_changes(VOLUME, since, after, 2, 1 << 20, pin_id)
        for entry in page.entries:
            if entry.kind == REMOVED:
                tree.pop(entry.path, None)
            else:
                tree[entry.path] = (entry.kind, entry.data)
        after = page.after
        if after is None:
            return page.version


async def past(store: Store) -> int:
    rows: int = (await store._rows("SELECT count(*) FROM volume_past"))[0][0]  # type: ignore[attr-defined]
    return rows


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    commits=st.lists(st.tuples(st.booleans(), st.lists(ENTRIES, min_size=1, max_size=5)), max_size=6),
    rows=st.integers(1, 6),
    gone=st.randoms(use_true_random=False),
)
def test_a_pinned_version_stays_what_it_was(
    commits: list[tuple[bool, list[Entry]]], rows: int, gone: Any, store: Store
) -> None:
    async def check() -> None:
        await empty(store)
        tree: Tree = {}
        pinned: dict[str, tuple[int, Tree]] = {}
        for number, (pin, entries) in enumerate(commits):
            if pin:
                version = await store.volume_pin(VOLUME, f"p{number}", 0.0)
                pinned[f"p{number}"] = version, dict(tree)
            await store.volume_commit(VOLUME, f"c{number}", entries.__iter__, rule="last", now=float(number))
            apply(tree, entries)
        while pinned:
            followed: Tree = {}
            since = 0
            for pin_id, (version, then) in pinned.items():
                assert await walk(store, pin_id, rows) == then
                below = await store.volume_below(VOLUME, pin_id, "a", None, 100)
                assert [x.path for x in below] == sorted(
                    (x for x in then if x.startswith("a/")), key=str.encode
                )
                since = await follow(store, since, pin_id, followed)
                assert since == version and followed == then
            # Those that are left stay readable, and nothing else is kept.
            pin_id = gone.choice(sorted(pinned))
            del pinned[pin_id]
            while await store.volume_unpin(VOLUME, pin_id, 1):
                pass
        assert await past(store) == 0

    asyncio.run(check())


async def test_contents_of_a_pinned_version_are_not_collected(store: Store) -> None:
    one = "1" * 64
    await commit(store, Entry("large", FILE, CHUNK_BYTES, chunks=(one,)))
    await store.volume_pin(VOLUME, "p", 0.0)
    await commit(store, file("large", b"x"))
    assert one in (await store.referenced_blobs()).names
    assert not await store.volume_unpin(VOLUME, "p", 10)
    assert one not in (await store.referenced_blobs()).names


async def test_a_large_directory_comes_in_parts_and_a_name_in_it_at_once(store: Store) -> None:
    await commit(store, *(file(f"d/{n:03}") for n in range(20)), Entry("d/sub", DIRECTORY))
    await store.volume_pin(VOLUME, "p", 0.0)
    await commit(store, file("d/019", b"new"), file("d/020"))
    ask = store.volume_listings
    listings, named = await ask(VOLUME, "p", ["d"], None, "019", 5, 1 << 20)
    assert [len(x.entries) for x in listings] == [5] and not listings[0].complete
    assert named is not None and named.path == "d/019" and named.data == b""
    assert (await ask(VOLUME, "p", ["d"], None, "020", 5, 1 << 20))[1] is None
    listings, named = await ask(VOLUME, "p", ["d"], "d/004", None, 100, 1 << 20)
    assert [(x.path, len(x.entries), x.complete) for x in listings] == [("d", 16, True), ("d/sub", 0, True)]
    # By bytes as well: the first directory in part, others whole or not at all.
    listings, _ = await ask(VOLUME, "p", ["d"], None, None, 100, 250)
    assert not listings[0].complete and len(listings[0].entries) < 20
    listings, _ = await ask(VOLUME, "p", [""], None, None, 10, 1 << 20)
    assert [(x.path, x.complete) for x in listings] == [("", True)]


async def test_pins_expire_and_are_renewed(store: Store) -> None:
    await commit(store, file("a", b"1"))
    await store.volume_pin(VOLUME, "old", 0.0)
    await store.volume_pin(VOLUME, "renewed", 0.0)
    assert await store.volume_renew(VOLUME, "renewed", 50.0)
    assert not await store.volume_renew(VOLUME, "never", 50.0)
    assert await store.volume_expired(10.0) == [(VOLUME, "old")]
    assert not await store.volume_unpin(VOLUME, "old", 10)
    with pytest.raises(VolumeConflict, match="no longer kept"):
        await store.volume_listings(VOLUME, "old", [""], None, None, 10, 1 << 20)
    await store.remove_object(VOLUME)
    assert await store.volume_expired(100.0) == []
    with pytest.raises(VolumeConflict, match="deleted"):
        await store.volume_pin(VOLUME, "late", 0.0)
