"""Tunnels: what is sent at one end comes out at the other, and they end with what they belong to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _tunnelled
import httpx
import pytest
import websockets.sync.client
from conftest import Live, until

import modal_nomad as modal
from tests._ports import free_ports

LIMIT = 90.0


@pytest.fixture(autouse=True)
def _on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(_tunnelled.__file__).parent))


@pytest.fixture
def running(live: Live) -> Iterator[None]:
    with _tunnelled.app.run():
        yield


class Opened:
    """A call that has a tunnel."""

    def __init__(self, function: Any, folder: Path, *arguments: Any) -> None:
        self.folder = folder
        self.call = function.spawn(str(folder), *arguments)
        self.told: dict[str, Any] = json.loads(until(self._told, what="the tunnel"))
        self.tcp = (self.told["tcp"][0], self.told["tcp"][1])
        self.tls = (self.told["tls"][0], self.told["tls"][1])

    def _told(self) -> str:
        file = self.folder / "tunnel"
        return file.read_text() if file.exists() else ""

    def end(self) -> Any:
        (self.folder / "end").touch()
        (self.folder / "go").touch()
        return self.call.get(LIMIT)


@contextlib.contextmanager
def opened(function: Any, folder: Path, *arguments: Any) -> Iterator[Opened]:
    made = Opened(function, folder, *arguments)
    try:
        yield made
    finally:
        made.end()


def connect(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, timeout=LIMIT)


def trusting(live: Live) -> ssl.SSLContext:
    """As a tool on this machine trusts the embedded dispatcher's certificate."""
    return ssl.create_default_context(cafile=str(live.home / "tunnels.pem"))


def received(sock: socket.socket) -> bytes:
    pieces = []
    while piece := sock.recv(1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


def exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        assert piece, data
        data += piece
    return data


def refused(address: tuple[str, int]) -> bool:
    """Whether nothing listens there any more."""
    try:
        with connect(address):
            return False
    except ConnectionResetError:
        # It was being closed just then.
        return False
    except ConnectionRefusedError:
        return True


@pytest.mark.usefixtures("running")
def test_raw_tcp_and_tls(live: Live) -> None:
    with opened(_tunnelled.tcp, live.folder, "Echo") as tunnel:
        with connect(tunnel.tcp) as sock:
            sock.sendall(b"first ")
            assert exactly(sock, 6) == b"first "
            sock.sendall(b"second")
            # Half a connection: the other direction goes on until it is over.
            sock.shutdown(socket.SHUT_WR)
            assert received(sock) == b"second<12>"
        context = trusting(live)
        with context.wrap_socket(connect(tunnel.tls), server_hostname="localhost") as sock:
            assert sock.selected_alpn_protocol() is None
            sock.sendall(b"secret")
            assert exactly(sock, 6) == b"secret"
        # Without TLS nothing gets in where TLS is spoken.
        with connect(tunnel.tls) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"<" not in received(sock)
        # The end of the block is the tunnel's, though the container stays.
        with connect(tunnel.tcp) as sock:
            sock.sendall(b"open")
            assert exactly(sock, 4) == b"open"
            (live.folder / "end").touch()
            until((live.folder / "closed").exists)
            with pytest.raises(ConnectionResetError):
                received(sock)
        until(lambda: refused(tunnel.tcp))
        until(lambda: refused(tunnel.tls))
        assert tunnel.end() == tunnel.told["url"]
        assert tunnel.told["url"] == f"https://localhost:{tunnel.tls[1]}"


@pytest.mark.usefixtures("running")
def test_much_at_once_and_nobody_who_is_slow_is_waited_for(live: Live) -> None:
    data = os.urandom(1 << 20) * 48
    with opened(_tunnelled.tcp, live.folder, "Echo") as tunnel:
        answers: dict[int, bytes] = {}

        def ask(number: int) -> None:
            with connect(tunnel.tcp) as sock:
                sock.sendall(b"%06d" % number)
                answers[number] = exactly(sock, 6)

        # One that sends much and reads nothing is held up, and keeps nobody else waiting.
        with connect(tunnel.tcp) as slow:
            sent = 0
            slow.setblocking(False)
            stuck = 0
            while stuck < 20:
                try:
                    sent += slow.send(data[sent : sent + 65536])
                    stuck = 0
                except BlockingIOError:
                    stuck += 1
                    threading.Event().wait(0.02)
            threads = [threading.Thread(target=ask, args=(x,)) for x in range(40)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(LIMIT)
            assert answers == {x: b"%06d" % x for x in range(40)}
            slow.settimeout(LIMIT)
            # Nothing of it was lost.
            rest = threading.Thread(target=lambda: (slow.sendall(data[sent:]), slow.shutdown(socket.SHUT_WR)))
            rest.start()
            got = received(slow)
            rest.join(LIMIT)
        assert hashlib.sha256(got).digest() == hashlib.sha256(data + b"<%d>" % len(data)).digest()


@pytest.mark.usefixtures("running")
def test_https(live: Live) -> None:
    with opened(_tunnelled.pages, live.folder) as tunnel:
        host = tunnel.told["url"].removeprefix("https://")
        with httpx.Client(verify=trusting(live), timeout=LIMIT) as client:
            for number in range(3):
                assert client.get(f"{tunnel.told['url']}/{number}").text == f"/{number} {host}"
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.get(tunnel.told["url"], timeout=LIMIT)
        assert tunnel.told["tcp"] == "this tunnel speaks TLS alone: use forward(port, unencrypted=True)"


@pytest.mark.usefixtures("running")
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_curl_trusts_the_homes_certificate(live: Live) -> None:
    with opened(_tunnelled.pages, live.folder) as tunnel:
        host = tunnel.told["url"].removeprefix("https://")
        file = str(live.home / "tunnels.pem")
        done = subprocess.run(
            ["curl", "-sS", "--max-time", "60", "--cacert", file, f"{tunnel.told['url']}/by-curl"],
            capture_output=True,
            text=True,
        )
        assert done.stdout == f"/by-curl {host}", done.stderr


@pytest.mark.usefixtures("running")
def test_a_websocket(live: Live) -> None:
    with opened(_tunnelled.tcp, live.folder, "Shout") as tunnel:
        host, port = tunnel.tcp
        for url, context in (
            (tunnel.told["url"].replace("https:", "wss:"), trusting(live)),
            (f"ws://{host}:{port}", None),
        ):
            with websockets.sync.client.connect(url, ssl=context, open_timeout=LIMIT) as ws:
                for word in ("hello", "x" * 300_000):
                    ws.send(word)
                    assert ws.recv(LIMIT) == word.upper()


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="there is no redis-server here")
@pytest.mark.usefixtures("running")
def test_a_redis(live: Live) -> None:
    def ask(where: tuple[str, int], *words: str) -> str:
        command = ["redis-cli", "-h", where[0], "-p", str(where[1]), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT).stdout.strip()

    with opened(_tunnelled.redis, live.folder, free_ports(1)[0]) as tunnel:
        until(lambda: ask(tunnel.tcp, "ping") == "PONG", what="the Redis")
        assert ask(tunnel.tcp, "set", "name", "x" * 100_000) == "OK"
        assert ask(tunnel.tcp, "strlen", "name") == "100000"
        if "--tls" in subprocess.run(["redis-cli", "--help"], capture_output=True, text=True).stdout:
            trusted = ("--tls", "--cacert", str(live.home / "tunnels.pem"))
            assert ask(tunnel.tls, *trusted, "get", "name") == "x" * 100_000


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("h2", [False, True])
def test_nobody_listens(live: Live, h2: bool) -> None:
    with opened(_tunnelled.nothing, live.folder, h2) as tunnel:
        with pytest.raises(ConnectionResetError), connect(tunnel.tcp) as sock:
            sock.recv(1)
        context = trusting(live)
        context.set_alpn_protocols(["h2", "http/1.1"])
        with context.wrap_socket(connect(tunnel.tls), server_hostname="localhost") as sock:
            assert sock.selected_alpn_protocol() == ("h2" if h2 else "http/1.1")
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""


def test_a_container_that_is_killed(live: Live) -> None:
    with _tunnelled.app.run():
        tunnel = Opened(_tunnelled.tcp, live.folder, "Echo")
        with connect(tunnel.tcp) as sock:
            sock.sendall(b"open")
            assert exactly(sock, 4) == b"open"
            (live.folder / "tunnel").unlink()
            os.kill(tunnel.told["pid"], signal.SIGKILL)
            # Whoever is connected is told that this was no end.
            with pytest.raises(ConnectionResetError):
                received(sock)
        until(lambda: refused(tunnel.tcp))
        # The input runs again elsewhere, with a tunnel of its own.
        until((live.folder / "tunnel").exists)
        again = json.loads((live.folder / "tunnel").read_text())
        assert again["pid"] != tunnel.told["pid"]
        tunnel.end()


def test_a_dispatcher_that_is_killed(own: Live) -> None:
    with _tunnelled.app.run():
        tunnel = Opened(_tunnelled.tcp, own.folder, "Echo")
        context = trusting(own)
        (own.folder / "tunnel").unlink()
        own.kill()
        # The embedded engine's containers end with it; the input runs again, with a tunnel of its own.
        own.status()
        again = json.loads(until(tunnel._told, what="the next tunnel"))
        assert again["pid"] != tunnel.told["pid"]
        # Who trusts the certificate needs not do so anew.
        where = (again["tls"][0], again["tls"][1])
        with context.wrap_socket(connect(where), server_hostname="localhost") as sock:
            sock.sendall(b"secret")
            assert exactly(sock, 6) == b"secret"
        assert tunnel.end() == again["url"]


def test_limits(serve: Any, own: Live) -> None:
    where = {"tunnels.host": "127.0.0.1", "tunnels.listen": "127.0.0.1"}
    serve(**where, **{"tunnels.max_tunnels": 2, "tunnels.max_connections": 3})
    with _tunnelled.app.run():
        with pytest.raises(modal.exception.InvalidError, match="there are 2 tunnels here by now"):
            _tunnelled.many.remote()
        with opened(_tunnelled.tcp, own.folder, "Echo") as tunnel, contextlib.ExitStack() as stack:
            for _ in range(3):
                sock = stack.enter_context(connect(tunnel.tcp))
                sock.sendall(b"x")
                assert exactly(sock, 1) == b"x"
            with pytest.raises(ConnectionResetError), connect(tunnel.tcp) as more:
                more.recv(1)
            sock.shutdown(socket.SHUT_WR)
            assert received(sock) == b"<1>"

            def room() -> bool:
                with contextlib.suppress(OSError), connect(tunnel.tcp) as next_:
                    next_.sendall(b"x")
                    return next_.recv(1) == b"x"
                return False

            until(room)


def test_where_there_can_be_none(serve: Any, own: Live) -> None:
    with pytest.raises(modal.exception.InvalidError, match="inside a container alone"), modal.forward(8000):
        pass
    serve()
    with _tunnelled.app.run():
        with pytest.raises(modal.exception.InvalidError, match="name a host under"):
            _tunnelled.many.remote()
        with pytest.raises(modal.exception.InvalidError, match="may use nothing of modal"):
            _tunnelled.restricted.remote()
