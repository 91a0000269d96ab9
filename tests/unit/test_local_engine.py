"""The embedded engine with small commands and a fake worker: real processes, real signals."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import pathlib
import signal
import sys
import zipfile
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from modal_nomad.engines import _zygote
from modal_nomad.engines.base import ContainerEvent, ContainerRequest, ContainerState, EngineError
from modal_nomad.engines.local import LocalEngine
from modal_nomad.exception import ImageBuildError
from modal_nomad.wire.spec import ImageLayer, ImageSpec, canonical_json

WORKER = """
import os, signal, sys, time
def main():
    what = os.environ["WHAT"]
    if what == "hello":
        import user_code
        first = sys.path[0] == os.environ["MODAL_CODE_DIR"]
        print("hello", os.environ["MODAL_TASK_ID"], user_code.NAME, first)
        last = sys.path[-1] == os.environ["MODAL_RUNTIME_DIR"]
        print("path", last, os.getcwd(), sorted(os.listdir("/proc/self/fd")))
        print("oops", file=sys.stderr)
    elif what == "exit3":
        return 3
    elif what == "sysexit":
        sys.exit("no good")
    elif what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "memory":
        data = bytearray(1 << 30)
    elif what == "raise":
        raise ValueError("bad worker")
    elif what == "sleep":
        print("sleeping", flush=True)
        signal.pause()
    elif what == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("stubborn", flush=True)
        while True: signal.pause()
    elif what == "orphan":
        import subprocess
        child = subprocess.Popen(["sleep", "1000"])
        print(child.pid, flush=True)
"""


class Blobs:
    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory

    def add(self, files: dict[str, str]) -> str:
        path = self.directory / "new.zip"
        with zipfile.ZipFile(path, "w") as bundle:
            for name, text in files.items():
                bundle.writestr(name, text)
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(self.directory / sha)
        return sha

    async def get(self, sha: str) -> bytes:
        try:
            return (self.directory / sha).read_bytes()
        except FileNotFoundError:
            raise KeyError(sha) from None


@pytest.fixture
def blobs(tmp_path: pathlib.Path) -> Blobs:
    (tmp_path / "blobs").mkdir()
    return Blobs(tmp_path / "blobs")


@pytest.fixture
async def engine(tmp_path: pathlib.Path, blobs: Blobs) -> AsyncIterator[LocalEngine]:
    engine = LocalEngine(tmp_path / "home", blobs, max_log_bytes=1 << 20)
    await engine.start()
    yield engine
    await engine.close()


def command_job(command: str, *args: str, **task: Any) -> dict[str, Any]:
    body = {
        "Name": "main",
        "Driver": "raw_exec",
        "Config": {"command": command, "args": list(args)},
        "KillTimeout": 5_000_000_000,
        **task,
    }
    return {
        "ID": "app-f",
        "Namespace": "default",
        "Type": "batch",
        "ParameterizedJob": {"Payload": "forbidden", "MetaRequired": ["modal_container"]},
        "TaskGroups": [{"Name": "main", "Count": 1, "Tasks": [body]}],
    }


def worker_job(blobs: Blobs, what: str, worker: str = WORKER, **task: Any) -> dict[str, Any]:
    runtime = blobs.add({"modal_nomad/__init__.py": "", "modal_nomad/worker/__init__.py": worker})
    code = blobs.add({"user_code.py": "NAME = 'user'"})
    task.setdefault("KillTimeout", 5_000_000_000)
    return command_job(
        "python3",
        "${NOMAD_TASK_DIR}/runtime/_start_worker.py",
        Env={"WHAT": what, "MODAL_TASK_ID": "${NOMAD_META_modal_container}"},
        Artifacts=[
            {"GetterSource": f"http://x/artifacts/{runtime}.zip", "RelativeDest": "local/runtime"},
            {"GetterSource": f"http://x/artifacts/{code}.zip", "RelativeDest": "local/code"},
        ],
        **task,
    )


async def until(events: AsyncIterator[ContainerEvent], *states: ContainerState) -> ContainerEvent:
    async for event in events:
        if event.state in states:
            return event
    raise AssertionError("the watch ended")


async def until_ended(events: AsyncIterator[ContainerEvent]) -> ContainerEvent:
    return await until(events, ContainerState.COMPLETE, ContainerState.FAILED, ContainerState.LOST)


async def run(engine: LocalEngine, job: dict[str, Any], container_id: str = "ta-1") -> ContainerEvent:
    events = engine.watch()
    await engine.submit(job)
    await engine.start_container(ContainerRequest(container_id, job["ID"]))
    return await until_ended(events)


async def text(engine: LocalEngine, container_id: str = "ta-1", stream: str = "stdout") -> str:
    return b"".join([x async for x in engine.logs(container_id, stream=stream)]).decode()


async def first_chunk(engine: LocalEngine, container_id: str = "ta-1") -> bytes:
    async with contextlib.aclosing(engine.logs(container_id, follow=True)) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            return chunk
    raise AssertionError("no output")


def process_state(pid: int) -> str:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def gone(pid: int) -> None:
    """Wait until a process that is not our child has ended."""
    while True:
        try:
            if process_state(pid) == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        await asyncio.sleep(0.01)


async def test_plain_command_with_its_variables(engine: LocalEngine) -> None:
    job = command_job(
        "sh",
        "-c",
        'echo "$ID $1"; pwd; echo "$EXTRA"; echo problem >&2',
        "sh",
        "${NOMAD_META_modal_container}",
        Env={"ID": "id=${NOMAD_META_modal_container}", "MODAL_WORKER_TOKEN_FILE": "${NOMAD_SECRETS_DIR}/x"},
    )
    events = engine.watch()
    await engine.submit(job)
    await engine.start_container(ContainerRequest("ta-1", "app-f", env={"EXTRA": "given"}))
    states = []
    async for event in events:
        states.append(event.state)
        if event.state.ended:
            break
    assert states == [ContainerState.PENDING, ContainerState.RUNNING, ContainerState.COMPLETE]
    assert (event.exit_code, event.reason) == (0, "")
    lines = (await text(engine)).splitlines()
    assert lines[0] == "id=ta-1 ta-1"
    assert lines[1].endswith("/containers/ta-1")
    assert lines[2] == "given"
    assert await text(engine, stream="stderr") == "problem\n"
    assert await engine.containers() == []


async def test_secrets_of_the_daemon_do_not_reach_a_container(
    engine: LocalEngine, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_TOKEN", "secret")
    await run(engine, command_job("sh", "-c", "cat /proc/self/environ /proc/$PPID/environ; env"))
    assert "A_TOKEN" not in await text(engine)


async def test_worker_is_forked_with_its_code_first_and_the_runtime_last(
    engine: LocalEngine, blobs: Blobs
) -> None:
    event = await run(engine, worker_job(blobs, "hello"))
    assert event.state is ContainerState.COMPLETE, event
    lines = (await text(engine)).splitlines()
    assert lines[0] == "hello ta-1 user True"
    assert lines[1].startswith("path True ")
    assert lines[1].endswith("['0', '1', '2', '3']")
    assert await text(engine, stream="stderr") == "oops\n"


@pytest.mark.parametrize(
    ("what", "code", "reason"),
    [
        ("exit3", 3, "exit code 3"),
        ("sysexit", 1, "exit code 1"),
        ("raise", 1, "exit code 1"),
        ("kill", 137, "killed by signal 9 (SIGKILL), perhaps out of memory"),
        ("segv", 139, "killed by signal 11 (SIGSEGV)"),
    ],
)
async def test_ends_in_words(engine: LocalEngine, blobs: Blobs, what: str, code: int, reason: str) -> None:
    event = await run(engine, worker_job(blobs, what))
    assert (event.state, event.exit_code, event.reason) == (ContainerState.FAILED, code, reason)


async def test_memory_limit(engine: LocalEngine, blobs: Blobs) -> None:
    event = await run(engine, worker_job(blobs, "memory", Resources={"MemoryMB": 64, "MemoryMaxMB": 256}))
    assert event.reason == "killed by signal 9 (SIGKILL), perhaps out of memory (limit 256 MiB)"
    assert "MemoryError" in await text(engine, stream="stderr")


async def test_what_a_worker_leaves_running_ends_with_it(engine: LocalEngine, blobs: Blobs) -> None:
    await run(engine, worker_job(blobs, "orphan"))
    await gone(int(await text(engine)))


@pytest.mark.parametrize("what", ["sleep", "stubborn"])
async def test_stop(engine: LocalEngine, blobs: Blobs, what: str) -> None:
    events = engine.watch()
    await engine.submit(worker_job(blobs, what, KillTimeout=100_000_000 if what == "stubborn" else 10**10))
    await engine.start_container(ContainerRequest("ta-1", "app-f"))
    assert await first_chunk(engine)
    await engine.stop_container("ta-1")
    event = await until_ended(events)
    assert (event.state, event.reason) == (ContainerState.COMPLETE, "stopped")
    assert event.exit_code == 128 + (signal.SIGKILL if what == "stubborn" else signal.SIGTERM)
    await engine.stop_container("ta-1")
    await engine.stop_container("ta-unknown", force=True)


async def test_stopping_a_job_ends_its_containers_and_unknown_jobs_are_no_error(
    engine: LocalEngine, blobs: Blobs
) -> None:
    events = engine.watch()
    await engine.submit(worker_job(blobs, "sleep"))
    for number in range(3):
        await engine.start_container(ContainerRequest(f"ta-{number}", "app-f"))
    await engine.stop("app-f")
    await engine.stop("never-was")
    ended = {(await until_ended(events)).container_id for _ in range(3)}
    assert ended == {"ta-0", "ta-1", "ta-2"}
    with pytest.raises(EngineError, match="publish its app again"):
        await engine.start_container(ContainerRequest("ta-9", "app-f"))


async def test_same_id_starts_once(engine: LocalEngine, blobs: Blobs) -> None:
    events = engine.watch()
    await engine.submit(worker_job(blobs, "hello"))
    for _ in range(3):
        await engine.start_container(ContainerRequest("ta-1", "app-f"))
    await until_ended(events)
    assert (await text(engine)).count("hello") == 1


async def test_killed_warm_interpreter_loses_its_containers_and_the_next_gets_a_fresh_one(
    engine: LocalEngine, blobs: Blobs
) -> None:
    events = engine.watch()
    await engine.submit(worker_job(blobs, "sleep"))
    await engine.start_container(ContainerRequest("ta-1", "app-f"))
    assert await first_chunk(engine)
    (warm,) = [x for x in engine._warm.values() if x.key.runtime]
    pid = engine._containers["ta-1"].pid
    os.kill(warm.pid, signal.SIGKILL)
    event = await until_ended(events)
    assert event.state is ContainerState.LOST
    assert "warm interpreter" in event.reason
    assert pid is not None
    await gone(pid)
    await engine.start_container(ContainerRequest("ta-2", "app-f"))
    assert (await until(events, ContainerState.RUNNING)).container_id == "ta-2"


async def test_close_ends_everything_and_the_watch(tmp_path: pathlib.Path, blobs: Blobs) -> None:
    engine = LocalEngine(tmp_path / "home", blobs)
    await engine.start()
    events = engine.watch()
    await engine.submit(worker_job(blobs, "stubborn"))
    await engine.start_container(ContainerRequest("ta-1", "app-f"))
    assert await first_chunk(engine)
    pid = engine._containers["ta-1"].pid
    assert pid is not None
    await engine.close()
    await gone(pid)
    assert [x.state for x in [e async for e in events]][-1] is ContainerState.COMPLETE
    with pytest.raises(EngineError):
        await engine.start_container(ContainerRequest("ta-2", "app-f"))


async def test_unimportable_worker_says_why(engine: LocalEngine, blobs: Blobs) -> None:
    event = await run(engine, worker_job(blobs, "hello", worker="import nothing_like_it"))
    assert event.state is ContainerState.FAILED
    assert "could not be imported: ModuleNotFoundError: No module named 'nothing_like_it'" in event.reason


async def test_missing_bundle_and_missing_command(engine: LocalEngine, blobs: Blobs) -> None:
    job = worker_job(blobs, "hello")
    job["TaskGroups"][0]["Tasks"][0]["Artifacts"][1]["GetterSource"] = f"http://x/{'0' * 64}.zip"
    event = await run(engine, job)
    assert event.reason == "code bundle 000000000000 is not stored; publish the app again"
    event = await run(engine, command_job("no-such-command"), "ta-2")
    assert "no command 'no-such-command'" in event.reason


async def test_exec_stats_and_unknown_containers(engine: LocalEngine, blobs: Blobs) -> None:
    events = engine.watch()
    await engine.submit(worker_job(blobs, "sleep"))
    await engine.start_container(ContainerRequest("ta-1", "app-f"))
    await until(events, ContainerState.RUNNING)
    result = await engine.exec("ta-1", ["sh", "-c", "cat; echo $MODAL_TASK_ID; pwd; exit 7"], stdin=b"in\n")
    assert result.exit_code == 7
    assert result.stdout.decode().splitlines()[:2] == ["in", "ta-1"]
    assert result.stdout.decode().strip().endswith("containers/ta-1")
    assert (await engine.exec("ta-1", ["no-such-command"])).exit_code == 127
    stats = await engine.stats("ta-1")
    assert stats.memory > 1 << 20
    for call in (engine.exec("ta-x", ["true"]), engine.stats("ta-x")):
        with pytest.raises(KeyError):
            await call
    with pytest.raises(KeyError):
        engine.logs("ta-x")


async def test_following_a_log_ends_with_the_container(engine: LocalEngine) -> None:
    await engine.submit(command_job("sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.06; done"))
    await engine.start_container(ContainerRequest("ta-1", "app-f"))
    chunks = [x async for x in engine.logs("ta-1", follow=True)]
    assert b"".join(chunks) == b"1\n2\n3\n"


async def test_flood_keeps_the_end_of_the_log(engine: LocalEngine) -> None:
    await engine.submit(command_job("sh", "-c", "yes | head -c 5000000; echo end"))
    await engine.start_container(ContainerRequest("ta-1", "app-f"))
    async for _ in engine.logs("ta-1", follow=True):
        pass
    kept = b"".join([x async for x in engine.logs("ta-1")])
    assert len(kept) <= 1 << 20
    assert kept.endswith(b"end\n")


async def test_image_environment_is_built_while_the_container_pends(
    tmp_path: pathlib.Path, blobs: Blobs
) -> None:
    image = ImageSpec(layers=(ImageLayer("pip", ("x",)),))
    built: list[ImageSpec] = []

    def build(wanted: ImageSpec) -> str:
        built.append(wanted)
        if len(built) == 1:
            raise ImageBuildError("pip found no distribution 'x'")
        return sys.executable

    def job(what: str) -> dict[str, Any]:
        value = worker_job(blobs, what)
        value["Meta"] = {
            "modal_image": json.dumps({"python": None, "layers": [{"kind": "pip", "args": ["x"]}]})
        }
        return value

    engine = LocalEngine(tmp_path / "home", blobs, environments=build)
    await engine.start()
    try:
        events = engine.watch()
        await engine.submit(job("hello"))
        await engine.start_container(ContainerRequest("ta-1", "app-f"))
        assert (await until(events, ContainerState.PENDING)).reason == "building the image environment"
        end = await until_ended(events)
        assert end.reason == "pip found no distribution 'x'"
        assert isinstance(end.error, ImageBuildError)
        event = await run(engine, job("hello"), "ta-2")
        assert event.state is ContainerState.COMPLETE, event
        assert built[-1].environment_key == image.environment_key
    finally:
        await engine.close()


def _docker(job: dict[str, Any]) -> None:
    job["TaskGroups"][0]["Tasks"][0]["Driver"] = "docker"


def _apt(job: dict[str, Any]) -> None:
    job["Meta"] = {"modal_image": canonical_json({"layers": [{"kind": "apt", "args": ["curl"]}]}).decode()}


def _no_tasks(job: dict[str, Any]) -> None:
    job["TaskGroups"] = []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_docker, "no image"),
        (_apt, r"image step 1 \(apt curl\) needs a container runtime"),
        (_no_tasks, "has no task"),
        (lambda job: job.pop("ID"), "the job has no ID"),
        (lambda job: job.update(Type="service"), "use 'batch'"),
        (lambda job: job.update(Meta={"modal_image": "["}), "is not an image"),
    ],
)
async def test_faults(engine: LocalEngine, spoil: Callable[[dict[str, Any]], Any], words: str) -> None:
    job = command_job("true")
    assert await engine.validate(job) == []
    spoil(job)
    assert len(await engine.validate(job)) == 1
    with pytest.raises(EngineError, match=words):
        await engine.submit(job)


async def test_plan(engine: LocalEngine) -> None:
    job = command_job("true", Env={"A": "1"})
    plan = await engine.plan(job)
    assert (plan.changes, plan.diff["Type"]) == (True, "Added")
    await engine.submit(job)
    plan = await engine.plan(job)
    assert (plan.changes, plan.diff["Type"], plan.diff["Fields"]) == (False, "None", [])
    plan = await engine.plan({**command_job("true", "x", Env={"A": "2"}), "Priority": 70})
    assert plan.diff["Type"] == "Edited"
    assert plan.diff["Fields"] == [{"Type": "Added", "Name": "Priority", "Old": "", "New": "70"}]
    (task,) = plan.diff["TaskGroups"][0]["Tasks"]
    assert task["Fields"] == [{"Type": "Edited", "Name": "Env[A]", "Old": "1", "New": "2"}]
    assert task["Objects"][0]["Fields"] == [{"Type": "Added", "Name": "args[0]", "Old": "", "New": "x"}]


def test_under_uvloop(tmp_path: pathlib.Path, blobs: Blobs) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        engine = LocalEngine(tmp_path / "home", blobs)
        await engine.start()
        event = await run(engine, worker_job(blobs, "hello"))
        assert event.state is ContainerState.COMPLETE
        await engine.close()

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(main())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


def test_arguments_of_the_warm_interpreter() -> None:
    assert _zygote.parse(["x", "5"]) == (5, None)
    assert _zygote.parse(["x", "5", "/runtime"]) == (5, "/runtime")
