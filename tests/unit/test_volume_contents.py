"""The contents of a Volume's files as FUSE serves them, against a plain ``bytearray``."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modal_nomad.wire.volumes.entries import FILE
from modal_nomad.worker.fuse import contents as module
from modal_nomad.worker.fuse.chunks import InMemory, OpenFiles
from modal_nomad.worker.fuse.contents import HOLE_SHA, Contents, Missing, Written
from modal_nomad.worker.fuse.nodes import Tree

CHUNK = 16
"""Small, so that few bytes make many chunks."""
SMALL = 8


class Fetched:
    """Chunks that have to be fetched each time."""

    def __init__(self) -> None:
        self.open = OpenFiles()
        self.stored: dict[bytes, bytes] = {}
        self.asked = 0

    def make_room(self) -> bool:
        return False

    def get(self, sha: bytes) -> None:
        return None

    def put(self, data: bytes) -> bytes:
        if not any(data):
            return HOLE_SHA
        sha = hashlib.sha256(data).digest()
        self.stored[sha] = data
        return sha


class File:
    """A file of a Volume beside what it should be."""

    def __init__(self, folder: str, data: bytes) -> None:
        self.chunks = Fetched()
        self.contents = Contents(folder, self.chunks)  # type: ignore[arg-type]
        parts = [data[x : x + CHUNK] for x in range(0, len(data), CHUNK)]
        content = b"".join(map(self.chunks.put, parts)) or None
        self.node = Tree().new(FILE, 0o644, len(data), 0, content)
        self.model = bytearray(data)

    def do(self, work: Any, *args: Any) -> Any:
        try:
            return work(*args)
        except Missing as missing:
            self.chunks.asked += len(missing.hashes)
            return work(*args, {x: InMemory(self.chunks.stored[x]) for x in missing.hashes})

    def write(self, offset: int, data: bytes) -> None:
        self.do(self.contents.write, self.node, offset, memoryview(data))
        if data:
            self.model.extend(bytes(max(0, offset - len(self.model))))
            self.model[offset : offset + len(data)] = data

    def resize(self, size: int) -> None:
        self.do(self.contents.resize, self.node, size)
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    def read(self, offset: int, size: int) -> bytes:
        view = memoryview(bytearray(size))
        parts = self.do(self.contents.parts, self.node, offset, size)
        return bytes(view[: self.contents.read_parts(parts, view)])

    def commit(self) -> None:
        """Take the file's hashes as a commit does, and check them."""
        if isinstance(self.node.content, Written):
            snapshot = self.contents.snapshot(self.node)
            data = [bytes(self.model[x : x + CHUNK]) for x in range(0, len(self.model), CHUNK)]
            hashes = [sha or self.chunks.put(data[number]) for number, sha in enumerate(snapshot.hashes)]
            assert hashes == [self.chunks.put(x) for x in data], "a chunk was taken for unchanged"
            self.contents.committed(self.node, snapshot, hashes)


@pytest.fixture(autouse=True)
def small_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", CHUNK)
        patch.setattr(module, "INLINE_BYTES", SMALL)
        patch.setattr(module, "_MOST_LOST", 2 * SMALL)
        yield


SIZES = st.integers(0, 5 * CHUNK)
DATA = st.binary(max_size=3 * CHUNK) | st.integers(0, 3 * CHUNK).map(bytes)
STEPS = st.lists(
    st.tuples(st.just("write"), SIZES, DATA)
    | st.tuples(st.just("resize"), SIZES)
    | st.tuples(st.just("commit")),
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(DATA, STEPS)
def test_a_file_is_what_was_written(data: bytes, steps: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = File(folder, data)
        for name, *args in steps:
            getattr(file, name)(*args)
            assert file.node.size == len(file.model)
            for offset, size in ((0, 200), (CHUNK - 1, 2), (CHUNK, CHUNK), (3 * CHUNK - 5, 100)):
                assert file.read(offset, size) == file.model[offset : offset + size]
        file.commit()


def test_only_a_chunk_that_is_changed_in_part_is_fetched(tmp_path: Any) -> None:
    file = File(str(tmp_path), bytes(range(1, 161)))
    file.write(CHUNK, bytes(range(CHUNK)))
    assert file.chunks.asked == 0
    file.write(3 * CHUNK + 1, b"x")
    file.write(3 * CHUNK + 5, b"y")
    assert file.chunks.asked == 1
    file.write(160, b"appended")
    assert file.chunks.asked == 1
    file.resize(161)
    assert file.chunks.asked == 1
    file.resize(150)
    assert file.chunks.asked == 2
    assert file.read(0, 200) == file.model


def test_where_data_and_holes_begin(tmp_path: Any) -> None:
    file = File(str(tmp_path), bytes(2 * CHUNK) + b"data" + bytes(3 * CHUNK))
    seek = file.contents.seek
    assert seek(file.node, 5, True) == 2 * CHUNK
    assert seek(file.node, 5, False) == 5
    assert seek(file.node, 2 * CHUNK + 1, True) == 2 * CHUNK + 1
    assert seek(file.node, 2 * CHUNK + 1, False) == 3 * CHUNK
    with pytest.raises(OSError, match="No such device"):
        seek(file.node, 4 * CHUNK, True)
    assert file.contents.blocks(file.node) == 1


def test_what_is_written_comes_before_what_can_be_fetched_again(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = File(str(tmp_path), bytes(range(1, 100)))
    full = [True]
    write = os.pwrite

    def pwrite(*args: Any) -> int:
        if full[0]:
            raise OSError(errno.ENOSPC, "full")
        return write(*args)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OSError, match="full"):
        file.write(0, b"x" * CHUNK)
    assert file.read(0, 200) == file.model

    def make_room() -> bool:
        full[0] = False
        return True

    monkeypatch.setattr(file.chunks, "make_room", make_room)
    file.write(0, b"x" * CHUNK)
    assert file.read(0, 200) == file.model
