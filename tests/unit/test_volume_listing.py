"""Names of a Volume come by directory when asked for, all of one version, whatever is changed meanwhile."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from modal_nomad.wire.asking import Refused
from modal_nomad.wire.volumes.client import Changes, Listing, VolumeClient
from modal_nomad.wire.volumes.entries import DIRECTORY, FILE, MAX_PATH, REMOVED, Entry, to_bytes
from modal_nomad.worker.fuse import volume as volume_module
from modal_nomad.worker.fuse.contents import Contents
from modal_nomad.worker.fuse.listing import Listing as Fetcher
from modal_nomad.worker.fuse.nodes import Node, Unlisted
from modal_nomad.worker.fuse.volume import Volume

Tree = dict[str, bytes | None]
"""What is at each path: a file's content, None for a directory."""


def parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]


class Server:
    """A dispatcher with one Volume, all of whose versions are kept."""

    longest = MAX_PATH

    def __init__(self) -> None:
        self.versions: list[Tree] = [{}]
        self.pinned: dict[str, int] = {}
        self.asked: list[tuple[list[str], str | None]] = []
        self.fails: Exception | None = None

    def with_timeout(self, timeout: float) -> Server:
        return self

    def pin(self, volume_id: str, pin_id: str) -> int:
        self.pinned[pin_id] = len(self.versions) - 1
        return self.pinned[pin_id]

    def renew(self, volume_id: str, pin_id: str) -> bool:
        return pin_id in self.pinned

    def unpin(self, volume_id: str, pin_id: str) -> None:
        self.pinned.pop(pin_id, None)

    def directories(
        self,
        volume_id: str,
        pin_id: str,
        paths: Sequence[str],
        rows: int,
        after: str | None,
        name: str | None,
    ) -> tuple[list[Listing], Entry | None]:
        self.asked.append((list(paths), name))
        if self.fails is not None:
            raise self.fails
        if pin_id not in self.pinned:
            raise Refused("VersionGone", "it is no longer kept")
        tree = self.versions[self.pinned[pin_id]]
        found: list[Listing] = []
        for path in paths:
            inside = sorted(x for x in tree if x.rpartition("/")[0] == path)
            entries = [entry(x, tree[x]) for x in inside if found or after is None or x > after]
            if len(entries) > rows and found:
                break
            found.append(Listing(path, entries[:rows], len(entries) <= rows))
            rows -= len(entries)
            if rows <= 0:
                break
        wanted = f"{paths[0]}/{name}" if paths[0] else str(name)
        named = entry(wanted, tree[wanted]) if not found[0].complete and wanted in tree else None
        return found, named

    def all_changes(self, volume_id: str, since: int, pin_id: str | None = None) -> Iterator[Changes]:
        version = self.pinned[pin_id] if pin_id is not None else len(self.versions) - 1
        old, new = self.versions[since], self.versions[version]
        changed = [entry(x, new[x]) for x in new if x not in old or old[x] != new[x]]
        gone = [Entry(x, REMOVED) for x in old if x not in new]
        yield Changes(sorted([*changed, *gone]), version, None, False)

    def missing(self, hashes: list[str]) -> list[str]:
        return []

    def put_chunk(self, data: bytes) -> None:
        raise AssertionError("files of this test are small")

    def commit(self, volume_id: str, entries: Iterator[Entry]) -> tuple[int, int]:
        tree = dict(self.versions[-1])
        made = list(entries)
        for one in made:
            if one.kind != REMOVED:
                put(tree, one.path, one.data if one.kind == FILE else None)
        for one in sorted(made, key=lambda x: -len(x.path)):
            if one.kind == REMOVED and not any(x.startswith(one.path + "/") for x in tree):
                tree.pop(one.path, None)
        self.versions.append(tree)
        return len(self.versions) - 2, len(self.versions) - 1


def entry(path: str, data: bytes | None) -> Entry:
    if data is None:
        return Entry(path, DIRECTORY, mode=0o755)
    return Entry(path, FILE, len(data), 1, data=data)


def put(tree: Tree, path: str, data: bytes | None) -> None:
    for parent in parents(path):
        if tree.get(parent, b"") is not None:
            tree[parent] = None
    if data is not None:
        for below in [x for x in tree if x.startswith(path + "/")]:
            del tree[below]
    if data is not None or tree.get(path, b"") is not None:
        tree[path] = data


class Here:
    """A container's view: what the kernel would ask, asked directly."""

    def __init__(self, server: Server, folder: Path, rows: int) -> None:
        self.rows = rows
        lock = threading.RLock()
        self.contents = Contents(str(folder), cast(Any, None))
        self.volume = Volume(
            "vo-1",
            "/vol",
            cast(VolumeClient, server),
            self.contents,
            lock,
            lambda told: None,
            lambda: [],
            lambda text: None,
            False,
        )
        self.volume.load()

    def again(self, work: Any) -> Any:
        while True:
            try:
                return work()
            except Unlisted as wanted:
                self.volume.list(wanted.node, wanted.name, self.rows)

    def node(self, path: str) -> Node | None:
        at: Node | None = self.volume.tree.root
        for name in to_bytes(path).split(b"/") if path else ():
            if at is None or at.children is None:
                return None
            self.volume.tree.told(at)
            number = at.ino
            at = self.again(lambda number=number, name=name: self.volume.tree.child(number, name)[1])
        return at

    def read(self, path: str) -> bytes | None:
        node = self.node(path)
        assert node is not None
        return None if node.kind == DIRECTORY else self.contents.small(node)

    def write(self, path: str, data: bytes) -> None:
        tree = self.volume.tree
        parent = self.node(path.rpartition("/")[0])
        assert parent is not None
        node = self.node(path)
        if node is None:
            tree.touch_path(path, None)
            node = tree.new(FILE, 0o644, 0, 1)
            tree.add(parent, to_bytes(path.rpartition("/")[2]), node)
        tree.touch(node)
        self.contents.resize(node, 0)
        self.contents.write(node, 0, memoryview(data))

    def remove(self, path: str) -> None:
        node = self.node(path)
        assert node is not None and node.parent is not None
        self.volume.tree.touch_path(path, node)
        self.volume.tree.take(node.parent, node.name)

    def rename(self, old: str, new: str) -> None:
        tree = self.volume.tree
        node, folder = self.node(old), self.node(new.rpartition("/")[0])
        assert node is not None and node.parent is not None and folder is not None and self.node(new) is None
        self.again(lambda: tree.need_all_below(node))
        tree.move(node.parent, node.name, folder, to_bytes(new.rpartition("/")[2]))

    def all(self) -> Tree:
        self.again(lambda: self.volume.tree.need_all_below(self.volume.tree.root))
        below = self.volume.tree.below(self.volume.tree.root, "")
        return {path: None if x.kind == DIRECTORY else self.contents.small(x) for path, x in below}


@pytest.mark.parametrize("seed", range(40))
def test_a_container_sees_one_version_and_its_own_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(volume_module, "FIRST_ROWS", 1)
    server = Server()
    names = [f"{a}{b}" for a in ("", "d/", "d/e/", "f/") for b in ("p", "q", "r", "s")]
    server.versions.append({})
    for name in names:
        if chance.random() < 0.7:
            put(server.versions[1], name, name.encode())
    here = Here(server, tmp_path, chance.randint(1, 3))
    mine = dict(server.versions[1])
    for step in range(60):
        path = chance.choice(names)
        what = chance.random()
        folder_there = all(mine.get(x, b"") is None for x in parents(path))
        if what < 0.3:
            node = here.node(path)
            assert (node is not None) == (path in mine), (step, path)
            assert node is None or here.read(path) == mine[path]
        elif what < 0.45 and folder_there:
            data = b"%d" % step
            here.write(path, data)
            mine[path] = data
        elif what < 0.55 and path in mine:
            here.remove(path)
            del mine[path]
        elif what < 0.6 and mine.get("d", b"") is None and "g" not in mine:
            here.rename("d", "g")
            moved = {x: mine.pop(x) for x in list(mine) if x == "d" or x.startswith("d/")}
            mine.update({"g" + x[1:]: data for x, data in moved.items()})
        elif what < 0.75:
            # Another container commits.
            other = [entry(path, b"other %d" % step)] if chance.random() < 0.6 else [Entry(path, REMOVED)]
            server.commit("", iter(other))
        elif what < 0.85:
            here.volume.commit()
        elif what < 0.95:
            here.volume.reload()
            mine = dict(server.versions[-1])
        else:
            # A machine that slept: its version is gone, and what is there now is shown instead.
            here.volume.commit()
            server.pinned.clear()
            here.volume.list(here.volume.tree.root, None, 1)
            if here.volume._shows.pin_id in server.pinned:
                mine = dict(server.versions[-1])
            else:
                here.volume._follow()
                mine = dict(server.versions[-1])
    assert here.all() == mine
    here.volume.let_go()
    assert server.pinned == {}


def test_one_file_of_many_does_not_wait_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_module, "FIRST_ROWS", 2)
    server = Server()
    tree: Tree = {}
    for number in range(300):
        put(tree, f"d{number % 10}/f{number:03}", b"x")
    server.versions.append(tree)
    here = Here(server, tmp_path, 3)
    server.asked.clear()
    assert here.read("d7/f297") == b"x"
    assert server.asked == [([""], "d7"), (["d7"], "f297")]
    assert len(here.volume.tree.known) == 2 and here.node("d7/f300") is None
    # Known not to be there, once it was asked for.
    count = len(server.asked)
    assert here.node("d7/f300") is None and len(server.asked) == count


def test_who_walks_through_a_tree_asks_for_many_directories_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    tree: Tree = {}
    for number in range(500):
        put(tree, f"d{number:04}/f", b"x")
    server.versions.append(tree)
    here = Here(server, tmp_path, 1000)
    server.asked.clear()
    assert here.all() == tree
    assert len(server.asked) < 20


def test_several_wait_for_one_answer_and_a_dispatcher_that_is_away_is_asked_again() -> None:
    attempts = 0
    go = threading.Event()

    def ask(node: Node, name: bytes | None, rows: int) -> None:
        nonlocal attempts
        attempts += 1
        assert go.wait(60)
        if attempts == 1:
            raise ConnectionError("nobody answers")

    fetcher = Fetcher(ask, 60.0, lambda text: None, "/vol")
    done: list[str] = []
    ended = threading.Semaphore(0)

    def ready(name: str) -> Any:
        def answer() -> None:
            done.append(name)
            ended.release()

        return answer

    node = Node(2, DIRECTORY, 0o755, 0, 0)
    for name in ("a", "b"):
        fetcher.when_here(Unlisted(node, name.encode()), ready(name), lambda number: None)
    go.set()
    for _ in range(2):
        assert ended.acquire(timeout=60)
    assert done == ["a", "b"] and attempts == 2


def test_what_cannot_be_listed_is_an_error_and_a_line() -> None:
    said: list[str] = []
    failures: list[int] = []
    ended = threading.Event()

    def failed(number: int) -> None:
        failures.append(number)
        ended.set()

    def ask(node: Node, name: bytes | None, rows: int) -> None:
        raise Refused("NotFoundError", "the Volume was deleted")

    Fetcher(ask, 60.0, said.append, "/vol").when_here(
        Unlisted(Node(2, DIRECTORY, 0o755, 0, 0)), lambda: None, failed
    )
    assert ended.wait(60) and failures == [errno.EIO]
    assert said == ["/vol: names of files cannot be had (EIO): the Volume was deleted"]
