"""A Volume's directory in a container, and the node's cache of chunks, without any dispatcher."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modal_nomad.exception import ExecutionError
from modal_nomad.wire.asking import Refused
from modal_nomad.wire.mounts import VolumeMount
from modal_nomad.wire.volumes.chunks import ChunkUploader, is_hole, take_file
from modal_nomad.wire.volumes.client import Changes
from modal_nomad.wire.volumes.entries import CHUNK_BYTES, HOLE, MAX_PATH, REMOVED, Entry
from modal_nomad.worker._session import Settings
from modal_nomad.worker._volume_cache import ChunkCache, from_environment
from modal_nomad.worker._volume_tree import VolumeTree
from modal_nomad.worker._volumes import Volumes


class Server:
    """Keeps the tree of one Volume as a dispatcher would: the last writer of each path wins."""

    longest = MAX_PATH

    def __init__(self) -> None:
        self.chunks: dict[str, bytes] = {}
        self.rows: dict[str, tuple[int, Entry]] = {}
        self.version = 0
        self.fails = False

    def missing(self, hashes: list[str]) -> list[str]:
        return [x for x in hashes if x not in self.chunks]

    def put_chunk(self, data: bytes) -> None:
        self.chunks[hashlib.sha256(data).hexdigest()] = data

    def fetch(self, sha: str) -> bytes:
        return self.chunks[sha]

    def commit(self, volume_id: str, entries: Iterable[Entry]) -> tuple[int, int]:
        if self.fails:
            raise ConnectionError("nobody answers")
        self.version += 1
        for entry in entries:
            assert all(x == HOLE or x in self.chunks for x in entry.chunks), "a chunk was not sent before"
            self.rows[entry.path] = (self.version, entry)
        return self.version - 1, self.version

    def all_changes(self, volume_id: str, since: int) -> Iterator[Changes]:
        rows = sorted((v, p, e) for p, (v, e) in self.rows.items() if v > since)
        for number, (version, path, entry) in enumerate(rows):
            after = (version, path) if number + 1 < len(rows) else None
            yield Changes([entry], self.version, after, False)
        if not rows:
            yield Changes([], self.version, None, False)

    def tree(self, folder: Path, **more: Any) -> VolumeTree:
        return VolumeTree(str(folder), str(folder / "tree"), "vo-1", self, self.fetch, **more)  # type: ignore[arg-type]


def test_only_what_changed_is_committed(tmp_path: Path) -> None:
    server = Server()
    one = server.tree(tmp_path / "one")
    top = tmp_path / "one" / "tree"
    (top / "d").mkdir()
    (top / "d" / "large").write_bytes(os.urandom(CHUNK_BYTES + 1))
    (top / "small").write_bytes(b"1")
    one.commit()
    assert set(server.rows) == {"d", "d/large", "small"} and len(server.chunks) == 2
    one.commit()
    assert server.version == 1
    (top / "small").write_bytes(b"2")
    (top / "d" / "large").unlink()
    one.commit()
    assert server.version == 2 and server.rows["d"][0] == 1
    assert server.rows["d/large"][1].kind == REMOVED and server.rows["small"][1].data == b"2"


def test_a_failed_commit_is_made_up_for(tmp_path: Path) -> None:
    server = Server()
    one = server.tree(tmp_path)
    (tmp_path / "tree" / "a").write_bytes(b"1")
    server.fails = True
    with pytest.raises(ConnectionError):
        one.commit()
    server.fails = False
    one.commit()
    assert server.rows["a"][1].data == b"1"


def test_a_file_that_is_being_written_waits_for_the_next_background_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    one = server.tree(tmp_path)
    path = tmp_path / "tree" / "a"
    path.write_bytes(b"1")
    from modal_nomad.worker import _volume_tree

    def meanwhile(*args: Any) -> Any:
        found = take_file(*args)
        with path.open("ab") as file:
            file.write(b"more")
        return found

    monkeypatch.setattr(_volume_tree, "take_file", meanwhile)
    one.commit_settled()
    assert not server.rows
    monkeypatch.undo()
    one.commit_settled()
    assert server.rows["a"][1].data == b"1more"


def test_a_sparse_file_stays_sparse(tmp_path: Path) -> None:
    server = Server()
    one = server.tree(tmp_path / "one")
    path = tmp_path / "one" / "tree" / "sparse"
    with path.open("wb") as file:
        file.truncate(10 << 30)
        file.seek(6 << 30)
        file.write(b"here")
    one.commit()
    assert len(server.chunks) == 1
    server.tree(tmp_path / "two").fill()
    copy = tmp_path / "two" / "tree" / "sparse"
    assert copy.stat().st_size == 10 << 30 and copy.stat().st_blocks * 512 < 64 << 20
    with copy.open("rb") as file:
        file.seek((6 << 30) - 1)
        assert file.read(6) == b"\0here\0"


def test_a_read_only_tree_commits_nothing(tmp_path: Path) -> None:
    server = Server()
    one = server.tree(tmp_path, read_only=True)
    (tmp_path / "tree" / "a").write_bytes(b"1")
    with pytest.raises(Refused, match="reading only"):
        one.commit()
    one.reload()
    assert not server.rows


def test_a_chunk_is_sent_once(tmp_path: Path) -> None:
    sent: list[bytes] = []
    uploader = ChunkUploader(lambda hashes: hashes, sent.append)
    path = tmp_path / "file"
    path.write_bytes(b"x" * CHUNK_BYTES * 3 + b"\0" * CHUNK_BYTES + b"tail")
    with path.open("rb") as file:
        size, chunks, data = take_file(file.fileno(), path.stat().st_size, uploader)
        # Cut off since it was looked at: its end is where it ends.
        assert take_file(file.fileno(), size + 100, uploader) == (size, chunks, data)
    uploader.flush()
    uploader.close()
    assert (size, data, len(sent)) == (4 * CHUNK_BYTES + 4, b"", 2)
    assert chunks[0] == chunks[1] == chunks[2] and chunks[3] == HOLE


def test_the_cache_keeps_to_its_limit_and_trusts_no_damaged_chunk(tmp_path: Path) -> None:
    chunks = {hashlib.sha256(x).hexdigest(): x for x in (bytes([n]) * 1000 for n in range(20))}
    asked: list[str] = []

    def fetch(sha: str) -> bytes:
        asked.append(sha)
        return chunks[sha]

    cache = ChunkCache(str(tmp_path), 5000, fetch)
    names = list(chunks)
    assert [cache.get(x) for x in names] == list(chunks.values())
    held = {p.name: p for p in tmp_path.rglob("*") if p.is_file()}
    assert 0 < sum(p.stat().st_size for p in held.values()) <= 6000
    asked.clear()
    for name, path in held.items():
        path.write_bytes(b"damaged")
        assert cache.get(name) == chunks[name] == cache.get(name)
    assert sorted(asked) == sorted(held)


def test_a_cache_that_others_may_fill_is_not_used(tmp_path: Path) -> None:
    def fetch(sha: str) -> bytes:
        return b""

    folder = tmp_path / "chunks"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    environ = {"MODAL_VOLUME_CACHE_DIR": str(folder), "MODAL_SERVER_URL": "http://x"}
    assert from_environment(environ, fetch) is None
    folder.chmod(0o700)
    assert from_environment(environ, fetch) is not None
    assert from_environment({**environ, "MODAL_VOLUME_CACHE_MIB": "0"}, fetch) is None
    assert from_environment({**environ, "MODAL_SERVER_URL": "unix:///d.sock"}, fetch) is None


def test_links_where_nothing_can_be_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOMAD_ALLOC_DIR", str(tmp_path / "alloc"))
    monkeypatch.setenv("MODAL_VOLUME_FUSE", "0")
    settings = Settings({"MODAL_SERVER_URL": "unix:///none.sock", "MODAL_TASK_ID": "ta-1"})
    shown = tmp_path / "some" / "where"
    made = Volumes([VolumeMount(str(shown), "vo-1", True)], settings)
    made.link(ExecutionError("not allowed"))
    (shown / "a").touch()
    assert os.path.exists(os.path.join(made.binds()[0].source, "a"))
    made.close()
    assert not os.path.lexists(shown)
    (tmp_path / "file").touch()
    blocked = Volumes([VolumeMount(str(tmp_path / "file"), "vo-1", True)], settings)
    with pytest.raises(ExecutionError, match="choose a path"):
        blocked.link(ExecutionError("not allowed"))


def test_what_no_commit_takes_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server()
    tree = server.tree(tmp_path)
    folder = os.open(tree.source, os.O_RDONLY)
    for _ in range(21):
        os.mkdir("d" * 199, dir_fd=folder)
        below = os.open("d" * 199, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    Path(tree.source, "old").write_text("x")
    os.utime(Path(tree.source, "old"), (1 << 40, 1 << 40))
    tree.commit()
    # How many depends on where the directory is.
    assert 15 < len(server.rows) < 22 and server.rows["old"][1].mtime < 1 << 63
    assert "has too long a path" in capsys.readouterr().err


def test_what_is_all_zeros_is_a_hole() -> None:
    for size in (1, 65535, 65536, 65537, CHUNK_BYTES):
        assert is_hole(bytes(size))
        for at in {0, size // 2, size - 1}:
            block = bytearray(size)
            block[at] = 1
            assert not is_hole(bytes(block)), (size, at)
    assert not is_hole(b"")
