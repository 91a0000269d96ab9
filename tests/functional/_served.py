"""A dispatcher in a thread of this process, whose containers' workers are the test itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
import threading
from collections import deque
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aiohttp import web

from modal_nomad.dispatcher import _peer
from modal_nomad.dispatcher.auth import Authenticator, WorkerTokens
from modal_nomad.dispatcher.blobs import DirectoryBlobs
from modal_nomad.dispatcher.core import Dispatcher
from modal_nomad.dispatcher.server import Server
from modal_nomad.dispatcher.settings import Settings
from modal_nomad.dispatcher.store import SqliteStore
from modal_nomad.engines.base import ContainerRequest
from modal_nomad.engines.local import LocalEngine
from modal_nomad.wire import frames
from modal_nomad.wire.ids import new_id
from modal_nomad.wire.spec import FunctionSpec
from modal_nomad.wire.transport import SyncWebSocket

T = TypeVar("T")
LIMIT = 100.0


class ScriptedEngine(LocalEngine):
    """The local engine, but a container that it starts is nobody's until a test dials in for it."""

    def __init__(self, home: Path, blobs: DirectoryBlobs) -> None:
        super().__init__(home, blobs)
        self.asked: dict[str, deque[str]] = {}
        self.news = threading.Condition()

    async def start_container(self, request: ContainerRequest) -> None:
        with self.news:
            self.asked.setdefault(request.job_id, deque()).append(request.container_id)
            self.news.notify_all()


class _Complaints(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(logging.Formatter().format(record))


class Raw:
    """A WebSocket to the dispatcher that sends whatever a test likes."""

    def __init__(self, path: Path, hello: Mapping[str, Any], token: str = "") -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.socket = SyncWebSocket.connect(f"unix://{path}", "/v1/connect", headers, timeout=LIMIT)
        self.closed: tuple[int, str] | None = None
        self.send({"t": "hello", "v": frames.PROTOCOL_VERSION, "version": "0", **hello})
        self._next = 0

    def send(self, header: Mapping[str, Any], payloads: Sequence[bytes] = ()) -> None:
        self.socket.send(frames.encode(dict(header), payloads))

    def take(self, kind: str) -> tuple[dict[str, Any], list[bytes]]:
        """Return the next frame of a type; others are passed over."""
        while True:
            data = self.socket.recv(LIMIT)
            assert data is not None, f"no {kind} frame came"
            header, payloads = frames.decode(data)
            if header["t"] == kind:
                return header, payloads

    def request(self, method: Any, args: Any) -> dict[str, Any]:
        """Return the whole answer to a request."""
        self._next += 1
        self.send({"t": "rq", "i": self._next, "m": method, "a": args})
        while True:
            header, _ = self.take("rs")
            if header["i"] == self._next:
                return header

    def drain(self) -> int | None:
        """Say a last word, read to the end, return the code with which the dispatcher closed.

        The last word is no frame at all: so the dispatcher always closes, at the latest for that.
        """
        with contextlib.suppress(OSError):
            self.socket.send(b"\xff\xff\xff\xff")
        decoder = self.socket._decoder
        code: int | None = None
        raw = self.socket._sock
        raw.settimeout(LIMIT)
        with contextlib.suppress(OSError):
            while data := raw.recv(65536):
                for opcode, payload in decoder.feed(data):
                    if opcode == 8 and len(payload) > 2:
                        (code,) = struct.unpack(">H", payload[:2])
                        self.closed = (code, payload[2:].decode())
        self.socket.close()
        return code


def job_of(job_id: str) -> dict[str, Any]:
    """Return a job that an engine takes, whose containers do nothing."""
    task = {"Name": "container", "Driver": "raw_exec", "Config": {"command": "/bin/true", "args": []}}
    return {
        "ID": job_id,
        "Type": "batch",
        "ParameterizedJob": {},
        "TaskGroups": [{"Name": "container", "Tasks": [task]}],
    }


class Served:
    """A running dispatcher.

    Attributes:
        dispatcher: to look at, on its loop only.
        complaints: errors in its log.
    """

    def __init__(self, home: Path, auth: str = "none") -> None:
        self.home = home
        self.auth = auth
        self.path = home / "d.sock"
        self.complaints = _Complaints()
        self.tokens = WorkerTokens(home)
        self._up = threading.Event()
        self._stop: asyncio.Event
        self._loop: asyncio.AbstractEventLoop
        self.dispatcher: Dispatcher
        self.engine: ScriptedEngine
        self.store: SqliteStore
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:
            self.store = SqliteStore(self.home / "store.db")
            await self.store.open()
            stack.push_async_callback(self.store.close)
            blobs = DirectoryBlobs(self.home / "blobs")
            self.engine = ScriptedEngine(self.home, blobs)
            await self.engine.start()
            stack.push_async_callback(self.engine.close)
            settings = Settings(
                listen=f"unix://{self.path}", home=str(self.home), engine="local", auth=self.auth
            )
            self.dispatcher = Dispatcher(settings, self.store, blobs, self.engine, self.tokens, "0" * 64)
            await self.dispatcher.start()
            stack.push_async_callback(self.dispatcher.close)
            server = Server(self.dispatcher, Authenticator(self.auth, self.store, self.tokens), {})
            runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.UnixSite(runner, str(self.path)).start()
            self._up.set()
            await self._stop.wait()

    def do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the dispatcher's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(LIMIT)

    def client(self) -> Raw:
        """Return a client that has said hello."""
        client = Raw(self.path, {"role": "client", "client": new_id("cl")})
        client.take("welcome")
        return client

    def function(self, client: Raw, **options: Any) -> tuple[str, str, str]:
        """Publish an ephemeral App with one Function; returns the ids of App, Function and job."""
        job_id = new_id("fu")
        spec = FunctionSpec(app="fuzz", name="f", module="m", qualname="f", **options).to_dict()
        args = {"state": "ephemeral", "functions": [{"spec": spec, "job": job_of(job_id)}]}
        answer = client.request("app.publish", args)
        assert "e" not in answer, answer
        return answer["v"]["app_id"], answer["v"]["functions"]["f"], job_id

    def worker(self, job_id: str) -> Raw:
        """Dial in as the next container that was started of a job, and say that it is ready."""
        engine = self.engine
        with engine.news:
            assert engine.news.wait_for(lambda: engine.asked.get(job_id), LIMIT), "no container was started"
            container = engine.asked[job_id].popleft()
        hello = {"role": "worker", "container": container, "slots": 1, "pid": 1, "leases": []}
        worker = Raw(self.path, hello, self.tokens.mint(container))
        worker.take("welcome")
        worker.send({"t": "ready"})
        return worker

    @contextlib.contextmanager
    def running(self) -> Iterator[Served]:
        logger = logging.getLogger()
        logger.addHandler(self.complaints)
        with pytest.MonkeyPatch.context() as patch:
            # Who reads only when a test does answers no ping in time, and would be taken for dead.
            patch.setattr(_peer, "_BEAT_SECONDS", 3600.0)
            self._thread.start()
            assert self._up.wait(LIMIT)
            try:
                yield self
            finally:
                self._loop.call_soon_threadsafe(self._stop.set)
                self._thread.join(LIMIT)
                logger.removeHandler(self.complaints)
