"""The chunks that a node keeps, shared by its containers, and those that readers wait for."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from pathlib import Path

import pytest

from modal_nomad.worker._volume_cache import ChunkCache, of_container
from modal_nomad.worker.fuse.chunks import Chunk, Chunks, InMemory

CHUNKS = {hashlib.sha256(x).hexdigest(): x for x in (b"%05d" % n * 200 for n in range(64))}
LIMIT = 16_000


def held(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def test_those_unused_for_longest_go_first(tmp_path: Path) -> None:
    cache = ChunkCache(str(tmp_path), LIMIT, CHUNKS.__getitem__)
    names = list(CHUNKS)
    for number, name in enumerate(names[:10]):
        cache.get(name)
        os.utime(tmp_path / name[:2] / name, ns=(number * 10**9, number * 10**9))
    # Looked at again, the oldest one is the newest; what a killed container left half written is the oldest.
    cache.get(names[0])
    left = tmp_path / "tmp-of-a-killed-one"
    left.write_bytes(b"x" * 1000)
    os.utime(left, ns=(0, 0))
    for name in names[10:20]:
        cache.get(name)
    found = held(tmp_path)
    assert sum(found.values()) <= LIMIT + LIMIT // 16
    assert names[0] in found and left.name not in found and names[1] not in found


def test_containers_that_fill_it_together_keep_to_its_limit(tmp_path: Path) -> None:
    asked: list[str] = []

    def fetch(sha: str) -> bytes:
        asked.append(sha)
        return CHUNKS[sha]

    def container(number: int) -> None:
        cache = ChunkCache(str(tmp_path), LIMIT, fetch)
        names = list(CHUNKS)[number * 8 :] + list(CHUNKS)[: number * 8]
        for name in names * 3:
            found = cache.open(name)
            assert isinstance(found, int)
            # Removed by another one since, it can be read all the same.
            assert os.pread(found, 2000, 0) == CHUNKS[name]
            os.close(found)

    threads = [threading.Thread(target=container, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ChunkCache(str(tmp_path), LIMIT, fetch).trim()
    assert 0 < sum(held(tmp_path).values()) <= LIMIT


def test_a_full_disk_is_done_without(tmp_path: Path) -> None:
    folder = tmp_path / "chunks"
    cache = ChunkCache(str(folder), LIMIT, CHUNKS.__getitem__)
    # Where its directory should be there is a file.
    folder.write_bytes(b"")
    name = next(iter(CHUNKS))
    assert cache.get(name) == cache.open(name) == CHUNKS[name]


def wait(chunks: Chunks, *names: str) -> dict[bytes, Chunk] | int:
    done = threading.Event()
    found: list[dict[bytes, Chunk] | int] = []

    def take(value: dict[bytes, Chunk] | int) -> None:
        found.append(value)
        done.set()

    chunks.when_here([bytes.fromhex(x) for x in names], take, take)
    assert done.wait(60)
    return found[0]


def test_a_chunk_that_several_wait_for_is_fetched_once() -> None:
    asked: list[str] = []
    gate = threading.Event()

    def fetch(sha: str) -> Chunk:
        asked.append(sha)
        gate.wait(60)
        return InMemory(CHUNKS[sha])

    chunks = Chunks(fetch, 60.0, print, "/data")
    names = list(CHUNKS)[:3]
    raw = [bytes.fromhex(x) for x in names]
    here = threading.Semaphore(0)
    for _ in range(5):
        chunks.when_here(raw, lambda found: here.release(), lambda number: None)
    chunks.fetch_ahead(raw)
    gate.set()
    for _ in range(5):
        assert here.acquire(timeout=60)
    assert sorted(asked) == sorted(names)
    assert all(chunks.get(x) is not None for x in raw)
    chunks.fetch_ahead(raw)
    wait(chunks, *names)
    assert len(asked) == 3


def test_a_chunk_that_was_collected_is_an_error_and_a_line(tmp_path: Path) -> None:
    said: list[str] = []

    def fetch(sha: str) -> Chunk:
        raise KeyError(sha)

    chunks = Chunks(fetch, 60.0, said.append, "/data")
    assert wait(chunks, next(iter(CHUNKS))) == 5
    assert wait(chunks, next(iter(CHUNKS))) == 5
    assert len(said) == 1 and "reload" in said[0]


def test_an_absent_dispatcher_is_asked_again() -> None:
    attempts: list[str] = []

    def fetch(sha: str) -> Chunk:
        attempts.append(sha)
        if len(attempts) < 2:
            raise ConnectionError("nobody answers")
        return InMemory(CHUNKS[sha])

    found = wait(Chunks(fetch, 60.0, print, "/data"), next(iter(CHUNKS)))
    assert isinstance(found, dict) and len(attempts) == 2


def test_a_containers_own_cache_gives_way(tmp_path: Path) -> None:
    cache = of_container(str(tmp_path), {}, CHUNKS.__getitem__)
    for name in CHUNKS:
        cache.get(name)
    assert len(held(tmp_path)) == len(CHUNKS)
    assert cache.clear() and not held(tmp_path) and not cache.clear()
    name = next(iter(CHUNKS))
    assert cache.get(name) == CHUNKS[name]
    assert list(held(tmp_path)) == [name]


def test_a_disk_smaller_than_the_limit_keeps_what_was_used_lately(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 4 * max(map(len, CHUNKS.values()))
    replace = os.replace

    def fills(source: str, target: str) -> None:
        if sum(held(tmp_path).values()) > room:
            raise OSError(errno.ENOSPC, "no space left")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fills)
    cache = ChunkCache(str(tmp_path), 1 << 40, CHUNKS.__getitem__)
    for name in CHUNKS:
        found = cache.open(name)
        assert isinstance(found, int)
        os.close(found)
    assert name in held(tmp_path) and sum(held(tmp_path).values()) <= room + len(CHUNKS[name])


def test_a_directory_that_somebody_removed_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "chunks"
    folder.mkdir(mode=0o700)
    cache = ChunkCache(str(folder), LIMIT, CHUNKS.__getitem__)
    first, second = list(CHUNKS)[:2]
    cache.get(first)
    shutil.rmtree(folder)
    assert cache.get(second) == CHUNKS[second]
    assert list(held(tmp_path)) and folder.stat().st_mode & 0o777 == 0o700
