"""Tunnels through gateways in processes of their own: at the same ports of all of them."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _tunnelled
import pytest
from _gateways import TOKEN, Gateways, Running, Serve, gateways
from conftest import Live, until
from test_tunnels import connect, exactly, opened, received, refused

import modal_nomad as modal
from tests._certificates import write
from tests._ports import free_ports, free_range

HOSTS = ("127.0.0.1", "127.0.0.2")


@pytest.fixture(autouse=True)
def _on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(_tunnelled.__file__).parent))


@pytest.fixture
def pair(own: Live, serve: Serve) -> Iterator[Gateways]:
    low, high = free_range(6)
    settings = {
        "tunnels.host": "tunnels.test",
        "tunnels.ports": f"{low}-{high}",
        "tunnels.gateways": True,
    }
    serve(**{"web.gateway_token": TOKEN, **settings})
    with gateways(own.folder, f"unix://{own.home}/d.sock") as made:
        yield made


def start(pair: Gateways, host: str, cert: str, key: str, **settings: Any) -> Running:
    tables = (
        f'[tunnels]\nlisten = "{host}"\n'
        f'[tls]\ninterval = 0.05\ncertificates = [{{ cert = "{cert}", key = "{key}" }}]'
    )
    return pair.start(tables=tables, **settings)


def echoed(where: tuple[str, int], context: ssl.SSLContext | None = None) -> bool:
    with connect(where) as plain:
        sock = plain
        if context is not None:
            sock = context.wrap_socket(plain, server_hostname="tunnels.test")
        with sock:
            sock.sendall(b"hello")
            return exactly(sock, 5) == b"hello"


def test_any_gateway_will_do(own: Live, pair: Gateways) -> None:
    cert, key = write(own.folder, "tunnels.test")
    trusting = ssl.create_default_context(cafile=cert)
    one, _ = (start(pair, x, cert, key) for x in HOSTS)
    with _tunnelled.app.run(), opened(_tunnelled.tcp, own.folder, "Echo") as tunnel:
        (host, port), (plain_host, plain_port) = tunnel.tls, tunnel.tcp
        assert host == plain_host == "tunnels.test" and tunnel.told["url"] == f"https://tunnels.test:{port}"
        for address in HOSTS:
            assert echoed((address, plain_port)) and echoed((address, port), trusting)
        with connect((HOSTS[0], plain_port)) as there, connect((HOSTS[1], plain_port)) as here:
            for sock in (there, here):
                sock.sendall(b"first")
                assert exactly(sock, 5) == b"first"
            one.kill()
            with contextlib.suppress(ConnectionResetError):
                assert received(there) == b""
            # The same port of the other goes on, and its connections never end.
            here.sendall(b"second")
            assert exactly(here, 6) == b"second"
            assert echoed((HOSTS[1], plain_port)) and echoed((HOSTS[1], port), trusting)
            here.shutdown(socket.SHUT_WR)
            assert received(here) == b"<11>"
        # One that starts later has the tunnels that there are.
        cert, key = write(own.folder, "tunnels.test")
        start(pair, HOSTS[0], cert, key)
        until(lambda: not refused((HOSTS[0], port)), what="the tunnel at the new gateway")
        renewed = ssl.create_default_context(cafile=cert)
        assert echoed((HOSTS[0], plain_port)) and echoed((HOSTS[0], port), renewed)

        # A certificate that is written anew is shown without a restart.
        def shown() -> bool:
            try:
                return echoed((HOSTS[1], port), renewed)
            except ssl.SSLError:
                return False

        until(shown, what="the renewed certificate")
    for address in HOSTS:
        until(lambda address=address: refused((address, plain_port)))  # type: ignore[misc]


def test_processes_that_share_their_ports_and_a_port_that_nobody_has(own: Live, pair: Gateways) -> None:
    # Of two processes of one gateway the kernel chooses one for each connection.
    cert, key = write(own.folder, "tunnels.test")
    with _tunnelled.app.run():
        log = start(pair, "127.0.0.1", cert, key, processes=2).log
        until(lambda: log.read_text().count("connected with") == 2, what="both processes")
        with opened(_tunnelled.nothing, own.folder, False) as tunnel:
            for _ in range(8):
                with pytest.raises(ConnectionResetError), connect(("127.0.0.1", tunnel.tcp[1])) as sock:
                    sock.recv(1)


def test_where_no_gateway_can(own: Live, serve: Serve) -> None:
    taken = free_ports(1)[0]
    ports = f"{taken}-{taken}"
    settings = {"tunnels.host": "tunnels.test", "tunnels.ports": ports, "tunnels.gateways": True}
    serve(**{"web.gateway_token": TOKEN, **settings})
    with gateways(own.folder, f"unix://{own.home}/d.sock") as pair, _tunnelled.app.run():
        cert, key = write(own.folder, "tunnels.test")
        with socket.create_server(("127.0.0.1", taken)):
            start(pair, "127.0.0.1", cert, key)
            with pytest.raises(modal.exception.InvalidError, match="no gateway can listen for the tunnel"):
                _tunnelled.many.remote()
