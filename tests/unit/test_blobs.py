"""Blobs in a directory: what is their own. The contract is in tests/stack/test_blob_stores.py."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modal_nomad.dispatcher.blobs import DirectoryBlobs


async def _chunks(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_where_they_stand(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path / "blobs")
    sha = await blobs.put(b"data")
    assert blobs.path(sha) == tmp_path / "blobs" / sha[:2] / sha[2:4] / sha
    assert blobs.path(sha).read_bytes() == b"data"


async def test_nothing_is_left_of_what_broke_off(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionResetError

    blobs = DirectoryBlobs(tmp_path)
    with pytest.raises(ConnectionResetError):
        await blobs.put_stream(broken(), hashlib.sha256(b"half").hexdigest())
    assert len(set(await asyncio.gather(*(blobs.put_stream(_chunks(b"x" * 99)) for _ in range(8))))) == 1
    assert list((tmp_path / "incoming").iterdir()) == []


async def test_leftovers_of_a_killed_process_are_collected(tmp_path: Path) -> None:
    now = 1000.0
    blobs = DirectoryBlobs(tmp_path, clock=lambda: now)
    await blobs.put(b"new")
    (tmp_path / "incoming" / "leftover").touch()
    os.utime(tmp_path / "incoming" / "leftover", (now, now))
    assert await blobs.collect((), older_than=500) == []
    assert list((tmp_path / "incoming").iterdir()) != []
    now = 2000.0
    await blobs.collect((), older_than=500)
    assert list((tmp_path / "incoming").iterdir()) == []
