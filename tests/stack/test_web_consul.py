"""Web endpoints on a real Nomad and a real Consul: jobs register services, gateways find containers there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests._consul import Consul
from tests._ports import free_ports
from tests.conftest import NO_NOMAD
from tests.engine_contract._nomad_agent import nomad_agent, nomad_binary, wait_until
from tests.stack._dispatcher import dispatcher, modal_nomad

TOKEN = "token-of-the-tests"
LIMIT = 90.0
APP = """
import os
import modal_nomad as modal

app = modal.App("found")

@app.function(min_containers=1, max_containers=1)
@modal.concurrent(max_inputs=20)
@modal.asgi_app(custom_domains=["found.example.com"])
def web():
    async def served(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
    return served
"""


@dataclass
class Stack:
    folder: Path
    nomad: str
    consul: Consul


@pytest.fixture
def stack(consul: Consul) -> Iterator[Stack]:
    binary = nomad_binary()
    if binary is None:
        pytest.skip(NO_NOMAD)
    folder = Path(tempfile.mkdtemp(prefix="mn-", dir="/tmp"))
    try:
        with nomad_agent(binary, consul=consul.nomad_settings()) as nomad:
            yield Stack(folder, nomad, consul)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Gateway:
    """A gateway of this test's, with what it is told."""

    def __init__(self, stack: Stack, url: str, name: str, word: str, token: str = "") -> None:
        (self.port,) = free_ports(1)
        file, log = stack.folder / f"{name}.toml", stack.folder / f"{name}.log"
        file.write_text(
            f'listen = "http://127.0.0.1:{self.port}"\ndispatchers = ["{url}"]\ngateway_token = "{TOKEN}"\n'
            f'[consul]\naddress = "{stack.consul.address}"\nregister = "modal-gateway"\n'
            f'token = "{token}"\n'
        )
        self.log = log
        with open(log, "wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "modal_nomad", "gateway", "--config", str(file)],
                stdout=out,
                stderr=out,
            )
        wait_until(lambda: word in log.read_text() and "served at" in log.read_text(), self.process, log)

    def get(self, path: str = "/found-web", **options: Any) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=LIMIT, **options)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)


def until(condition: Any) -> Any:
    process = subprocess.Popen(["sleep", "1000"])
    try:
        wait_until(condition, process, Path(os.devnull))
    finally:
        process.kill()
        process.wait()


def passing(consul: Consul) -> list[Any]:
    return list(consul.get("/v1/health/service/found-web?passing=1"))


def test_containers_are_found_by_consul(stack: Stack) -> None:
    consul = stack.consul
    web = {
        "gateway_token": TOKEN,
        "consul": True,
        "consul_check_interval": 1,
        "url": "http://{label}.localhost",
    }
    gateways: list[Gateway] = []
    try:
        with dispatcher(stack.folder, {"address": stack.nomad}, auth="none", web=web) as url:
            done = modal_nomad(stack.folder, url, "deploy", "app.py", file=APP)
            assert done.returncode == 0, done.stderr
            gateways.append(Gateway(stack, url, "one", "connected with"))
            first = gateways[0].get()
            assert first.status_code == 200, first.text
            pid = int(first.text)
            until(lambda: passing(consul))
            (entry,) = passing(consul)
            service = entry["Service"]
            assert {"modal-nomad", "app=found", "environment=main"} <= set(service["Tags"])
            assert not any("traefik" in x for x in service["Tags"])
            assert service["Meta"]["label"] == "found-web" and service["Meta"]["container"].startswith("ta-")
            assert service["Meta"]["job"] == "default/found-web" and service["Meta"]["version"]
            # The agent has it at once, the catalog in its own time.
            until(lambda: consul.get("/v1/catalog/service/modal-gateway"))
            pids = [int(x) for x in _dispatcher_pids(url)]
            for number in pids:
                os.kill(number, signal.SIGKILL)
            # Nobody tells them anything now: the one goes on, the other learns it all from Consul.
            assert int(gateways[0].get().text) == pid
            gateways.append(Gateway(stack, url, "two", "served at"))
            until(lambda: gateways[1].get().status_code == 200)
            assert int(gateways[1].get().text) == pid
            found = gateways[1].get("/", headers={"Host": "found.example.com"})
            assert found.status_code == 200 and int(found.text) == pid
            # Consul starts again with what it had; the container's end is seen by its check.
            consul.stop()
            assert int(gateways[1].get().text) == pid
            consul.start()
            until(lambda: passing(consul))
            assert int(gateways[1].get().text) == pid
            os.kill(pid, signal.SIGKILL)
            until(lambda: not passing(consul))
            until(lambda: gateways[1].get().status_code == 503)
    finally:
        for gateway in gateways:
            gateway.close()
    until(lambda: not consul.get("/v1/catalog/service/modal-gateway"))


def _dispatcher_pids(url: str) -> list[str]:
    port = url.rpartition(":")[2]
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"dispatcher" in words and any(
                x.endswith(b"dispatcher.toml") and f":{port}".encode() in Path(os.fsdecode(x)).read_bytes()
                for x in words
            ):
                found.append(entry.name)
    return found
