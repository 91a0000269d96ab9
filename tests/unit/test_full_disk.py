"""A disk without space for more is said as such, where and at once."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modal_nomad._bridge import run_blocking
from modal_nomad._volume_requests import in_thread
from modal_nomad.dispatcher.blobs import BlobStoreError, BlobStoreFull, DirectoryBlobs
from modal_nomad.dispatcher.store import SqliteStore
from modal_nomad.dispatcher.store.base import StoreFull
from modal_nomad.wire.asking import again, checked
from modal_nomad.wire.transport import FULL


def files(folder: Path) -> list[Path]:
    return [x for x in folder.rglob("*") if x.is_file()]


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, BlobStoreFull), (errno.EIO, BlobStoreError)])
async def test_blobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[BlobStoreError]
) -> None:
    blobs = DirectoryBlobs(tmp_path)

    async def body() -> AsyncIterator[bytes]:
        yield b"abc"

    def fails(descriptor: int) -> None:
        raise OSError(number, "it failed")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        for attempt in (blobs.put(b"abc"), blobs.put_stream(body())):
            with pytest.raises(BlobStoreError, match=str(tmp_path)) as caught:
                await attempt
            assert type(caught.value) is kind
    assert not files(tmp_path)
    assert await blobs.get(await blobs.put_stream(body())) == b"abc"


def test_rows(tmp_path: Path) -> None:
    described = SqliteStore(str(tmp_path / "s.db"))._describe(
        sqlite3.OperationalError("database or disk is full")
    )
    assert isinstance(described, StoreFull)


def test_it_is_not_asked_again() -> None:
    attempts = 0

    def ask() -> bytes:
        nonlocal attempts
        attempts += 1
        return again(lambda: checked(FULL, b"no space left for blobs in /x: free some disk space there"))

    with pytest.raises(OSError, match="no space left for blobs in /x") as caught:
        run_blocking(in_thread(ask))
    assert caught.value.errno == errno.ENOSPC and attempts == 1
