"""Garbage: what nothing refers to goes, what anything refers to stays, whatever happened before."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, cast

import hypothesis.strategies as st
from hypothesis import given, settings

from modal_nomad.dispatcher import _events as ev
from modal_nomad.dispatcher.apps import AppRegistry
from modal_nomad.dispatcher.blob_rights import BlobRights
from modal_nomad.dispatcher.blobs import DirectoryBlobs
from modal_nomad.dispatcher.call_engine import CallEngine
from modal_nomad.dispatcher.copied_files import CopiedFiles
from modal_nomad.dispatcher.garbage import Garbage, blob_names
from modal_nomad.dispatcher.loghub import LogHub
from modal_nomad.dispatcher.settings import Settings
from modal_nomad.dispatcher.store import SqliteStore, StoredInput, StoredOutput
from modal_nomad.engines.local import LocalEngine
from modal_nomad.wire.frames import FLAG_BLOB

AGE = 1000.0


class World:
    """A dispatcher's stores, a clock, and what a test knows to be in use."""

    def __init__(self, home: Path) -> None:
        self.now = 1e9
        self.store = SqliteStore(home / "store.db", clock=lambda: self.now)
        self.blobs = DirectoryBlobs(home / "blobs", clock=lambda: self.now)
        self.apps = AppRegistry(self.store, clock=lambda: self.now)
        self.calls = CallEngine()
        self.hub = LogHub()
        self.functions: dict[str, Any] = {}
        self.containers: list[Any] = []
        self.runtime = hashlib.sha256(b"runtime").hexdigest()
        self.engine = LocalEngine(home, self.blobs)
        self.garbage = Garbage(
            self.store,
            self.blobs,
            BlobRights(self.store, self.blobs, lambda _: None, clock=lambda: self.now),
            CopiedFiles(self.blobs, AGE, clock=lambda: self.now),
            self.engine,
            self.calls,
            self.functions,
            cast(Any, self.containers_view()),
            self.hub,
            Settings(garbage_age=AGE),
            frozenset((self.runtime,)),
            clock=lambda: self.now,
        )

    def containers_view(self) -> Any:
        return SimpleNamespace(values=lambda: self.containers)

    async def put(self, data: bytes) -> str:
        sha = await self.blobs.put(data)
        os.utime(self.blobs.path(sha), (self.now, self.now))
        return sha

    async def publish(self, name: str, *shas: str) -> str:
        spec = {"name": "f", "code_bundle": shas[0], "image": {"files": [{"blob": x} for x in shas[1:]]}}
        job = {"ID": name, "Artifacts": [f"http://d/artifacts/{shas[0]}.zip"]}
        args = {"state": "deployed", "name": name, "functions": [{"spec": spec, "job": job}]}
        await self.garbage.spare(args["functions"])
        return (await self.apps.publish(args)).app.app_id

    async def there(self) -> set[str]:
        return {path.name for path in self.blobs._files()}


@asynccontextmanager
async def _world(home: Path) -> AsyncIterator[World]:
    world = World(home)
    await world.store.open()
    try:
        yield world
    finally:
        await world.store.close()


async def test_what_is_named_anywhere_stays_and_the_rest_goes(tmp_path: Path) -> None:
    async with _world(tmp_path) as world:
        runtime, code, file, before, value, output, held, draining, nobody = [
            await world.put(x)
            for x in (b"runtime", b"code", b"file", b"old", b"in", b"out", b"held", b"draining", b"nobody")
        ]
        await world.publish("shop", before)
        await world.publish("shop", code, file)
        await world.store.add_inputs("fc-1", "fu", [StoredInput(0, value.encode(), FLAG_BLOB)])
        await world.store.add_inputs("fc-1", "fu", [StoredInput(1, nobody.encode(), 0)])
        await world.store.add_outputs("fc-2", [])
        await world.store.add_inputs("fc-2", "fu", [StoredInput(0, b"", 0)])
        await world.store.add_outputs("fc-2", [StoredOutput(0, 0, output.encode(), FLAG_BLOB)])
        world.calls.handle(ev.FunctionAdded("fu", ev.FunctionPolicy("v1")), 0.0)
        inputs = [(0, held.encode(), FLAG_BLOB), (1, b"small", 0)]
        world.calls.handle(ev.InputsSubmitted("fc-3", "fu", False, "cl", inputs), 0.0)
        world.containers.append(
            SimpleNamespace(function=SimpleNamespace(spec_dict={"code_bundle": draining}))
        )
        assert await world.garbage.collect() == []
        world.now += AGE + 1
        assert await world.garbage.collect() == sorted([before, nobody])
        assert await world.there() == {runtime, code, file, value, output, held, draining}

        # Each goes when its last user has gone.
        world.containers.clear()
        world.calls.handle(ev.CallClosed("fc-3"), 1.0)
        await world.store.delete_call("fc-1")
        await world.store.delete_call("fc-2")
        (app,) = await world.store.apps()
        await world.apps.stop(app.app_id)
        await world.garbage.collect()
        assert await world.there() == {runtime}


async def test_files_that_an_image_copies_stay_with_it(tmp_path: Path) -> None:
    """They are named by a manifest, which the specification names; the image may have to be built anew."""
    async with _world(tmp_path) as world:
        stored, live, nobody = [await world.put(x) for x in (b"stored", b"live", b"nobody's")]
        lists = [await world.put(b'[["/x","%s",420]]' % x.encode()) for x in (stored, live, nobody)]

        def spec(manifest: str) -> dict[str, Any]:
            layer = {"kind": "copy", "args": ["/x"], "options": {"manifest": manifest}}
            return {"name": "f", "image": {"layers": [{"kind": "run", "args": ["true"]}, layer]}}

        functions = [{"spec": spec(lists[0]), "job": {"ID": "x"}}]
        await world.apps.publish({"state": "deployed", "name": "shop", "functions": functions})
        world.functions["fu"] = SimpleNamespace(spec_dict=spec(lists[1]))
        world.now += AGE + 1
        assert await world.garbage.collect() == sorted([nobody, lists[2]])
        assert await world.garbage.collect() == []
        assert await world.there() == {stored, live, *lists[:2]}


async def test_every_table_with_payloads_is_looked_at_by_an_index(tmp_path: Path) -> None:
    async with _world(tmp_path) as world:
        db = sqlite3.connect(world.store.path)
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for number, table in enumerate(tables):
            columns = db.execute(f"PRAGMA table_info({table})").fetchall()
            if "flags" in {c[1] for c in columns}:
                name = hashlib.sha256(b"%d" % number).hexdigest()
                marks = [name.encode() if c[1] == "payload" else 1 for c in columns]
                db.execute(f"INSERT INTO {table} VALUES ({','.join('?' * len(marks))})", marks)
                db.commit()
                assert name in (await world.store.referenced_blobs()).names, table
                assert f"{table}_by_blob" in {row[1] for row in db.execute(f"PRAGMA index_list({table})")}
        db.close()


def test_names_are_found_wherever_they_stand() -> None:
    one, two = "a" * 64, "0" * 64
    assert blob_names({"x": [one, f"http://d/{two}.zip"], "y": "f" * 65, "z": "b" * 63}) == {one, two}
    assert blob_names(None) == set()


async def test_a_blob_asked_for_while_it_is_collected_is_either_kept_or_missing(tmp_path: Path) -> None:
    async with _world(tmp_path) as world:
        shas = [await world.put(b"%d" % i) for i in range(200)]
        world.now += AGE + 1
        removed, *missing = await asyncio.gather(
            world.garbage.collect(), *(world.blobs.missing([x]) for x in shas)
        )
        told_missing = {x for answer in missing for x in answer}
        assert set(removed) == told_missing == set(shas) - await world.there()


async def test_output_of_apps_stopped_long_ago_is_forgotten(tmp_path: Path) -> None:
    async with _world(tmp_path) as world:
        stopped, running = await world.publish("a", "1" * 64), await world.publish("b", "2" * 64)
        for app in (stopped, running):
            world.hub.log(app, "f", "ta-1", 1, 0.0, b"text")
        await world.apps.stop(stopped)
        await world.garbage.collect()
        assert world.hub.apps() == [stopped, running]
        world.now += AGE + 1
        await world.garbage.collect()
        assert world.hub.apps() == [running]


async def test_bundles_laid_out_for_old_deploys_go(tmp_path: Path) -> None:
    async with _world(tmp_path) as world:
        old, kept, submitted, fresh = [hashlib.sha256(x).hexdigest() for x in (b"1", b"2", b"3", b"4")]
        for sha in (old, kept, submitted, fresh):
            (tmp_path / "code" / sha / "pkg").mkdir(parents=True)
            if sha != fresh:
                os.utime(tmp_path / "code" / sha, (1.0, 1.0))
        (tmp_path / "code" / ".left-by-a-killed-process").mkdir()
        os.utime(tmp_path / "code" / ".left-by-a-killed-process", (1.0, 1.0))
        await world.engine.start()
        try:
            await world.engine.submit(_job(submitted))
            assert await world.engine.collect({kept}, older_than=AGE) == 1
            assert {x.name for x in (tmp_path / "code").iterdir()} == {kept, submitted, fresh}
            await world.engine.stop("job")
            assert await world.engine.collect({kept}, older_than=AGE) == 1
            assert {x.name for x in (tmp_path / "code").iterdir()} == {kept, fresh}
        finally:
            await world.engine.close()


def _job(sha: str) -> dict[str, Any]:
    artifact = {"GetterSource": f"http://d/artifacts/{sha}.zip", "RelativeDest": "local/code"}
    task = {
        "Name": "container",
        "Driver": "raw_exec",
        "Config": {"command": "/bin/true", "args": []},
        "Artifacts": [artifact],
    }
    return {
        "ID": "job",
        "Type": "batch",
        "ParameterizedJob": {},
        "TaskGroups": [{"Name": "container", "Tasks": [task]}],
    }


# ---- any history

_names = st.integers(0, 5)
_history = st.lists(
    st.one_of(
        st.tuples(st.just("deploy"), st.integers(0, 1), _names),
        st.tuples(st.just("stop"), st.integers(0, 1)),
        st.tuples(st.just("spawn"), st.integers(0, 2), _names),
        st.tuples(st.just("map"), st.integers(3, 4), _names),
        st.tuples(st.just("answer"), st.integers(0, 2), _names),
        st.tuples(st.just("forget"), st.integers(0, 4)),
        st.tuples(st.just("upload"), _names),
        st.tuples(st.just("wait"), st.sampled_from([AGE / 3, AGE * 2])),
        st.tuples(st.just("collect")),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(history=_history)
def test_nothing_referenced_is_ever_collected_and_all_else_goes(history: Sequence[tuple[Any, ...]]) -> None:
    with TemporaryDirectory() as home:
        asyncio.run(_live_through(Path(home), history))


async def _live_through(home: Path, history: Sequence[tuple[Any, ...]]) -> None:
    async with _world(home) as world:
        world.calls.handle(ev.FunctionAdded("fu", ev.FunctionPolicy("v1")), 0.0)
        apps: dict[int, tuple[str, str]] = {}
        inputs: dict[int, str] = {}
        outputs: dict[int, str] = {}
        touched: dict[str, float] = {}

        async def put(number: int) -> str:
            sha = await world.put(b"%d" % number)
            touched[sha] = world.now
            return sha

        used: set[str] = set()
        for step, *args in history:
            if step == "deploy":
                sha = await put(args[1])
                apps[args[0]] = (await world.publish(f"app{args[0]}", sha), sha)
            elif step == "stop" and args[0] in apps:
                await world.apps.stop(apps.pop(args[0])[0])
            elif step == "spawn" and args[0] not in inputs and args[0] not in outputs:
                inputs[args[0]] = sha = await put(args[1])
                stored = StoredInput(0, sha.encode(), FLAG_BLOB)
                await world.store.add_inputs(f"fc-{args[0]}", "fu", [stored])
            elif step == "map" and args[0] not in inputs:
                inputs[args[0]] = sha = await put(args[1])
                item = (0, sha.encode(), FLAG_BLOB)
                world.calls.handle(ev.InputsSubmitted(f"fc-{args[0]}", "fu", False, "cl", [item]), 0.0)
            elif step == "answer" and args[0] in inputs:
                outputs[args[0]] = sha = await put(args[1])
                del inputs[args[0]]
                output = StoredOutput(0, 0, sha.encode(), FLAG_BLOB)
                await world.store.add_outputs(f"fc-{args[0]}", [output])
            elif step == "forget":
                inputs.pop(args[0], None)
                outputs.pop(args[0], None)
                await world.store.delete_call(f"fc-{args[0]}")
                world.calls.handle(ev.CallClosed(f"fc-{args[0]}"), 0.0)
            elif step == "upload":
                await put(args[0])
            elif step == "wait":
                world.now += args[0]
            elif step == "collect":
                await world.garbage.collect()
            used = {sha for _, sha in apps.values()} | {*inputs.values(), *outputs.values()}
            young = {sha for sha, when in touched.items() if world.now - when <= AGE}
            assert used | young <= await world.there()
        world.now += 2 * AGE
        await world.garbage.collect()
        assert await world.there() == used
