"""Tunnels must behave alike on every engine: the container dials in, whatever the network lets in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine_contract._program import run, server_of

PROGRAM = """
import socket
import ssl
import threading

import modal_nomad as modal

app = modal.App("contract-tunnel")

def shout(sock):
    with sock:
        while data := sock.recv(1000):
            sock.sendall(data.upper())
        sock.sendall(b"<end>")

@app.function()
def serve(queue):
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    with (
        modal.forward(port, unencrypted=True) as tunnel,
        modal.forward(port) as secure,
        modal.forward(port, h2_enabled=True) as h2,
    ):
        queue.put((tunnel, secure, h2))
        for _ in range(5):
            threading.Thread(target=shout, args=(server.accept()[0],)).start()
        queue.get(partition="end")
    return tunnel.tcp_socket

def over_tls(tunnel):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    with socket.create_connection(tunnel.tls_socket, timeout=60) as plain:
        with context.wrap_socket(plain, server_hostname=tunnel.host) as sock:
            sock.sendall(b"word")
            assert sock.read(4) == b"WORD"
            return sock.selected_alpn_protocol()

if __name__ == "__main__":
    with modal.Queue.ephemeral() as queue, app.run():
        call = serve.spawn(queue)
        tunnel, secure, h2 = queue.get(timeout=90)
        assert tunnel.url.startswith("https://127.0.0.1:")
        for word in (b"one", b"two", b"three"):
            with socket.create_connection(tunnel.tcp_socket, timeout=60) as sock:
                sock.sendall(word)
                sock.shutdown(socket.SHUT_WR)
                assert sock.makefile("rb").read() == word.upper() + b"<end>"
        assert over_tls(secure) != "h2" and over_tls(h2) == "h2"
        queue.put(True, partition="end")
        assert call.get(60) == tunnel.tcp_socket
    print("done")
"""


@pytest.fixture(params=["local", "nomad"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server_of(request, tmp_path_factory, tunnels={"host": "127.0.0.1", "listen": "127.0.0.1"}) as url:
        yield url


def test_tunnels(server: str, tmp_path: Path) -> None:
    file = tmp_path / "contract_tunnel.py"
    file.write_text(PROGRAM)
    done = run(server, file, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["done"]
