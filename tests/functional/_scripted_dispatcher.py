"""A dispatcher that does what a test tells it, for real worker processes on a Unix socket."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

from modal_nomad.wire import frames
from modal_nomad.wire.serialization import dumps, loads, unpack_exception

PATIENCE = 100.0
"""Against hanging alone; less than what a test may take in all."""


class Worker:
    """One worker process and the frames it sends."""

    def __init__(self, home: Path, spec: dict[str, Any], code: str) -> None:
        self.home = home
        self.spec = {
            "app": "test",
            "name": "f",
            "module": "usermod",
            "qualname": "f",
            "file": "usermod.py",
            **spec,
        }
        self.leased: dict[int, bytes] = {}
        self.frames: asyncio.Queue[tuple[dict[str, Any], list[bytes]]] = asyncio.Queue()
        self.blobs: dict[str, bytes] = {}
        self.logs = {1: b"", 2: b""}
        self._logged = asyncio.Event()
        self.draining = asyncio.Event()
        self.order: list[str] = []
        self.refuse: list[str] | None = None
        self.hello: dict[str, Any] = {}
        self.ws: web.WebSocketResponse | None = None
        self.process: asyncio.subprocess.Process
        (home / "code").mkdir()
        (home / "code" / "usermod.py").write_text(code)
        self.socket = home / "d.sock"

    async def start(self, *command: str, **environ: str) -> None:
        """Run the worker, or another program that starts one."""
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/v1/connect", self._connect)
        app.router.add_put("/v1/blobs/{sha}", self._put)
        app.router.add_get("/v1/blobs/{sha}", self._get)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.socket)).start()
        environ = {
            **os.environ,
            **environ,
            "MODAL_IS_REMOTE": "1",
            "MODAL_SERVER_URL": f"unix://{self.socket}",
            "MODAL_TASK_ID": "ta-test",
            "MODAL_WORKER_TOKEN": "secret",
            "MODAL_CODE_DIR": str(self.home / "code"),
        }
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(command or ("-m", "modal_nomad.worker")),
            env=environ,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self.output = asyncio.create_task(self.process.communicate())

    async def stop(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.output
        await self._runner.cleanup()

    async def _connect(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != "Bearer secret":
            return web.Response(status=401)
        ws = web.WebSocketResponse(max_msg_size=0)
        await ws.prepare(request)
        async for message in ws:
            if message.type is not WSMsgType.BINARY:
                break
            header, payloads = frames.decode(message.data)
            if header["t"] == "hello":
                self.hello = header
                if self.refuse is not None:
                    await ws.send_bytes(frames.encode({"t": "refused", "e": self.refuse}))
                    continue
                self.ws = ws
                welcome = {"t": "welcome", "v": 1, "spec": self.spec, "function_id": "fu-1", "app_id": "ap-1"}
                await ws.send_bytes(frames.encode({**welcome, "environment": "main"}))
            elif header["t"] == "log":
                self.logs[header["s"]] += payloads[0]
                self.order.append("log")
                self._logged.set()
            elif header["t"] == "drain":
                # May come at any moment once a worker was told to end.
                self.order.append("drain")
                self.draining.set()
            elif header["t"] != "hb":
                self.order.append(header["t"])
                self.frames.put_nowait((header, payloads))
        return ws

    async def _put(self, request: web.Request) -> web.Response:
        data = await request.read()
        sha = request.match_info["sha"]
        assert hashlib.sha256(data).hexdigest() == sha
        self.blobs[sha] = data
        return web.Response()

    async def _get(self, request: web.Request) -> web.Response:
        data = self.blobs.get(request.match_info["sha"])
        return web.Response(status=404) if data is None else web.Response(body=data)

    async def next(self, kind: str) -> tuple[dict[str, Any], list[bytes]]:
        """Return the next frame, which must be of this kind."""
        header, payloads = await asyncio.wait_for(self.frames.get(), PATIENCE)
        assert header["t"] == kind, header
        return header, payloads

    async def send(self, header: dict[str, Any], payloads: list[bytes] | None = None) -> None:
        assert self.ws is not None
        await self.ws.send_bytes(frames.encode(header, payloads or []))

    async def lease(self, first: int, *arguments: tuple[Any, ...]) -> None:
        """Lease inputs numbered from ``first``."""
        numbers = list(range(first, first + len(arguments)))
        calls = ["fc-call"] * len(numbers)
        payloads = [dumps((a, {})) for a in arguments]
        self.leased.update(zip(numbers, payloads, strict=True))
        await self.send({"t": "run", "x": numbers, "c": calls, "n": numbers}, payloads)

    async def outputs(self, count: int) -> dict[int, tuple[int, Any]]:
        """Return the next ``count`` outputs: lease to (status, value or exception or text)."""
        found: dict[int, tuple[int, Any]] = {}
        while len(found) < count:
            header, payloads = await asyncio.wait_for(self.frames.get(), PATIENCE)
            if header["t"] == "back":
                # On a slow machine any input may be the long one that others do not wait behind.
                back = header["x"]
                calls = ["fc-call"] * len(back)
                await self.send(
                    {"t": "run", "x": back, "c": calls, "n": back}, [self.leased[x] for x in back]
                )
                continue
            assert header["t"] == "done", header
            n = len(header["x"])
            flags, statuses = header.get("f", [0] * n), header.get("s", [0] * n)
            for lease, status, flag, data in zip(header["x"], statuses, flags, payloads, strict=True):
                assert lease not in found, "an input was answered twice"
                if flag:
                    data = self.blobs[data.decode()]
                value = (
                    loads(data) if status == 0 else unpack_exception(data) if status == 1 else data.decode()
                )
                found[lease] = (status, value)
        return found

    async def logged(self, text: bytes, times: int = 1) -> None:
        """Wait until stdout holds ``text``, so many times."""

        async def read() -> None:
            while self.logs[1].count(text) < times:
                self._logged.clear()
                await self._logged.wait()

        await asyncio.wait_for(read(), PATIENCE)

    async def exit_code(self) -> int:
        await asyncio.wait_for(asyncio.shield(self.output), PATIENCE)
        assert self.process.returncode is not None
        return self.process.returncode


@asynccontextmanager
async def worker(
    home: Path, code: str, *, ready: bool = True, environ: dict[str, str] | None = None, **spec: Any
) -> AsyncIterator[Worker]:
    """A running worker of a module whose function is ``f``."""
    one = Worker(home, spec, code)
    await one.start(**(environ or {}))
    try:
        if ready:
            await one.next("ready")
        yield one
    finally:
        await one.stop()


async def of_every_kind(
    home: Path, kinds: Iterable[tuple[Any, ...]], case: Callable[..., Awaitable[None]]
) -> None:
    """Run a case that waits for time to pass with every kind of worker at once: it passes for all of them."""
    kinds = list(kinds)
    folders = [home / str(number) for number in range(len(kinds))]
    for folder in folders:
        folder.mkdir()
    cases = (case(folder, *kind) for folder, kind in zip(folders, kinds, strict=True))
    for kind, found in zip(kinds, await asyncio.gather(*cases, return_exceptions=True), strict=True):
        if found is not None:
            raise AssertionError(f"of the kind {kind}") from found
