"""Web endpoints must behave alike on every engine: started from zero, asked, replaced, ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests._consul import Consul
from tests._ports import free_ports
from tests.engine_contract._program import environment, gateway, run, server_of
from tests.stack._cluster import until

LIMIT = 200
SHOP = """
import modal
import words

app = modal.App("contract-shop")

@app.function()
@modal.concurrent(max_inputs=10)
@modal.asgi_app()
def web():
    async def served(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": words.WORD.encode()})
    return served
"""


@pytest.fixture(params=["local", "nomad", "nomad-consul"], scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    web = {"listen": "http://127.0.0.1:0", "answer_seconds": 1.0}
    proxies = {"office": 'node_meta = { egress = "office" }'}
    with server_of(request, tmp_path_factory, web=web, proxies=proxies) as url:
        yield url


def test_web(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "contract_web.py"
    shutil.copy(Path(__file__).with_name("_web_program.py"), file)
    monkeypatch.setenv("TEST_PORT", str(free_ports(1)[0]))
    monkeypatch.setenv("TEST_FOLDER", str(tmp_path))
    done = run(server, file, timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split()[-1] == "done"


@pytest.mark.parametrize("server", ["local", "nomad-consul"], indirect=True)
def test_every_parameter(
    server: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "contract_rows.py"
    shutil.copy(Path(__file__).with_name("_web_rows_program.py"), file)
    monkeypatch.setenv("TEST_PORTS", json.dumps(free_ports(2)))
    done = run(server, file, timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    key = json.loads(done.stdout.splitlines()[-1])
    if request.node.callspec.params["server"] == "nomad-consul":
        _found_by_consul_alone(request.getfixturevalue("nomad_with_consul").consul, tmp_path, key)


def _found_by_consul_alone(consul: Consul, folder: Path, key: dict[str, str]) -> None:
    """A gateway without a dispatcher leads to the containers that are there, by what Consul says."""
    (port,) = free_ports(1)
    # Nothing listens there.
    with gateway(folder, consul.address, ["http://127.0.0.1:1"], port):

        def ask(label: str, **options: Any) -> httpx.Response:
            return httpx.get(f"http://127.0.0.1:{port}/{label}", timeout=LIMIT, **options)

        def there(label: str) -> bool:
            return ask(label, params={"name": "you"}).status_code not in (404, 503)

        labels = ("contract-rows-greet", "contract-rows-model-page", "contract-rows-asgi")
        until(lambda: all(map(there, labels)))
        assert ask("contract-rows-greet", params={"name": "you"}).json() == "hi you"
        # Of the same class, so in the same container.
        assert ask("contract-rows-model-page").text == "hi"
        assert ask("contract-rows-asgi").status_code == 401
        # Nobody knows whether this one is good.
        assert ask("contract-rows-asgi", headers=key).status_code == 503
        (entry,) = consul.get("/v1/health/service/contract-rows-asgi?passing=1")
        meta = entry["Service"]["Meta"]
        assert meta["proxy_auth"] == "true" and meta["max_inputs"] == "5", meta
        assert meta["domains"] == "asgi.contract.test,asgi2.contract.test" and meta["version"], meta
        assert {"modal-nomad", "app=contract-rows", "environment=main"} <= set(entry["Service"]["Tags"])


@contextmanager
def asked(url: str) -> Iterator[Callable[[str], None]]:
    """Ask all the time: nothing may fail. Gives a function that waits for an answer."""
    answers: list[str] = []
    changed = threading.Condition()
    enough = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=LIMIT, follow_redirects=True) as client:
            while not enough.is_set():
                try:
                    found = client.get(url)
                    text = found.text if found.status_code == 200 else f"failed: {found.status_code}"
                except httpx.HTTPError as error:
                    text = f"failed: {error!r}"
                with changed:
                    answers.append(text)
                    changed.notify_all()

    def wait(word: str) -> None:
        with changed:
            assert changed.wait_for(lambda: word in answers, LIMIT), (word, answers[-1:])

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield wait
    finally:
        enough.set()
        thread.join(LIMIT)
    assert not [x for x in answers if x.startswith("failed")]


@pytest.mark.parametrize("server", ["nomad-consul"], indirect=True)
def test_versions_follow_each_other_under_load(server: str, tmp_path: Path) -> None:
    words, file = tmp_path / "words.py", tmp_path / "shop.py"
    words.write_text("WORD = 'one'\n")
    file.write_text(SHOP)
    command = [sys.executable, "-u", "-m", "modal_nomad"]
    serving = subprocess.Popen(
        [*command, "serve", str(file)], env=environment(server), stdout=subprocess.PIPE, text=True
    )
    try:
        assert serving.stdout is not None
        url = next(x for x in serving.stdout if " => " in x).split()[-1]
        assert "contract-shop-web-dev" in url
        said = threading.Thread(target=serving.stdout.read)
        said.start()
        with asked(url) as wait:
            wait("one")
            words.write_text("WORD = 'two, longer'\n")
            wait("two, longer")
        serving.send_signal(signal.SIGINT)
        assert serving.wait(LIMIT) == 0
        said.join(LIMIT)
        assert httpx.get(url, timeout=LIMIT).status_code == 404
    finally:
        serving.kill()
        serving.wait(LIMIT)
        assert serving.stdout is not None
        serving.stdout.close()

    def deploy() -> str:
        done = subprocess.run(
            [*command, "deploy", str(file)], env=environment(server), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return next(x for x in done.stdout.splitlines() if " => " in x).split()[-1]

    url = deploy()
    assert "-dev" not in os.path.basename(url)
    with asked(url) as wait:
        wait("two, longer")
        words.write_text("WORD = 'three'\n")
        deploy()
        wait("three")
