"""Rendered jobs on a real Nomad: valid, and what they promise is there when the worker starts."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import io
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import AsyncIterator, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest

from modal_nomad.engines.base import ContainerEvent, ContainerRequest, ContainerState
from modal_nomad.engines.nomad import NomadEngine
from modal_nomad.hashicorp.nomad import NomadNotFound, NomadSettings
from modal_nomad.render import RenderSettings, render_function
from modal_nomad.wire.ids import new_id
from modal_nomad.wire.spec import FunctionSpec

ROOT = Path(__file__).parents[2]
GOLDEN = {path.stem: path.read_text() for path in sorted((ROOT / "tests/unit/golden").glob("*.json"))}
WORKER = """
import json, os, sys
code = os.listdir(os.environ["MODAL_CODE_DIR"])
token = open(os.environ["MODAL_WORKER_TOKEN_FILE"]).read().strip()
print(json.dumps({"task": os.environ["MODAL_TASK_ID"], "code": code, "token": token, "argv": sys.argv}))
"""


@pytest.fixture
async def engine(nomad_address: str) -> AsyncIterator[NomadEngine]:
    made = NomadEngine(NomadSettings(address=nomad_address))
    await made.start()
    yield made
    await made.close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    (tmp_path / "artifacts").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", tmp_path / "artifacts"
    server.shutdown()
    server.server_close()
    thread.join()


def _put(folder: Path, name: str, text: str) -> str:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, text)
    sha = hashlib.sha256(buffer.getvalue()).hexdigest()
    (folder / f"{sha}.zip").write_bytes(buffer.getvalue())
    return sha


async def _end(events: AsyncIterator[ContainerEvent], container: str) -> ContainerEvent:
    async def look() -> ContainerEvent:
        async for event in events:
            if event.container_id == container and event.state.ended:
                return event
        raise AssertionError("the watch ended")

    return await asyncio.wait_for(look(), 60)


@pytest.mark.parametrize("name", GOLDEN)
async def test_nomad_accepts_the_golden_files(engine: NomadEngine, nomad_address: str, name: str) -> None:
    job = json.loads(GOLDEN[name])
    async with aiohttp.ClientSession(nomad_address) as http:
        for path, body in (
            (f"/v1/namespace/{job['Namespace']}", {"Name": job["Namespace"]}),
            (f"/v1/node/pool/{job['NodePool']}", {"Name": job["NodePool"]}),
        ):
            if body["Name"] != "default":
                (await http.put(path, json=body)).raise_for_status()
    assert await engine.validate(job) == []


async def test_a_container_has_code_runtime_and_identity(
    engine: NomadEngine, files: tuple[str, Path]
) -> None:
    address, folder = files
    spec = FunctionSpec(app="stack", name="probe", code_bundle=_put(folder, "user.py", "x = 1"))
    settings = RenderSettings(address, _put(folder, "_start_worker.py", WORKER), python=sys.executable)
    job = render_function(spec, settings)
    await engine.submit(job)
    container, events = new_id("ta"), engine.watch()
    try:
        await engine.start_container(ContainerRequest(container, job["ID"]))
        end = await _end(events, container)
        assert (end.state, end.exit_code) == (ContainerState.COMPLETE, 0), end
        said = json.loads(b"".join([part async for part in engine.logs(container, follow=True)]))
    finally:
        await engine.stop(job["ID"])
    assert said["task"] == container
    assert said["code"] == ["user.py"]
    keys = jwt.PyJWKSet.from_dict(await engine.client.jwks())
    key = keys[jwt.get_unverified_header(said["token"])["kid"]]
    claims = jwt.decode(said["token"], key.key, algorithms=["RS256", "EdDSA"], audience="modal-nomad")
    assert claims["nomad_allocation_id"] == end.allocation_id
    assert str(claims["nomad_job_id"]).startswith(job["ID"])


async def test_a_missing_artifact_is_said_in_words(engine: NomadEngine, files: tuple[str, Path]) -> None:
    job = render_function(FunctionSpec(app="stack", name="lost"), RenderSettings(files[0], "f" * 64))
    await engine.submit(job)
    container, events = new_id("ta"), engine.watch()
    try:
        await engine.start_container(ContainerRequest(container, job["ID"]))
        end = await _end(events, container)
    finally:
        await engine.stop(job["ID"])
    assert end.state is ContainerState.FAILED
    assert "artifact" in end.reason.lower()


async def test_the_task_api_serves_the_adapter(engine: NomadEngine) -> None:
    """The way of jobspecs/dispatcher.nomad.hcl: Nomad through the socket in the task's own folder."""
    script = """
import asyncio, os
from modal_nomad.hashicorp.nomad import NomadClient, NomadSettings
async def main():
    secrets = os.environ["NOMAD_SECRETS_DIR"]
    client = NomadClient(NomadSettings(f"unix://{secrets}/api.sock", token_file=f"{secrets}/nomad_token"))
    async with client.events(["Job:*"], index=1) as batches:
        async for batch in batches:
            break
    print(len(await client.jobs()), batch["Index"] > 0, await client.leader() != "")
    await client.close()
asyncio.run(main())
"""
    job = render_function(FunctionSpec(app="stack", name="api"), RenderSettings("http://127.0.0.1:9", "f"))
    task = job["TaskGroups"][0]["Tasks"][0]
    task["Artifacts"] = []
    task["Identities"] = [{"Name": "default", "File": True, "Env": True, "Audience": ["nomadproject.io"]}]
    task["Config"] = {"command": sys.executable, "args": ["-c", script]}
    await engine.submit(job)
    container, events = new_id("ta"), engine.watch()
    try:
        await engine.start_container(ContainerRequest(container, job["ID"]))
        end = await _end(events, container)
        out = b"".join([part async for part in engine.logs(container, follow=True)])
        err = b"".join([part async for part in engine.logs(container, stream="stderr", follow=True)])
    finally:
        await engine.stop(job["ID"])
    assert (end.state, err) == (ContainerState.COMPLETE, b"")
    assert out.endswith(b" True True\n")


async def test_an_unknown_allocation_is_not_found(engine: NomadEngine) -> None:
    with pytest.raises(NomadNotFound):
        await engine.client.read_file("00000000-0000-0000-0000-000000000000", "x", 0)


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["-var=tls_cert=/c.pem", "-var=tls_key=/k.pem"],
        ["-var=web_domain=modal.test", "-var=web_consul=true"],
    ],
)
def test_nomad_accepts_the_dispatchers_job(nomad_address: str, more: list[str]) -> None:
    command = ["nomad", "job", "validate", f"-address={nomad_address}", "-var=package=modal-nomad", *more]
    done = subprocess.run(
        [*command, str(ROOT / "jobspecs/dispatcher.nomad.hcl")], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("more", [[], ["-var=tls_cert=/c.pem", "-var=tls_key=/k.pem", "-var=processes=4"]])
def test_nomad_accepts_the_gateways_job(nomad_address: str, more: list[str]) -> None:
    dispatchers = '-var=dispatchers=["http://127.0.0.1:8520"]'
    command = ["nomad", "job", "validate", f"-address={nomad_address}", dispatchers, *more]
    done = subprocess.run(
        [*command, str(ROOT / "jobspecs/gateway.nomad.hcl")], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
