"""The files that images copy: looked for once in a while, and kept with the manifests that name them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from modal_nomad.dispatcher.blobs import DirectoryBlobs
from modal_nomad.dispatcher.copied_files import CopiedFiles

AGE = 1000.0


class Counted(DirectoryBlobs):
    asked = 0

    async def missing(self, hashes: Iterable[str]) -> list[str]:
        names = list(hashes)
        self.asked += len(names)
        return await super().missing(names)


class World:
    def __init__(self, folder: Path) -> None:
        self.now = 1e9
        self.blobs = Counted(folder, clock=lambda: self.now)
        self.copied = CopiedFiles(self.blobs, AGE, clock=lambda: self.now)

    async def manifest(self, *contents: bytes) -> str:
        names = [await self.blobs.put(x) for x in contents]
        return await self.blobs.put(json.dumps([[f"/{x[:4]}", x, 0o644] for x in names]).encode())


async def test_what_was_looked_for_is_not_looked_for_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    sha = await world.manifest(b"one", b"two")
    assert await world.copied.are_here([sha]) and world.blobs.asked == 3
    assert await world.copied.are_here([sha, sha]) and world.blobs.asked == 4
    # Before any of them is old enough to be collected, all are young again.
    world.now += AGE / 2
    assert await world.copied.are_here([sha]) and world.blobs.asked == 7
    world.now += AGE - 1
    assert await world.blobs.collect([], older_than=AGE) == []


async def test_a_file_that_is_not_here(tmp_path: Path) -> None:
    world = World(tmp_path)
    sha = await world.manifest(b"one", b"two")
    gone = hashlib.sha256(b"two").hexdigest()
    await world.blobs.delete([gone])
    assert not await world.copied.are_here([sha])
    await world.blobs.put(b"two")
    assert await world.copied.are_here([sha])
    await world.blobs.delete([sha])
    assert not await world.copied.are_here([sha])


async def test_what_is_no_manifest_names_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    sha = await world.manifest(b"one")
    other = await world.blobs.put(b"no list")
    assert not await world.copied.are_here([other])
    assert await world.copied.names([sha, other, "0" * 64]) == {hashlib.sha256(b"one").hexdigest()}
