"""``engine`` gives every test each engine in turn; ``bench`` wraps it with the few verbs of the cases."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from modal_nomad.engines.base import ContainerEvent, ContainerRequest, ContainerState, Engine
from modal_nomad.wire.ids import new_id
from tests._docker import IMAGE

LIMIT = 120.0


@pytest.fixture(params=["local", "nomad", "local-docker", "nomad-docker"])
async def engine(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Engine]:
    made: Engine
    kind, _, runtime = request.param.partition("-")
    if kind == "nomad":
        from modal_nomad.engines.nomad import NomadEngine
        from modal_nomad.hashicorp.nomad import NomadSettings

        address = request.getfixturevalue("nomad_docker_address" if runtime else "nomad_address")
        made = NomadEngine(NomadSettings(address=address))
    else:
        from modal_nomad.dispatcher.blobs import DirectoryBlobs
        from modal_nomad.engines.local import LocalEngine

        # Not tmp_path: its name is long, and the engine's sockets have short paths.
        home: Path = tmp_path_factory.mktemp("h")
        if runtime:
            monkeypatch.setenv("DOCKER_HOST", request.getfixturevalue("docker").host)
        made = LocalEngine(home, DirectoryBlobs(home / "blobs"))
    await made.start()
    try:
        yield made
    finally:
        await made.close()


class Bench:
    """An engine, the events it has told, and the jobs to clean up.

    Args:
        engine: which.
        image: what containers are started from; empty for processes of the node.
    """

    def __init__(self, engine: Engine, image: str = "") -> None:
        self.engine = engine
        self.image = image
        self.events: list[ContainerEvent] = []
        self.jobs: list[str] = []
        self._news = asyncio.Condition()
        self._task = asyncio.create_task(self._listen(engine.watch()))

    async def _listen(self, events: AsyncIterator[ContainerEvent]) -> None:
        async for event in events:
            async with self._news:
                self.events.append(event)
                self._news.notify_all()

    def job(self, script: str, **changes: Any) -> dict[str, Any]:
        """Return a parameterized job that runs a shell script."""
        name = "contract-" + new_id("fu")[-8:]
        resources = {"CPU": 50, "MemoryMB": changes.pop("memory", 64)}
        task = {
            "Name": "container",
            "Driver": "docker" if self.image else "raw_exec",
            "Config": {
                "command": "/bin/sh",
                "args": ["-c", script],
                **({"image": self.image, "network_mode": "host"} if self.image else {}),
            },
            "Env": {"MODAL_TASK_ID": "${NOMAD_META_modal_container}", **changes.pop("env", {})},
            "Resources": resources,
            "LogConfig": {"MaxFiles": 2, "MaxFileSizeMB": 5},
            # Nomad's own default is SIGINT.
            "KillSignal": "SIGTERM",
            "KillTimeout": changes.pop("kill_seconds", 2) * 1_000_000_000,
        }
        group = {
            "Name": "container",
            "Count": 1,
            "Tasks": [task],
            "EphemeralDisk": {"SizeMB": 50},
            "RestartPolicy": {"Attempts": 0, "Mode": "fail"},
            "ReschedulePolicy": {"Attempts": 0, "Unlimited": False},
        }
        return {
            "ID": name,
            "Name": name,
            "Type": "batch",
            "Datacenters": ["*"],
            "ParameterizedJob": {"Payload": "forbidden", "MetaRequired": ["modal_container"]},
            "TaskGroups": [group],
            **changes,
        }

    async def submit(self, script: str, **changes: Any) -> str:
        job = self.job(script, **changes)
        await self.engine.submit(job)
        self.jobs.append(job["ID"])
        return str(job["ID"])

    async def start(self, script: str, **changes: Any) -> str:
        """Submit a job of this script and start one container of it."""
        return await self.start_in(await self.submit(script, **changes))

    async def start_in(self, job_id: str, container_id: str = "") -> str:
        container_id = container_id or new_id("ta")
        await self.engine.start_container(ContainerRequest(container_id, job_id))
        return container_id

    async def wait(
        self, container_id: str, true_of: Callable[[ContainerEvent], bool], limit: float = LIMIT
    ) -> ContainerEvent:
        """Return the container's first event for which ``true_of`` holds."""

        def found() -> ContainerEvent | None:
            return next((e for e in self.events if e.container_id == container_id and true_of(e)), None)

        async with self._news:
            try:
                await asyncio.wait_for(self._news.wait_for(lambda: found() is not None), limit)
            except asyncio.TimeoutError:
                raise AssertionError(f"never happened to {container_id}: {self.events}") from None
        event = found()
        assert event is not None
        return event

    async def ended(self, container_id: str) -> ContainerEvent:
        return await self.wait(container_id, lambda e: e.state.ended)

    async def running(self, container_id: str) -> ContainerEvent:
        return await self.wait(container_id, lambda e: e.state is ContainerState.RUNNING)

    async def log(self, container_id: str, stream: str = "stdout", *, follow: bool = False) -> bytes:
        return b"".join([part async for part in self.engine.logs(container_id, stream=stream, follow=follow)])

    async def close(self) -> None:
        for job_id in self.jobs:
            await self.engine.stop(job_id)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


@pytest.fixture
async def bench(engine: Engine, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    image = IMAGE if request.node.callspec.params["engine"].endswith("-docker") else ""
    made = Bench(engine, image)
    try:
        yield made
    finally:
        await made.close()
