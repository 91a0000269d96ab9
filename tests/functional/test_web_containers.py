"""Web endpoints and what else containers may be: variants, snapshots, single-use; and large bodies."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from conftest import Live

import modal_nomad as modal
from tests._web_urls import at

LIMIT = 90.0
GIB = 1 << 30


def get(url: str | None, path: str = "/") -> str:
    answer = httpx.get(at(url) + path, timeout=LIMIT)
    assert answer.status_code == 200, answer.text
    return answer.text


def maker() -> Any:
    """What makes ASGI apps; of no module, so that it travels with what uses it."""

    def answering(body: Any) -> Any:
        async def served(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                data = str(body(scope)).encode()
                fields = [(b"content-length", b"%d" % len(data))]
                await send({"type": "http.response.start", "status": 200, "headers": fields})
                await send({"type": "http.response.body", "body": data})

        return served

    return answering


@pytest.fixture
def folder(live: Live) -> Path:
    return live.folder


def test_what_is_served_is_the_class_as_it_was_deployed(live: Live) -> None:
    app, make = modal.App("served-class"), maker()

    @app.cls(serialized=True)
    class Model:
        size: int = modal.parameter(default=3)

        @modal.asgi_app()
        def show(self) -> Any:
            return make(lambda scope: f"{self.size} {scope['query_string'].decode()}")

        @modal.method()
        def ask(self) -> int:
            return self.size

    with app.run():
        # The query is the app's own.
        assert get(Model().show.get_web_url(), "/?size=5") == "3 size=5"
        # Instances with other parameters or options can be called, and have no address.
        other = Model(size=7)
        assert other.ask.remote() == 7
        assert other.show.get_web_url() is None
        large = Model.with_options(scaledown_window=60)
        assert large().ask.remote() == 3
        assert large().show.get_web_url() is None
        assert get(Model().show.get_web_url(), "/") == "3 "


def test_containers_from_a_memory_snapshot(live: Live, folder: Path) -> None:
    app, make, notes = modal.App("served-snapshot"), maker(), folder / "notes"

    @app.cls(serialized=True, enable_memory_snapshot=True, single_use_containers=True, max_containers=1)
    class Model:
        @modal.enter(snap=True)
        def load(self) -> None:
            with notes.open("a") as file:
                file.write("loaded\n")
            self.loaded = os.getpid()

        @modal.enter(snap=False)
        def connect(self) -> None:
            self.container = os.environ["MODAL_TASK_ID"]

        @modal.asgi_app()
        def show(self) -> Any:
            return make(lambda scope: f"{self.loaded} {self.container} {os.getpid()}")

    with app.run():
        url = Model().show.get_web_url()
        answers = [get(url).split() for _ in range(4)]
    # One process loaded for those that were forked from it; each request had a container of its own.
    assert len({container for _, container, _ in answers}) == 4
    assert len({pid for *_, pid in answers}) == 4
    assert len({loaded for loaded, *_ in answers}) < 4
    assert notes.read_text().count("loaded") == len({loaded for loaded, *_ in answers})


def test_single_use_containers(live: Live) -> None:
    app, make = modal.App("served-once"), maker()

    @app.function(serialized=True, single_use_containers=True, max_containers=2)
    @modal.asgi_app()
    def once() -> Any:
        return make(lambda scope: os.environ["MODAL_TASK_ID"])

    with app.run(), httpx.Client(timeout=LIMIT) as client:
        url = at(app["once"].get_web_url())
        found = [client.get(url).text for _ in range(5)]
    assert len(set(found)) == 5 and all(x.startswith("ta-") for x in found), found


# --- large bodies ---------------------------------------------------------------------------------


def counting_app() -> modal.App:
    app = modal.App("served-large")

    @app.function(serialized=True)
    @modal.asgi_app()
    def count() -> Any:
        def peak() -> int:
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        async def served(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                return
            total = 0
            while True:
                message = await receive()
                total += len(message.get("body", b""))
                if not message.get("more_body"):
                    break
            data = f"{total} {peak()}".encode()
            fields = [(b"content-length", b"%d" % len(data))]
            await send({"type": "http.response.start", "status": 200, "headers": fields})
            await send({"type": "http.response.body", "body": data})

        return served

    return app


@pytest.fixture(scope="module")
def large(_shared_home: Path) -> Iterator[tuple[str, int]]:
    app = counting_app()
    with app.run():
        parts = urlsplit(at(app["count"].get_web_url()))
        assert parts.port is not None
        yield parts.path, parts.port


def peak_of(pid: int) -> int:
    """The most memory that a process ever had, in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def send(large: tuple[str, int], fields: str, pieces: Iterator[bytes]) -> tuple[int, str]:
    path, port = large
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as sock:
        sock.sendall(
            f"POST {path}/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{fields}\r\n\r\n".encode()
        )
        for piece in pieces:
            try:
                sock.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                break
        answer = sock.makefile("rb").read().decode()
    return int(answer.split()[1]), answer.partition("\r\n\r\n")[2]


def test_a_large_body_is_streamed(live: Live, large: tuple[str, int]) -> None:
    block = bytes(1 << 20)
    _, small = send(large, "Content-Length: 1", iter([b"x"]))[1].split()
    pid = live.status()["pid"]
    before = peak_of(pid)
    size = 192 << 20
    status, text = send(large, f"Content-Length: {size}", (block for _ in range(size >> 20)))
    assert status == 200
    total, peak = text.split()
    assert int(total) == size
    # Neither the gateway nor the container had more of it at a time than a few MiB.
    assert peak_of(pid) - before < 48 << 10
    assert int(peak) - int(small) < 48 << 10


def test_a_body_may_have_four_gib_and_no_more(large: tuple[str, int]) -> None:
    assert send(large, f"Content-Length: {4 * GIB + 1}", iter([]))[0] == 413
    assert send(large, "Content-Length: 99999999999999999999", iter([]))[0] in (400, 413)
    # One that may come is not refused by its length: what is missing is waited for.
    path, port = large
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as sock:
        fields = f"Host: localhost\r\nExpect: 100-continue\r\nContent-Length: {4 * GIB}"
        sock.sendall(f"POST {path}/ HTTP/1.1\r\n{fields}\r\n\r\n".encode())
        assert sock.recv(4096).startswith(b"HTTP/1.1 100 ")
