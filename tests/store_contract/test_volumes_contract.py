"""Trees of Volumes in the store, against a plain model: nothing torn, nothing lost, nothing done twice."""

from __future__ import annotations

import asyncio
import posixpath
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modal_nomad.dispatcher.store import Store
from modal_nomad.dispatcher.store.objects import ObjectRecord
from modal_nomad.dispatcher.store.volumes import VolumeConflict
from modal_nomad.wire.volumes.entries import (
    CHUNK_BYTES,
    DIRECTORY,
    FILE,
    HOLE,
    REMOVED,
    SYMLINK,
    Entry,
)
from tests.store_contract.conftest import Stores

VOLUME = "vo-1"
NAMES = st.sampled_from(["a", "b", "a0", "a-", "ü"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
Tree = dict[str, tuple[int, bytes]]


def file(path: str, data: bytes = b"", **more: Any) -> Entry:
    return Entry(path, FILE, len(data), data=data, **more)


ENTRIES = st.builds(
    lambda path, kind, data: {
        FILE: file(path, data),
        DIRECTORY: Entry(path, DIRECTORY, mode=0o755),
        SYMLINK: Entry(path, SYMLINK, 1, data=b"x"),
        REMOVED: Entry(path, REMOVED),
    }[kind],
    PATHS,
    st.sampled_from([FILE, FILE, DIRECTORY, SYMLINK, REMOVED]),
    st.binary(max_size=2),
)


@pytest.fixture
async def store(stores: Stores) -> Store:
    """A store with an empty Volume."""
    store = await stores.open()
    await empty(store)
    return store


async def empty(store: Store) -> None:
    await store.remove_object(VOLUME)
    await store.add_object(ObjectRecord(VOLUME, "volume", "v", "main", 0.0))


def apply(tree: Tree, entries: list[Entry]) -> None:
    """What a commit means, said plainly."""
    for entry in entries:
        if entry.kind == REMOVED:
            continue
        for path in parents(entry.path):
            if tree.get(path, (0, b""))[0] != DIRECTORY:
                tree[path] = (DIRECTORY, b"")
        if entry.kind != DIRECTORY:
            for path in [x for x in tree if x.startswith(entry.path + "/")]:
                del tree[path]
        tree[entry.path] = (entry.kind, entry.data)
    for path in sorted((x.path for x in entries if x.kind == REMOVED), key=len, reverse=True):
        if not any(other.startswith(path + "/") for other in tree):
            tree.pop(path, None)


def parents(path: str) -> list[str]:
    found = []
    while path := posixpath.dirname(path):
        found.append(path)
    return found[::-1]


async def read(store: Store, since: int = 0, max_rows: int = 2) -> tuple[list[Entry], int]:
    entries: list[Entry] = []
    after = None
    while True:
        page = await store.volume_changes(VOLUME, since, after, max_rows, 1 << 20)
        entries += page.entries
        after = page.after
        if after is None:
            return entries, page.version


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commits=st.lists(st.lists(ENTRIES, max_size=6), max_size=6), seen=st.integers(0, 5))
def test_commits_and_followers(commits: list[list[Entry]], seen: int, store: Store) -> None:
    async def check() -> None:
        await empty(store)
        tree: Tree = {}
        follower: Tree = {}
        followed = 0
        for number, entries in enumerate(commits):
            await store.volume_commit(VOLUME, f"c{number}", entries.__iter__, rule="last", now=float(number))
            apply(tree, entries)
            found, version = await read(store)
            assert {x.path: (x.kind, x.data) for x in found if x.kind} == tree
            for path in tree:
                assert all(tree[parent][0] == DIRECTORY for parent in parents(path)), "a torn tree"
            listed = await store.volume_list(VOLUME, "", recursive=True, after=None, limit=100)
            assert [x.path for x in listed] == sorted(tree, key=str.encode)
            if number % (seen + 1) == 0:
                changed, followed = await read(store, followed)
                for entry in changed:
                    if entry.kind == REMOVED:
                        follower.pop(entry.path, None)
                    else:
                        follower[entry.path] = (entry.kind, entry.data)
                assert follower == tree and followed == version

    asyncio.run(check())


async def commit(store: Store, *entries: Entry, rule: str = "last", commit_id: str = "") -> Any:
    return await store.volume_commit(
        VOLUME, commit_id or str(hash(entries)), entries.__iter__, rule=rule, now=0.0
    )


async def test_a_refused_commit_changes_nothing(store: Store) -> None:
    await commit(store, file("a", b"1"), file("d/f", b"2"))
    before = await read(store)
    for entries, rule in (
        ([file("new"), file("a", b"2")], "new"),
        ([file("new"), file("d", b"2")], "over"),
        ([file("new"), file("a/below")], "over"),
        ([file("new"), Entry("a", DIRECTORY)], "over"),
    ):
        with pytest.raises(VolumeConflict):
            await commit(store, *entries, rule=rule)
        assert await read(store) == before


async def test_a_commit_that_comes_twice_is_carried_out_once(store: Store) -> None:
    first = await commit(store, file("a", b"1"), commit_id="x")
    await commit(store, file("a", b"2"), commit_id="y")
    again = await commit(store, file("a", b"1"), commit_id="x")
    assert (first.before, first.version) == (again.before, again.version) == (0, 1)
    entry = await store.volume_entry(VOLUME, "a")
    assert entry is not None and entry.data == b"2"


async def test_what_is_unchanged_is_not_written(store: Store) -> None:
    assert (await commit(store, file("a", b"1"), commit_id="x")).version == 1
    assert (await commit(store, file("a", b"1"), commit_id="y")).version == 1
    await commit(store, file("b", b"1"))
    assert [x.path for x in (await read(store, 1))[0]] == ["b"]


async def test_chunks_are_referenced_while_a_tree_names_them(store: Store) -> None:
    one, two = "1" * 64, "2" * 64
    large = Entry("large", FILE, 3 * CHUNK_BYTES, chunks=(one, HOLE, two))
    await commit(store, large)
    named = (await store.referenced_blobs()).names
    assert {one, two} <= named and HOLE not in named
    done = await commit(store, file("large", b"x"), commit_id="other")
    assert done.displaced == {one, HOLE, two}
    assert not {one, two} & (await store.referenced_blobs()).names
    await commit(store, large._replace(path="again"))
    await store.remove_object(VOLUME)
    assert not {one, two} & (await store.referenced_blobs()).names
    with pytest.raises(VolumeConflict, match="deleted"):
        await commit(store, file("late"))


async def test_who_is_far_behind_reads_all_of_the_tree(store: Store) -> None:
    await commit(store, file("gone"), file("kept"))
    await commit(store, Entry("gone", REMOVED))
    for number in range(70):
        entry = file("kept", b"%d" % number)
        await store.volume_commit(VOLUME, str(number), [entry].__iter__, rule="last", now=8 * 86400.0)
    page = await store.volume_changes(VOLUME, 1, None, 100, 1 << 20)
    assert page.whole and [x.path for x in page.entries] == ["kept"]
    assert not (await store.volume_changes(VOLUME, 60, None, 100, 1 << 20)).whole
    await store.close()


async def test_paths_and_directories_of_any_length(store: Store) -> None:
    long = "/".join(["d" * 250] * 15)
    names = [f"{long}/{name}" for name in ("b", "a", "c" * 200)]
    await commit(store, *(file(name, b"1") for name in names))
    listed = await store.volume_list(VOLUME, long, recursive=False, after=None, limit=2)
    assert [x.path for x in listed] == sorted(names)[:2]
    rest = await store.volume_list(VOLUME, "", recursive=True, after=listed[-1].path, limit=9)
    assert [x.path for x in rest] == sorted(names)[2:]
    await commit(store, file(names[0], b"2"))
    assert [x.path for x in (await read(store, 1))[0]] == names[:1]
    await store.volume_remove(VOLUME, "r", "d" * 250, recursive=True, now=0.0)
    assert [x.kind for x in (await read(store, 2))[0]] == [REMOVED] * 18


async def test_more_files_than_one_statement_takes(store: Store) -> None:
    files = [file(f"d{n % 7}/{n}", b"%d" % n) for n in range(1000)]
    await commit(store, *files)
    found, _ = await read(store, max_rows=300)
    assert {x.path: x.data for x in found if x.kind == FILE} == {x.path: x.data for x in files}
    # A directory goes with the last of what is in it, also when that is in another statement.
    directories = [Entry(f"d{n}", DIRECTORY) for n in range(7)]
    await commit(store, *(Entry(x.path, REMOVED) for x in [*files, *directories]))
    assert {x.kind for x in (await read(store, 1, max_rows=300))[0]} == {REMOVED}
