"""What a type checker makes of the named objects, asked blocking and by ``.aio``; never run."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator
from typing import Any

import modal
from modal.types import DictInfo, FileEntry, QueueInfo, SecretInfo, VolumeInfo
from typing_extensions import assert_type


def by_name() -> None:
    assert_type(modal.Dict.from_name("d", {"a": 1}, environment_name="e", create_if_missing=True), modal.Dict)
    assert_type(modal.Dict.lookup("d"), modal.Dict)
    assert_type(modal.Queue.lookup("q"), modal.Queue)
    assert_type(modal.Volume.lookup("v"), modal.Volume)
    assert_type(modal.NetworkFileSystem.lookup("n"), modal.NetworkFileSystem)
    assert_type(modal.Dict.objects.list(max_objects=1), list[modal.Dict])
    assert_type(modal.Queue.objects.list(), list[modal.Queue])
    assert_type(modal.Volume.objects.list(created_before="2026-01-01"), list[modal.Volume])
    assert_type(modal.Secret.objects.list(), list[modal.Secret])
    assert_type(modal.Environment.objects.list(), list[modal.Environment])
    assert_type(modal.Dict.from_name("d").info(), DictInfo)
    assert_type(modal.Queue.from_name("q").info(), QueueInfo)
    assert_type(modal.Volume.from_name("v").info(), VolumeInfo)
    assert_type(modal.Secret.from_name("s", required_keys=["A"]).info(), SecretInfo)
    modal.Dict.delete("d", environment_name="e")
    modal.Queue.delete("q")
    modal.Volume.delete("v")
    modal.NetworkFileSystem.delete("n")
    modal.Volume.rename("v", "w")
    modal.Secret.objects.create("s", {"A": "1", "B": None}, allow_existing=True)
    modal.Dict.objects.delete("d", allow_missing=True)
    modal.Dict.lookup(1)  # type: ignore[arg-type]
    modal.Volume.rename("v")  # type: ignore[call-arg]
    modal.Secret.from_dict({"A": 1})  # type: ignore[dict-item]


async def by_name_awaited() -> None:
    assert_type(await modal.Dict.lookup.aio("d"), modal.Dict)
    assert_type(await modal.Queue.lookup.aio("q"), modal.Queue)
    assert_type(await modal.Volume.lookup.aio("v"), modal.Volume)
    assert_type(await modal.NetworkFileSystem.lookup.aio("n"), modal.NetworkFileSystem)
    assert_type(await modal.Dict.objects.list.aio(), list[modal.Dict])
    assert_type(await modal.Queue.objects.list.aio(), list[modal.Queue])
    assert_type(await modal.Volume.objects.list.aio(), list[modal.Volume])
    assert_type(await modal.Secret.objects.list.aio(), list[modal.Secret])
    assert_type(await modal.Environment.objects.list.aio(), list[modal.Environment])
    assert_type(await modal.Dict.from_name("d").info.aio(), DictInfo)
    assert_type(await modal.Secret.from_name("s").info.aio(), SecretInfo)
    assert_type(await modal.Volume.from_name("v").hydrate.aio(), modal.Volume)
    await modal.Dict.delete.aio("d")
    await modal.Queue.delete.aio("q")
    await modal.Volume.delete.aio("v")
    await modal.NetworkFileSystem.delete.aio("n")
    await modal.Volume.rename.aio("v", "w")
    await modal.Secret.objects.create.aio("s", {"A": "1"})
    await modal.Secret.from_name("s").update.aio({"A": "2"})
    await modal.Environment.objects.create.aio("e")
    await modal.Volume.rename.aio("v")  # type: ignore[call-arg]
    async with modal.Dict.ephemeral() as d, modal.Queue.ephemeral() as q:
        assert_type(d, modal.Dict)
        assert_type(q, modal.Queue)
    async with modal.Volume.ephemeral() as v, modal.NetworkFileSystem.ephemeral() as n:
        assert_type(v, modal.Volume)
        assert_type(n, modal.NetworkFileSystem)


def contents(d: modal.Dict, q: modal.Queue, v: modal.Volume, n: modal.NetworkFileSystem) -> None:
    assert_type(d.put("a", 1, skip_if_exists=True), bool)
    assert_type(d.contains("a"), bool)
    assert_type("a" in d, bool)
    assert_type(d.len(), int)
    assert_type(d.get("a"), Any)
    assert_type(q.len(total=True), int)
    assert_type(v.listdir("/"), list[FileEntry])
    assert_type(n.listdir("/"), list[FileEntry])
    assert_type(n.write_file("/a", io.BytesIO(b"1")), int)
    for key in d.keys():  # noqa: SIM118
        assert_type(key, Any)
    for key, value in d.items():
        assert_type((key, value), tuple[Any, Any])
    assert_type(iter(v.read_file("a")), Iterator[bytes])
    with v.batch_upload(force=True) as batch:
        batch.put_file("a", "/a")
    q.put("x", partition=1)  # type: ignore[arg-type]


async def contents_awaited(
    d: modal.Dict, q: modal.Queue, v: modal.Volume, n: modal.NetworkFileSystem
) -> None:
    assert_type(await d.put.aio("a", 1), bool)
    assert_type(await d.len.aio(), int)
    assert_type(await q.len.aio(), int)
    assert_type(await v.listdir.aio("/"), list[FileEntry])
    assert_type(aiter(v.read_file.aio("a")), AsyncIterator[bytes])
    async for entry in n.iterdir.aio("/"):
        assert_type(entry, FileEntry)
    async for key, value in d.items.aio():
        assert_type((key, value), tuple[Any, Any])
    await v.commit.aio()
    await n.remove_file.aio("a", recursive=True)
