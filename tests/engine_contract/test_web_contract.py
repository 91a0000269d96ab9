"""Web endpoints must behave alike on every engine: started from zero, asked, ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine_contract._program import run, server_of

PROGRAM = """
import urllib.request

import modal_nomad as modal

app = modal.App("contract-web")

async def hello(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

@app.function(scaledown_window=2)
@modal.asgi_app()
def web():
    return hello

def by_wsgi(environ, start_response):
    start_response("200 OK", [])
    return [environ["PATH_INFO"].encode()]

@app.cls()
class Both:
    @modal.wsgi_app()
    def serve(self):
        return by_wsgi

    @modal.method()
    def double(self, x):
        return 2 * x

def ask(url, path):
    with urllib.request.urlopen(url + path, timeout=90) as answer:
        return answer.read().decode()

if __name__ == "__main__":
    with app.run():
        url = web.get_web_url()
        assert ask(url, "/a").endswith("/a")
        assert ask(url, "/b").endswith("/b")
        assert ask(Both().serve.get_web_url(), "/c") == "/c"
        assert Both().double.remote(4) == 8
    print("done")
"""


@pytest.fixture(params=["local", "nomad"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server_of(request, tmp_path_factory, web={"listen": "http://127.0.0.1:0"}) as url:
        yield url


def test_web(server: str, tmp_path: Path) -> None:
    file = tmp_path / "contract_web.py"
    file.write_text(PROGRAM)
    done = run(server, file, timeout=110)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["done"]
