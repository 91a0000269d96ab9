"""What a type checker makes of user code; checked by mypy in ``test_types.py``, never run."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any

import modal
from modal.call_graph import InputInfo, InputStatus
from modal.types import FileEntry, FileEntryType
from typing_extensions import assert_type

from modal_nomad._bridge import AsyncOrSyncIterable

app = modal.App("types", image=modal.Image.debian_slim().pip_install("numpy").env({"A": "b"}))


@app.function(cpu=1.5, memory=(128, 256), retries=modal.Retries(max_retries=2), timeout=10)
def length(text: str, extra: int = 0) -> int:
    return len(text) + extra


@app.function()
async def later(x: int) -> str:
    return str(x)


@app.function()
@modal.concurrent(max_inputs=2)
def several(x: int) -> int:
    return x


@app.cls(enable_memory_snapshot=True)
class Model:
    size: int = modal.parameter(default=3)

    @modal.enter(snap=True)
    def load(self) -> None: ...

    @modal.method()
    def predict(self, x: int) -> str:
        return str(x)

    @modal.method()
    async def tell(self, x: int) -> str:
        return await self.tell.local(x)

    @modal.batched(max_batch_size=2, wait_ms=1)
    def many(self, xs: list[int]) -> list[int]:
        return xs


def classes() -> None:
    assert_type(Model().predict.remote(1), str)
    assert_type(Model().predict.map([1]), AsyncOrSyncIterable[str])
    assert_type(Model().predict.spawn(1).get(), str)
    assert_type(Model().size, int)
    assert_type(modal.Cls.from_name("app", "Model").with_options(cpu=2), modal.Cls)
    assert_type(length.with_options(cpu=2).remote("x"), int)
    Model().predict.remote("x")  # type: ignore[arg-type]


def awaited() -> None:
    assert_type(later.remote(1), str)
    assert_type([later.local(1), later.get_raw_f()(1)], list[Coroutine[Any, Any, str]])
    assert_type(Model().tell.remote(1), str)
    assert_type(several.remote(1), int)
    plain: modal.Function[[int], str, Coroutine[Any, Any, str]] = later
    short: modal.Function[[int], int] = several
    full: modal.Function[[int], int, int] = short
    items: Iterator[str] = plain.map([1])
    later.remote("x")  # type: ignore[arg-type]
    _ = full, items


def modules() -> None:
    assert_type(modal.functions.gather(several.spawn(1)), list[Any])
    assert_type(modal.runner.deploy_app(app).app_id, str)
    assert_type(modal.gpu.A100(count=2), modal.gpu.A100)
    assert_type(modal.exception.NotFoundError("x"), modal.exception.NotFoundError)
    assert_type(modal.config.config_profiles(), list[str])


@app.local_entrypoint()
def main(count: int = 1) -> None:
    assert_type(length.remote("x"), int)
    assert_type(length.remote("x", extra=1), int)
    assert_type(length.local("x"), int)
    assert_type(length.spawn("x"), modal.FunctionCall[int])
    assert_type(length.spawn("x").get(timeout=1), int)
    assert_type(length.spawn("x").object_id, str)
    assert_type(length.map(["x"]), AsyncOrSyncIterable[int])
    assert_type(length.starmap([("x", 1)]), AsyncOrSyncIterable[int])
    assert_type(length.for_each(["x"]), None)
    assert_type(length.spawn_map(["x"]), None)
    many = length.experimental_spawn_map(["x"])
    assert_type(many, modal.FunctionCall[int])
    assert_type(many.get(index=1), int)
    assert_type(many.iter(1, 2), AsyncOrSyncIterable[int])
    assert_type(many.num_inputs(), int)
    assert_type(many.get_call_graph(), list[InputInfo])
    assert_type(many.get_call_graph()[0].status, InputStatus)
    assert_type(length.remote_gen("x"), AsyncOrSyncIterable[Any])
    assert_type(length.remote_gen.aio("x"), AsyncIterator[Any])
    assert_type(length.object_id, str)
    assert_type(modal.Function.from_name("types", "length").remote(1, 2), Any)
    with app.run(detach=True) as running:
        assert_type(running, modal.App)
    assert_type(app.deploy(), modal.App)
    length.remote(1)  # type: ignore[arg-type]
    length.remote("x", wrong=1)  # type: ignore[call-arg]
    length.spawn()  # type: ignore[call-arg]


async def twins() -> None:
    assert_type(await length.remote.aio("x"), int)
    call = await length.spawn.aio("x")
    assert_type(call, modal.FunctionCall[int])
    assert_type(await call.get.aio(), int)
    assert_type(length.map.aio(["x"]), AsyncIterator[int])
    async with app.run() as running:
        assert_type(running, modal.App)
    await length.remote.aio(1)  # type: ignore[arg-type]


def trees(v: modal.Volume, n: modal.NetworkFileSystem) -> None:
    part = v.with_mount_options(sub_path="a", read_only=True)
    assert_type([part, v.read_only()], list[modal.Volume])
    app.function(volumes={"/v": part}, network_file_systems={"/n": n})
    v.with_mount_options(sub_path=1)  # type: ignore[arg-type]
    assert_type(v.listdir("/", recursive=True), list[FileEntry])
    for entry in v.iterdir("/"):
        assert_type(entry, FileEntry)
        assert_type([entry.type], list[FileEntryType])
    for part_of_file in v.read_file("a"):
        assert_type(part_of_file, bytes)
    assert_type(v.read_file_into_fileobj("a", io.BytesIO()), int)
    assert_type(v.info(), modal.types.VolumeInfo)
    with v.batch_upload(force=True) as batch:
        batch.put_file(io.BytesIO(), "a", mode=0o600)
        batch.put_directory("a", "b")
    assert_type(n.write_file("a", io.BytesIO()), int)
    assert_type(n.listdir("/"), list[FileEntry])
    v.listdir(1)  # type: ignore[arg-type]


async def twins_of_trees(v: modal.Volume, n: modal.NetworkFileSystem) -> None:
    assert_type(await v.hydrate.aio(), modal.Volume)
    assert_type(await v.listdir.aio("/"), list[FileEntry])
    assert_type(await v.read_file_into_fileobj.aio("a", io.BytesIO()), int)
    async for entry in v.iterdir.aio("/", recursive=False):
        assert_type(entry, FileEntry)
    async for part in v.read_file.aio("a"):
        assert_type(part, bytes)
    nothing: list[Coroutine[Any, Any, None]] = [
        v.commit.aio(),
        v.reload.aio(),
        v.remove_file.aio("a", recursive=True),
        v.copy_files.aio(["a"], "b"),
        modal.Volume.delete.aio("v"),
        modal.Volume.rename.aio("v", "w"),
        n.remove_file.aio("a"),
        n.add_local_dir.aio("a"),
        modal.NetworkFileSystem.delete.aio("n"),
    ]
    async with modal.Volume.ephemeral() as made, made.batch_upload() as batch:
        batch.put_file("a", "a")
    assert_type(await n.write_file.aio("a", io.BytesIO()), int)
    assert_type(await n.add_local_file.aio("a", "b"), int)
    assert_type(await n.listdir.aio("/"), list[FileEntry])
    async for data in n.read_file.aio("a"):
        assert_type(data, bytes)
    await v.listdir.aio(1)  # type: ignore[arg-type]
    _ = nothing


def objects() -> None:
    assert_type(modal.Dict.from_name("d").hydrate(), modal.Dict)
    assert_type(modal.Queue.from_name("q").hydrate(), modal.Queue)
    assert_type(modal.Secret.from_name("s").hydrate(), modal.Secret)
    assert_type(modal.Volume.from_name("v").hydrate(), modal.Volume)
    assert_type(modal.NetworkFileSystem.from_name("n").hydrate(), modal.NetworkFileSystem)
    with modal.Dict.ephemeral({"a": 1}) as d, modal.Queue.ephemeral() as q:
        assert_type(d, modal.Dict)
        assert_type(q, modal.Queue)
    with modal.Volume.ephemeral() as v, modal.NetworkFileSystem.ephemeral() as n:
        assert_type(v, modal.Volume)
        assert_type(b"".join(n.read_file("a")), bytes)
