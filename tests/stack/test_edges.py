"""Edges of one's own: Traefik and Fabio lead to containers by what Consul says, with no gateway of ours.

They need `traefik` or `fabio` on PATH: nothing is downloaded.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests._consul import Consul
from tests._ports import free_ports
from tests.conftest import NO_EDGE, NO_NOMAD
from tests.engine_contract._nomad_agent import nomad_agent, nomad_binary
from tests.stack._cluster import until
from tests.stack._dispatcher import dispatcher, modal_nomad

LIMIT = 90.0
APP = """
import modal

app = modal.App("found")

@app.function(min_containers=1, max_containers=2)
@modal.concurrent(max_inputs=20)
@modal.asgi_app(custom_domains=["found.example.com"])
def web():
    async def served(scope, receive, send):
        if scope["type"] == "http":
            body = b""
            while (event := await receive()).get("more_body") or event.get("body"):
                body += event["body"]
                if not event.get("more_body"):
                    break
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"VERSION " + body})
    return served

def saying(word):
    def app(environ, start_response):
        start_response("200 OK", [])
        return [word.encode()]
    return app

@app.cls(min_containers=1, max_containers=1)
class Both:
    @modal.wsgi_app(label="found-one")
    def one(self):
        return saying("one")

    @modal.wsgi_app(label="found-two")
    def two(self):
        return saying("two")
"""


def traefik(program: str, consul: str, port: int, folder: Path) -> list[str]:
    """Return the command of docs/gateway.md, its file on free ports."""
    file = folder / "traefik.toml"
    file.write_text(
        f"""
[global]
checkNewVersion = false
sendAnonymousUsage = false

[entryPoints.web]
address = "127.0.0.1:{port}"

[providers.consulCatalog]
exposedByDefault = false
watch = true

[providers.consulCatalog.endpoint]
address = "{consul}"
"""
    )
    return [program, f"--configFile={file}"]


def fabio(program: str, consul: str, port: int, folder: Path) -> list[str]:
    """The same for Fabio."""
    (other,) = free_ports(1)
    file = folder / "fabio.properties"
    file.write_text(
        f"proxy.addr = 127.0.0.1:{port}\nui.addr = 127.0.0.1:{other}\n"
        f"registry.consul.addr = {consul}\nregistry.consul.register.enabled = false\n"
    )
    # It does not run as root without.
    return [program, "-insecure", "-cfg", str(file)]


EDGES: dict[str, Callable[[str, str, int, Path], list[str]]] = {"traefik": traefik, "fabio": fabio}


@pytest.fixture(params=EDGES)
def edge(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str, str]]:
    """The edge's name and address, and a dispatcher's on a real Nomad with the same Consul."""
    program, binary = shutil.which(request.param), nomad_binary()
    if program is None:
        pytest.skip(NO_EDGE)
    if binary is None:
        pytest.skip(NO_NOMAD)
    consul: Consul = request.getfixturevalue("consul")
    where = consul.address.removeprefix("http://")
    settings = {
        "address": where,
        "client_auto_join": False,
        "server_auto_join": False,
        "auto_advertise": False,
    }
    web = {
        "consul": True,
        "edge": True,
        "consul_check_interval": 1,
        "edge_seconds": 6,
        "domain": "modal.example.com",
    }
    with (
        nomad_agent(binary, consul=settings) as nomad,
        dispatcher(tmp_path, {"address": nomad}, auth="none", web=web) as url,
    ):
        (port,) = free_ports(1)
        command = EDGES[request.param](program, where, port, tmp_path)
        with open(tmp_path / "edge.log", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path)
        try:
            yield request.param, f"http://127.0.0.1:{port}", url
        finally:
            process.terminate()
            process.wait(60)


def test_an_edge_leads_to_containers_and_to_those_of_a_new_version(
    edge: tuple[str, str, str], tmp_path: Path
) -> None:
    name, address, url = edge

    def ask(host: str, body: bytes = b"") -> str:
        try:
            answer = httpx.post(address, headers={"Host": host}, content=body, timeout=LIMIT)
        except httpx.TransportError as error:
            return repr(error)
        return answer.text if answer.status_code == 200 else str(answer.status_code)

    def deploy(version: str) -> None:
        done = modal_nomad(tmp_path, url, "deploy", "app.py", file=APP.replace("VERSION", version))
        assert done.returncode == 0, done.stderr

    deploy("first")
    until(lambda: ask("found-web.modal.example.com") == "first ")
    assert ask("found.example.com", b"x" * 3_000_000) == "first " + "x" * 3_000_000
    assert ask("other.modal.example.com") in ("404", "503")
    if name == "traefik":
        # Of a class's endpoints it can say which one is meant.
        for label in ("one", "two"):
            host = f"found-{label}.modal.example.com"
            assert until(lambda host=host: _get(address, host)) == label
    # Under load: not one request may fail, whichever version answers it.
    answers: list[str] = []
    over = threading.Event()

    def load() -> None:
        while not over.is_set():
            answers.append(ask("found-web.modal.example.com"))

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        deploy("second")
        # The old one has gone when nobody hears of it any more.
        until(lambda: "second " in answers)
        until(lambda: set(answers[-400:]) == {"second "} and len(answers) > 800)
    finally:
        over.set()
        for thread in threads:
            thread.join(LIMIT)
    assert set(answers) == {"first ", "second "}


def _get(address: str, host: str) -> str:
    """Return what a host answers, once it does."""
    answer = httpx.get(address, headers={"Host": host}, timeout=LIMIT)
    return answer.text if answer.status_code == 200 else ""
