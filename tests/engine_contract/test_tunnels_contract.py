"""Tunnels must behave alike on every engine: the container dials in, whatever the network lets in."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests._ports import free_ports, free_range
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

# What the pages show of tunnels: a Flask app behind HTTPS, TCP without it, a server of the whole container.
PAGES = """
import json
import os
import socket
import ssl
import sys
import threading
import time
import urllib.request

import modal_nomad as modal

sys.path.append(os.environ["TEST_PACKAGES"])
ONE, OTHER, KEPT = json.loads(os.environ["TEST_PORTS"])
app = modal.App("contract-tunnel-pages")
told = {name: os.environ[name] for name in ("TEST_PACKAGES", "TEST_PORTS")}

def echo(port):
    def handle(conn):
        with conn:
            while data := conn.recv(1024):
                conn.sendall(data)

    with socket.create_server(("0.0.0.0", port)) as sock:
        while True:
            threading.Thread(target=handle, args=(sock.accept()[0],), daemon=True).start()

@app.function(env=told)
def run_app(queue):
    from flask import Flask

    flask_app = Flask("pages")
    flask_app.add_url_rule("/", view_func=lambda: "Hello from Flask")
    with modal.forward(ONE) as tunnel:
        refused = ""
        try:
            tunnel.tcp_socket
        except modal.exception.InvalidError as error:
            refused = str(error)
        queue.put((tunnel, refused))
        flask_app.run("0.0.0.0", ONE)

@app.function(env=told)
def tcp_tunnel(queue):
    with modal.forward(port=OTHER, unencrypted=True, client=None) as tunnel:
        queue.put(tunnel)
        echo(OTHER)

@app.cls(env=told)
class Kept:
    @modal.enter()
    def begin(self):
        threading.Thread(target=echo, args=(KEPT,), daemon=True).start()
        self.entered = modal.forward(KEPT, unencrypted=True)
        self.tunnel = self.entered.__enter__()

    @modal.method()
    def where(self):
        return self.tunnel

    @modal.exit()
    def end(self):
        self.entered.__exit__(None, None, None)

def said(where):
    while True:
        with socket.create_connection(where, timeout=60) as sock:
            try:
                sock.sendall(b"words")
                return sock.makefile("rb").read(5)
            except ConnectionError:
                # Nobody listens there yet.
                time.sleep(0.05)

def page(url):
    context = ssl._create_unverified_context()
    while True:
        try:
            return urllib.request.urlopen(url, timeout=60, context=context).read()
        except OSError:
            time.sleep(0.05)

if __name__ == "__main__":
    for port, why in ((0, "1 to"), (65536, "1 to"), ("8", "1 to"), (True, "1 to"), (8, "inside a container")):
        try:
            modal.forward(port).__enter__()
        except modal.exception.InvalidError as error:
            assert why in str(error), error
        else:
            raise AssertionError(port)
    with modal.Queue.ephemeral() as queue, app.run():
        call = run_app.spawn(queue)
        tunnel, refused = queue.get(timeout=90)
        assert "unencrypted=True" in refused
        assert tunnel.url == "https://%s:%d" % tunnel.tls_socket
        assert (tunnel.unencrypted_host, tunnel.unencrypted_port) == ("", 0)
        assert page(tunnel.url) == b"Hello from Flask"
        call.cancel(terminate_containers=True)
        tcp_tunnel.spawn(queue)
        tunnel = queue.get(timeout=90)
        assert tunnel.tcp_socket == (tunnel.unencrypted_host, tunnel.unencrypted_port)
        assert said(tunnel.tcp_socket) == b"words"
        kept = Kept()
        first, second = kept.where.remote(), kept.where.remote()
        assert first == second and said(first.tcp_socket) == b"words"
    print("done")
"""


@pytest.fixture(params=["local", "nomad", "nomad-consul"], scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    low, high = free_range(8)
    tunnels = {"host": "127.0.0.1", "listen": "127.0.0.1", "ports": f"{low}-{high}"}
    with server_of(request, tmp_path_factory, tunnels=tunnels) as url:
        yield url


def test_tunnels(server: str, tmp_path: Path) -> None:
    file = tmp_path / "contract_tunnel.py"
    file.write_text(PROGRAM)
    done = run(server, file, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["done"]


@pytest.mark.parametrize("server", ["local", "nomad-consul"], indirect=True)
def test_programs_of_the_pages(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "contract_tunnel_pages.py"
    file.write_text(PAGES)
    monkeypatch.setenv("TEST_PACKAGES", sysconfig.get_paths()["purelib"])
    monkeypatch.setenv("TEST_PORTS", json.dumps(free_ports(3)))
    done = run(server, file, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "done"
