"""A user's module with an endpoint of every kind.

Containers see their Image's packages only, and tests ask no index: the packages of the tests' own environment
stand in for those of an Image here, for the functions that name it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import modal_nomad as modal

app = modal.App("served")

with_packages = modal.Image.debian_slim()
PACKAGES = os.environ.get("TEST_PACKAGES", "")
if PACKAGES:
    sys.path.append(PACKAGES)

packages = {
    "TEST_PACKAGES": next((x for x in sys.path if x.endswith("site-packages")), ""),
}


def port() -> int:
    """Decided where the module is first imported; in the container the job says it."""
    if "TEST_PORT" in os.environ:
        return int(os.environ["TEST_PORT"])
    from tests._ports import free_ports

    return free_ports(1)[0]


PORT = port()


async def answer(send: Any, status: int, body: bytes, *fields: tuple[bytes, bytes]) -> None:
    headers = [(b"content-length", b"%d" % len(body)), *fields]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def stream(send: Any, parts: Any, *fields: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": list(fields)})
    async for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


class Raw:
    """An ASGI app by hand: what it gets and does is known to the byte."""

    def __init__(self) -> None:
        self.started = 0
        self.cancelled = 0
        self.gate = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.lifespan(scope, receive, send)
        elif scope["type"] == "websocket":
            await self.websocket(receive, send)
        else:
            await getattr(self, "at_" + scope["path"].rpartition("/")[2].replace("-", "_"))(
                scope, receive, send
            )

    async def lifespan(self, scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        scope["state"]["made"] = ["in startup"]
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        print("lifespan ended", flush=True)
        await send({"type": "lifespan.shutdown.complete"})

    async def websocket(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept", "subprotocol": "shout"})
        while (message := await receive())["type"] == "websocket.receive":
            if message.get("text") is not None:
                await send({"type": "websocket.send", "text": message["text"].upper()})
            else:
                await send({"type": "websocket.send", "bytes": message["bytes"][::-1]})
        assert message["type"] == "websocket.disconnect"
        self.cancelled += 1

    async def body(self, receive: Any) -> bytes:
        found = b""
        while True:
            message = await receive()
            found += message.get("body", b"")
            if not message.get("more_body"):
                return found

    async def at_(self, scope: Any, receive: Any, send: Any) -> None:
        lines = [
            f"{scope['method']} {scope['path']} {scope['query_string'].decode()}",
            f"root {scope.get('root_path', '')}",
            f"client {scope['client'][0]} {scope['scheme']}",
            f"state {scope['state']['made'][0]}",
            f"input {modal.current_input_id()}",
            *(f"{k.decode('latin-1')}: {v.decode('latin-1')}" for k, v in scope["headers"]),
        ]
        scope["state"]["made"] = ["left by another request"]
        await answer(send, 200, "\n".join(lines).encode("latin-1"))

    async def at_echo(self, scope: Any, receive: Any, send: Any) -> None:
        await answer(send, 200, await self.body(receive))

    async def at_stream(self, scope: Any, receive: Any, send: Any) -> None:
        """Each part is sent only when the client has answered the one before, by another request."""

        async def parts() -> Any:
            for number in range(3):
                self.gate.clear()
                yield f"data: {number}\n\n".encode()
                await self.gate.wait()

        await stream(send, parts(), (b"content-type", b"text/event-stream"))

    async def at_next(self, scope: Any, receive: Any, send: Any) -> None:
        self.gate.set()
        await answer(send, 204, b"")

    async def at_both_ways(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            message = await receive()
            more = message.get("more_body", False)
            await send({"type": "http.response.body", "body": message.get("body", b""), "more_body": more})
            if not more:
                return

    async def at_large(self, scope: Any, receive: Any, send: Any) -> None:
        async def parts() -> Any:
            for _ in range(64):
                yield b"x" * (1 << 18)

        await stream(send, parts())

    async def at_boom(self, scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("words that nobody outside is to see")

    async def at_wait(self, scope: Any, receive: Any, send: Any) -> None:
        self.started += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled += 1

    async def at_counts(self, scope: Any, receive: Any, send: Any) -> None:
        await answer(send, 200, f"{self.started} {self.cancelled} {os.getpid()}".encode())

    async def at_die(self, scope: Any, receive: Any, send: Any) -> None:
        os._exit(9)

    async def at_fields(self, scope: Any, receive: Any, send: Any) -> None:
        many = [(b"x-long", b"y" * 20_000), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
        await answer(send, 200, b"", *many)


@app.function(max_containers=1)
@modal.concurrent(max_inputs=50)
@modal.asgi_app()
def raw() -> Any:
    return Raw()


@app.function(max_containers=1)
@modal.asgi_app()
def one_at_a_time() -> Any:
    return Raw()


@app.function(timeout=1)
@modal.asgi_app(label="impatient")
def short() -> Any:
    return Raw()


@app.function()
@modal.wsgi_app()
def wsgi() -> Any:
    def served(environ: Any, start_response: Any) -> Any:
        body = environ["wsgi.input"].read()
        start_response("200 OK", [("X-Kind", "wsgi")])
        text = f"{environ['REQUEST_METHOD']} {environ['SCRIPT_NAME']} {environ['PATH_INFO']} {len(body)}"
        return [text.encode()]

    return served


@app.function(max_containers=1)
@modal.wsgi_app()
def endless() -> Any:
    closed: list[str] = []

    def parts() -> Any:
        try:
            while True:
                yield b"x" * 100_000
        finally:
            closed.append("closed")

    def served(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return [repr(closed).encode()] if environ["PATH_INFO"] == "/closed" else parts()

    return served


running: list[str] = []
cut: list[str] = []


@app.function(env=packages, max_containers=1)
@modal.fastapi_endpoint()
def sync(file: str = "") -> dict[str, Any]:
    running.append(file)
    try:
        if file:
            Path(file).touch()
            while True:
                time.sleep(0.01)
    except BaseException as error:
        cut.append(type(error).__name__)
        raise
    finally:
        seen = len(running)
        running.remove(file)
    return {"running": seen, "cut": cut}


@app.function(env=packages, timeout=1)
@modal.fastapi_endpoint()
def unstoppable(file: str) -> None:
    while not Path(file).exists():
        with suppress(BaseException):
            time.sleep(0.01)


@app.function(env=packages)
@modal.wsgi_app()
def flask() -> Any:
    import flask as package

    made = package.Flask("made")
    made.add_url_rule("/<name>", "hello", lambda name: {"hello": name})
    return made


@app.function(env=packages)
@modal.fastapi_endpoint(method="POST", docs=True)
def square(x: int) -> dict[str, int]:
    return {"square": x * x}


@app.function()
@modal.fastapi_endpoint()
def lacking() -> None: ...


@app.function(env={"TEST_PORT": str(PORT)}, max_containers=1)
@modal.concurrent(max_inputs=20)
@modal.web_server(PORT, startup_timeout=60)
def server() -> None:
    text = (
        "import http.server\n"
        "class Handler(http.server.SimpleHTTPRequestHandler):\n"
        "    protocol_version = 'HTTP/1.1'\n"
        "    def do_GET(self):\n"
        "        if self.path == '/garbage':\n"
        "            self.wfile.write(b'this is no HTTP\\r\\n\\r\\n')\n"
        "            self.close_connection = True\n"
        "            return\n"
        "        body = (self.path + ' ' + str(sorted(self.headers.keys()))).encode()\n"
        "        self.send_response(200)\n"
        "        self.send_header('Content-Length', str(len(body)))\n"
        "        self.end_headers()\n"
        "        self.wfile.write(body)\n"
        f"http.server.ThreadingHTTPServer(('127.0.0.1', {PORT}), Handler).serve_forever()\n"
    )
    subprocess.Popen([sys.executable, "-c", text])


@app.function()
@modal.web_server(1, startup_timeout=0.1)
def nobody_listens() -> None: ...


@app.cls(env=packages)
class Model:
    size: int = modal.parameter(default=3)

    @modal.enter()
    async def load(self) -> None:
        self.loop = asyncio.get_running_loop()

    @modal.fastapi_endpoint()
    async def show(self) -> dict[str, Any]:
        return {"size": self.size, "one loop": self.loop is asyncio.get_running_loop()}

    @modal.fastapi_endpoint(requires_proxy_auth=True)
    def secret(self) -> str:
        return "open"

    @modal.method()
    def double(self, x: int) -> int:
        return 2 * x


async def no_startup(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})


@app.function()
@modal.asgi_app()
def unstarted() -> Any:
    return no_startup


@app.function(scaledown_window=0.5)
@modal.asgi_app()
def brief() -> Any:
    return Raw()
