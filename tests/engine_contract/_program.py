"""The programs of users that engines must run alike: a dispatcher of an engine, and a program beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests._certificates import write
from tests._ports import free_ports
from tests.engine_contract._nomad_agent import wait_until
from tests.stack._dispatcher import dispatcher

if TYPE_CHECKING:
    from tests.conftest import NomadWithConsul

TOKEN = "a token of the tests' gateways"


@contextmanager
def server_of(
    request: pytest.FixtureRequest, factory: pytest.TempPathFactory, **settings: Any
) -> Iterator[str]:
    """Give the address of a dispatcher on the engine that the fixture's parameter names.

    With ``nomad-consul`` its endpoints and tunnels are those of a gateway in a process of its own, which
    follows Consul as well.
    """
    if request.param == "nomad-consul":
        with _found_by_consul(request.getfixturevalue("nomad_with_consul"), factory, settings) as url:
            yield url
        return
    nomad = {"address": ""}
    if request.param == "nomad":
        nomad = {"address": request.getfixturevalue("nomad_address")}
    # Short: the embedded engine's sockets have short paths.
    with dispatcher(factory.mktemp("c"), nomad, engine=request.param, auth="none", **settings) as url:
        yield url


@contextmanager
def _found_by_consul(
    stack: NomadWithConsul, factory: pytest.TempPathFactory, settings: dict[str, Any]
) -> Iterator[str]:
    folder = factory.mktemp("c")
    (port,) = free_ports(1)
    web = {
        "gateway_token": TOKEN,
        "consul": True,
        "consul_check_interval": 1,
        "url": f"http://127.0.0.1:{port}/{{label}}",
    }
    tunnels = settings.pop("tunnels", {})
    # The gateway's, and not the dispatcher's.
    answering = {k: v for k, v in settings.pop("web", {}).items() if k != "listen"}
    if tunnels:
        tunnels = {**{k: v for k, v in tunnels.items() if k != "listen"}, "gateways": True}
    with (
        dispatcher(
            folder, {"address": stack.nomad}, auth="none", web=web, tunnels=tunnels, **settings
        ) as url,
        gateway(folder, stack.consul.address, [url], port, tunnels=bool(tunnels), **answering),
    ):
        yield url


@contextmanager
def gateway(
    folder: Path,
    consul: str,
    dispatchers: Sequence[str],
    port: int,
    *,
    tunnels: bool = False,
    name: str = "gateway",
    **settings: Any,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a gateway that follows Consul and dispatchers at a port of 127.0.0.1."""
    given = {
        "listen": f"http://127.0.0.1:{port}",
        "dispatchers": list(dispatchers),
        "gateway_token": TOKEN,
        **settings,
    }
    lines = [f"{k} = {json.dumps(v)}" for k, v in given.items()]
    lines += ["[consul]", f'address = "{consul}"', 'register = "modal-gateway"']
    if tunnels:
        cert, key = write(folder, "127.0.0.1")
        lines += ["[tunnels]", 'listen = "127.0.0.1"', "[tls]"]
        lines += [f'certificates = [{{ cert = "{cert}", key = "{key}" }}]']
    file, out = folder / f"{name}.toml", folder / f"{name}.log"
    file.write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "modal_nomad", "gateway", "--config", str(file)]
    with open(out, "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        wait_until(lambda: b"served at" in out.read_bytes(), process, out)
        yield process
    finally:
        process.terminate()
        process.wait(100)


def environment(server: str) -> dict[str, str]:
    """Return the variables of a program that knows of nothing but a server."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("NOMAD_", "MODAL_"))}
    return {**clean, "MODAL_SERVER_URL": server, "MODAL_CONFIG_PATH": "/nonexistent"}


def run(server: str, file: Path, *words: str, timeout: float = 100) -> subprocess.CompletedProcess[str]:
    """Run a program that knows of nothing but a server."""
    command = [sys.executable, "-W", "ignore", str(file), *words]
    return subprocess.run(command, env=environment(server), capture_output=True, text=True, timeout=timeout)
