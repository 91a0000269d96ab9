"""Trees of Volumes in the store, against a plain model: nothing torn, nothing lost, nothing done twice."""

from __future__ import annotations

import asyncio
import posixpath
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modal_nomad.dispatcher.store import SqliteStore
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
    clean_path,
    decode,
    encode,
)

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


async def opened(folder: Path) -> SqliteStore:
    store = SqliteStore(folder / "state.db")
    await store.open()
    await store.add_object(ObjectRecord(VOLUME, "volume", "v", "main", 0.0))
    return store


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


async def read(store: SqliteStore, since: int = 0, max_rows: int = 2) -> tuple[list[Entry], int]:
    entries: list[Entry] = []
    after = None
    while True:
        page = await store.volume_changes(VOLUME, since, after, max_rows, 1 << 20)
        entries += page.entries
        after = page.after
        if after is None:
            return entries, page.version


@settings(max_examples=60, deadline=None)
@given(commits=st.lists(st.lists(ENTRIES, max_size=6), max_size=6), seen=st.integers(0, 5))
def test_commits_and_followers(
    commits: list[list[Entry]], seen: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async def check() -> None:
        store = await opened(tmp_path_factory.mktemp("store"))
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
        await store.close()

    asyncio.run(check())


async def commit(store: SqliteStore, *entries: Entry, rule: str = "last", commit_id: str = "") -> Any:
    return await store.volume_commit(VOLUME, commit_id or repr(entries), entries.__iter__, rule=rule, now=0.0)


async def test_a_refused_commit_changes_nothing(tmp_path: Path) -> None:
    store = await opened(tmp_path)
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
    await store.close()


async def test_a_commit_that_comes_twice_is_carried_out_once(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    first = await commit(store, file("a", b"1"), commit_id="x")
    await commit(store, file("a", b"2"), commit_id="y")
    again = await commit(store, file("a", b"1"), commit_id="x")
    assert (first.before, first.version) == (again.before, again.version) == (0, 1)
    entry = await store.volume_entry(VOLUME, "a")
    assert entry is not None and entry.data == b"2"
    await store.close()


async def test_what_is_unchanged_is_not_written(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    assert (await commit(store, file("a", b"1"), commit_id="x")).version == 1
    assert (await commit(store, file("a", b"1"), commit_id="y")).version == 1
    await commit(store, file("b", b"1"))
    assert [x.path for x in (await read(store, 1))[0]] == ["b"]
    await store.close()


async def test_chunks_are_referenced_while_a_tree_names_them(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    one, two = "1" * 64, "2" * 64
    large = Entry("large", FILE, 3 * CHUNK_BYTES, chunks=(one, HOLE, two))
    await commit(store, large)
    assert {one, two} <= await store.referenced_blobs() and HOLE not in await store.referenced_blobs()
    done = await commit(store, file("large", b"x"), commit_id="other")
    assert done.displaced == {one, HOLE, two}
    assert not {one, two} & await store.referenced_blobs()
    await commit(store, large._replace(path="again"))
    await store.remove_object(VOLUME)
    assert not {one, two} & await store.referenced_blobs()
    with pytest.raises(VolumeConflict, match="deleted"):
        await commit(store, file("late"))
    await store.close()


async def test_who_is_far_behind_reads_all_of_the_tree(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await commit(store, file("gone"), file("kept"))
    await commit(store, Entry("gone", REMOVED))
    for number in range(70):
        entry = file("kept", b"%d" % number)
        await store.volume_commit(VOLUME, str(number), [entry].__iter__, rule="last", now=8 * 86400.0)
    page = await store.volume_changes(VOLUME, 1, None, 100, 1 << 20)
    assert page.whole and [x.path for x in page.entries] == ["kept"]
    assert not (await store.volume_changes(VOLUME, 60, None, 100, 1 << 20)).whole
    await store.close()


@given(st.text(max_size=300))
def test_no_path_leads_out(text: str) -> None:
    try:
        path = clean_path(text)
    except ValueError:
        return
    assert not path.startswith("/") and ".." not in path.split("/") and "\0" not in path
    assert clean_path(path) == path


@given(ENTRIES, st.binary(max_size=50))
def test_lines_of_entries(entry: Entry, noise: bytes) -> None:
    line = encode(entry)
    assert line.count(b"\n") == 1 and line.isascii() and decode(line) == entry
    for bad in (noise, line[:-3], line.replace(b'"', b"", 1)):
        try:
            decode(bad)
        except ValueError:
            continue


@pytest.mark.parametrize(
    "entry",
    [
        Entry("", FILE),
        Entry("../a", FILE),
        Entry("/a", FILE),
        Entry("a", 4),
        Entry("a", FILE, 5),
        Entry("a", FILE, CHUNK_BYTES + 1, chunks=("1" * 64,)),
        Entry("a", DIRECTORY, data=b"x"),
        Entry("a", SYMLINK),
        Entry("a", FILE, -1),
    ],
)
def test_entries_that_cannot_be(entry: Entry) -> None:
    with pytest.raises(ValueError):
        decode(encode(entry))
