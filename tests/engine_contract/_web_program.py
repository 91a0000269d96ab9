"""A user's program with endpoints of every kind, which asks them: run from a copy, on every engine.

Containers see their Image's packages only: those of the environment that runs this stand in for them, where a
Function needs any.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import modal_nomad as modal

LIMIT = 200
PACKAGES = os.environ.get("TEST_PACKAGES", "")
if PACKAGES:
    sys.path.append(PACKAGES)
PORT = int(os.environ.get("TEST_PORT", "0"))
FOLDER = Path(os.environ.get("TEST_FOLDER", "."))
told = {
    "TEST_PACKAGES": next((x for x in sys.path if x.endswith("site-packages")), ""),
    "TEST_PORT": str(PORT),
    "TEST_FOLDER": str(FOLDER),
}
app = modal.App("contract-web")


async def answer(send: Any, text: str) -> None:
    data = text.encode()
    fields = [(b"content-length", b"%d" % len(data))]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": data})


class Raw:
    """An ASGI app by hand."""

    def __init__(self) -> None:
        self.meeting: list[asyncio.Event] = []
        self.next = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await self.socket(receive, send)
        elif scope["type"] == "http":
            await getattr(self, "at_" + scope["path"].rpartition("/")[2])(receive, send)

    async def socket(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"].upper()})

    async def at_hello(self, receive: Any, send: Any) -> None:
        await answer(send, "hello")

    async def at_meet(self, receive: Any, send: Any) -> None:
        """Answer when two are here."""
        met = asyncio.Event()
        self.meeting.append(met)
        if len(self.meeting) == 2:
            for one in self.meeting:
                one.set()
        await met.wait()
        await answer(send, "met")

    async def at_events(self, receive: Any, send: Any) -> None:
        fields = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        for number in range(2):
            body = f"data: {number}\n\n".encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await self.next.wait()
            self.next.clear()
        await send({"type": "http.response.body", "body": b""})

    async def at_next(self, receive: Any, send: Any) -> None:
        self.next.set()
        await answer(send, "")

    async def at_forever(self, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    async def at_left(self, receive: Any, send: Any) -> None:
        await self.cancelled.wait()
        await answer(send, "cancelled")

    async def at_late(self, receive: Any, send: Any) -> None:
        while not (FOLDER / "go-on").exists():  # noqa: ASYNC110 (its word comes from another process)
            await asyncio.sleep(0.02)
        await answer(send, "late")

    async def at_die(self, receive: Any, send: Any) -> None:
        os._exit(9)


@app.function(env=told, max_containers=1, scaledown_window=2)
@modal.concurrent(max_inputs=20)
@modal.asgi_app(custom_domains=["shop.contract.test"])
def raw() -> Any:
    return Raw()


@app.function()
@modal.asgi_app(label="contract-guarded", requires_proxy_auth=True)
def guarded() -> Any:
    return Raw()


@app.function(single_use_containers=True)
@modal.wsgi_app()
def once() -> Any:
    def served(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return [os.environ["MODAL_TASK_ID"].encode()]

    return served


@app.function(env=told)
@modal.fastapi_endpoint(method="POST", docs=True)
def square(x: int) -> dict[str, int]:
    return {"square": x * x}


@app.function(env=told, max_containers=1)
@modal.concurrent(max_inputs=5)
@modal.web_server(PORT or 1, startup_timeout=60)
def files() -> None:
    subprocess.Popen([sys.executable, "-m", "http.server", str(PORT), "--bind", "127.0.0.1"], cwd=FOLDER)


@app.cls(enable_memory_snapshot=True)
class Model:
    @modal.enter(snap=True)
    def load(self) -> None:
        self.loaded = os.getpid()

    @modal.enter(snap=False)
    def connect(self) -> None:
        self.connected = os.getpid()

    @modal.asgi_app()
    def show(self) -> Any:
        async def served(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                await answer(send, json.dumps([self.loaded, self.connected, os.getpid()]))

        return served

    @modal.method()
    def double(self, x: int) -> int:
        return 2 * x


def main() -> None:
    import httpx
    from websockets.sync.client import connect

    app.deploy()
    client = httpx.Client(timeout=LIMIT, follow_redirects=True)

    def at(name: str, path: str = "") -> str:
        return str(app.registered_functions[name].get_web_url()) + path

    def both(*asked: Any) -> list[str]:
        found: list[str] = []
        threads = [threading.Thread(target=lambda x=x: found.append(client.get(x).text)) for x in asked]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        return found

    base = at("raw")
    assert client.get(f"{base}/hello").text == "hello"
    domain = {"Host": "shop.contract.test"}
    assert client.get(httpx.URL(base).copy_with(path="/hello"), headers=domain).text == "hello"
    assert both(f"{base}/meet", f"{base}/meet") == ["met", "met"]
    with connect(base.replace("http://", "ws://") + "/", open_timeout=LIMIT) as socket:
        socket.send("shout")
        assert socket.recv(timeout=LIMIT) == "SHOUT"
    with client.stream("GET", f"{base}/events") as events:
        lines = events.iter_lines()
        for number in range(2):
            assert next(x for x in lines if x) == f"data: {number}"
            client.get(f"{base}/next")
    with client.stream("GET", f"{base}/forever") as left:
        assert next(left.iter_bytes()) == b"begun"
    assert client.get(f"{base}/left").text == "cancelled"

    late = client.get(f"{base}/late", follow_redirects=False)
    assert late.status_code == 303, late
    (FOLDER / "go-on").touch()
    assert client.get(httpx.URL(base).join(late.headers["location"])).text == "late"

    # The one whose container dies gets an error, the next one a container.
    assert client.get(f"{base}/die").status_code == 502
    assert client.get(f"{base}/hello").text == "hello"

    assert client.get(at("guarded", "/hello")).status_code == 401
    made = subprocess.run(
        [sys.executable, "-m", "modal_nomad", "proxy-token", "create", "--json"], stdout=subprocess.PIPE
    )
    token = json.loads(made.stdout)
    headers = {"Modal-Key": token["token_id"], "Modal-Secret": token["token_secret"]}
    assert client.get(at("guarded", "/hello"), headers=headers).text == "hello"

    assert len({client.get(at("once")).text for _ in range(2)}) == 2

    assert client.post(at("square"), params={"x": 5}).json() == {"square": 25}
    assert client.get(at("square")).status_code == 405
    assert client.get(at("square", "/docs")).status_code == 200

    assert client.get(at("files", "/go-on")).status_code == 200
    shown = Model().show.get_web_url()
    loaded, connected, pid = client.get(str(shown)).json()
    assert connected == pid, (loaded, connected, pid)
    assert Model().double.remote(4) == 8


if __name__ == "__main__":
    main()
    print("done")
