"""Of a large Volume the first names let a container start, and who serves it knows when all are here."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from modal_nomad.wire.volumes.client import Changes, VolumeClient
from modal_nomad.wire.volumes.entries import FILE, Entry
from modal_nomad.worker.fuse import mounting
from modal_nomad.worker.fuse.contents import Contents
from modal_nomad.worker.fuse.process import Served, Service
from modal_nomad.worker.fuse.volume import Volume


class Paged:
    """A dispatcher that gives a tree in pages, each after the first when it is let."""

    def __init__(self, pages: int) -> None:
        self.pages, self.go = pages, threading.Event()

    def all_changes(self, volume_id: str, since: int) -> Iterator[Changes]:
        for number in range(self.pages):
            if number:
                assert self.go.wait(60)
            entries = [Entry(f"{number}", FILE, 0)]
            last = number == self.pages - 1
            yield Changes(entries, 1, None if last else (1, f"{number}"), True)


def volume(tmp_path: Path, client: Paged) -> Volume:
    contents = Contents(str(tmp_path), cast(Any, None))
    lock = threading.RLock()
    return Volume(
        "vo-1",
        "/vol",
        cast(VolumeClient, client),
        contents,
        lock,
        lambda told: None,
        lambda: [],
        lambda text: None,
        False,
    )


def test_the_first_page_of_several_is_told(tmp_path: Path) -> None:
    client = Paged(3)
    made = volume(tmp_path, client)
    begun = threading.Event()
    loading = threading.Thread(target=made.load, args=(begun.set,))
    loading.start()
    assert begun.wait(60) and made.version == 0
    client.go.set()
    loading.join()
    assert made.version == 1 and all(made.tree.find(f"{n}") for n in range(3))


def test_one_page_is_all_there_is(tmp_path: Path) -> None:
    made = volume(tmp_path, Paged(1))

    def begun() -> None:
        raise AssertionError("all names are here at once")

    made.load(begun)
    assert made.version == 1 and made.tree.find("0")


Converse = Callable[[dict[str, Any]], Any]


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[Served, socket.socket]]:
    monkeypatch.setattr(mounting, "read_far_ahead", lambda path: None)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    service = Service(str(tmp_path), str(tmp_path), "vo-1", cast(VolumeClient, None), 5.0, 60.0, False)
    yield Served(service, ours, lambda text: None), theirs
    theirs.close()


def test_nothing_is_committed_of_a_tree_that_is_still_read(ends: tuple[Served, socket.socket]) -> None:
    served, theirs = ends
    asked: list[str] = []

    def serve() -> None:
        theirs.send(json.dumps({"n": 0, "error": None}).encode())
        while data := theirs.recv(1 << 16):
            message = json.loads(data)
            asked.append(message["do"])
            first = asked == ["look"]
            error = ("_Loading", "", 0) if first else None
            if not first and message["do"] == "look":
                theirs.send(json.dumps({"loaded": True}).encode())
            theirs.send(json.dumps({"n": message["n"], "error": error}).encode())
            if message["do"] == "end":
                return

    server = threading.Thread(target=serve)
    server.start()
    served.fill()
    served.commit()
    assert asked == ["look"]
    served.commit()
    served.commit()
    assert asked == ["look", "look", "commit", "commit"]
    served.close()
    server.join()
