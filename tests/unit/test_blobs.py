"""Blobs: complete and right under their name, or not there."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modal_nomad.dispatcher.blobs import BlobError, BlobMissing, BlobStore


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def _chunks(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_put_and_get(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    sha = await blobs.put(b"data")
    assert sha == _sha(b"data") and await blobs.put(b"data", sha) == sha
    assert blobs.path(sha) == tmp_path / "blobs" / sha[:2] / sha[2:4] / sha
    assert await blobs.get(sha) == b"data" and await blobs.exists(sha)
    other = _sha(b"other")
    assert await blobs.missing([other, sha, other]) == [other]
    with pytest.raises(BlobMissing, match="upload it first"):
        await blobs.get(other)
    await blobs.delete([sha, other])
    assert not await blobs.exists(sha)


async def test_streams_are_checked_and_leave_nothing_behind(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    big = os.urandom(3 << 20)
    assert await blobs.put_stream(_chunks(big, b"tail"), _sha(big + b"tail")) == _sha(big + b"tail")
    assert await blobs.put_stream(_chunks()) == _sha(b"")
    with pytest.raises(BlobError, match="damaged on its way"):
        await blobs.put_stream(_chunks(b"a"), _sha(b"b"))
    with pytest.raises(BlobError, match="larger than the 3 bytes"):
        await blobs.put_stream(_chunks(b"abcd"), max_size=3)

    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await blobs.put_stream(broken(), _sha(b"half"))
    assert not await blobs.exists(_sha(b"half")) and list((tmp_path / "incoming").iterdir()) == []
    with pytest.raises(BlobError, match="damaged"):
        await blobs.put(b"a", _sha(b"b"))


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n"])
async def test_names_are_checked(tmp_path: Path, name: str) -> None:
    with pytest.raises(BlobError, match="no blob name"):
        await BlobStore(tmp_path).get(name)


async def test_concurrent_writers_of_one_blob(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    assert len(set(await asyncio.gather(*(blobs.put_stream(_chunks(b"x" * 99)) for _ in range(8))))) == 1
    assert list((tmp_path / "incoming").iterdir()) == []


async def test_collection_spares_what_is_used_new_or_asked_for(tmp_path: Path) -> None:
    now = 1000.0
    blobs = BlobStore(tmp_path, clock=lambda: now)
    used, old, asked = [await blobs.put(x) for x in (b"used", b"old", b"asked")]
    for sha in (used, old, asked):
        os.utime(blobs.path(sha), (now, now))
    (tmp_path / "incoming" / "leftover").touch()
    os.utime(tmp_path / "incoming" / "leftover", (now, now))
    now = 2000.0
    assert await blobs.missing([asked]) == []
    assert await blobs.collect({used}, older_than=500) == [old]
    assert await blobs.exists(used) and await blobs.exists(asked)
    assert list((tmp_path / "incoming").iterdir()) == []
