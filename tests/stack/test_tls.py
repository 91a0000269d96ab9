"""TLS everywhere: Nomad's API, the dispatcher, clients and workers, under an authority of one's own."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from modal_nomad.hashicorp.nomad import NomadClient, NomadSettings, NomadUnavailable
from tests._ports import free_ports
from tests.conftest import NO_NOMAD
from tests.engine_contract._nomad_agent import (
    agent_config,
    agent_process,
    nomad_binary,
    ready_nodes,
    wait_until,
)
from tests.stack._dispatcher import dispatcher, modal_nomad


@dataclass(frozen=True)
class Cluster:
    url: str
    nomad: str
    ca: str
    cert: str
    key: str


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    binary = nomad_binary()
    if binary is None:
        pytest.skip(NO_NOMAD)
    directory = tmp_path_factory.mktemp("tls")
    for words in (("ca", "create"), ("cert", "create", "-server"), ("cert", "create", "-cli")):
        subprocess.run([binary, "tls", *words], cwd=directory, check=True, capture_output=True)
    ca, cert, key = (
        str(directory / name)
        for name in ("nomad-agent-ca.pem", "global-server-nomad.pem", "global-server-nomad-key.pem")
    )
    http, rpc, serf = free_ports(3)
    nomad = f"https://127.0.0.1:{http}"
    config = agent_config(
        str(directory),
        http,
        rpc,
        serf,
        tls={"http": True, "ca_file": ca, "cert_file": cert, "key_file": key, "verify_https_client": True},
        # On a real node the authority stands in the system's store, where Nomad's downloads look.
        client={
            "artifact": {"set_environment_variables": "SSL_CERT_FILE", "disable_filesystem_isolation": True}
        },
    )
    own = (str(directory / "global-cli-nomad.pem"), str(directory / "global-cli-nomad-key.pem"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", ca)
        agent = agent_process(binary, str(directory), config, "-dev")
        with agent as running:
            patch.delenv("SSL_CERT_FILE")
            wait_until(lambda: ready_nodes(nomad, ca=ca, cert=own), *running)
            variables = {
                "NOMAD_ADDR": nomad,
                "NOMAD_CACERT": ca,
                "NOMAD_CLIENT_CERT": own[0],
                "NOMAD_CLIENT_KEY": own[1],
            }
            with dispatcher(
                directory,
                {},
                env=variables,
                auth="none",
                listen="https://127.0.0.1:{port}",
                tls_cert=cert,
                tls_key=key,
            ) as url:
                yield Cluster(url, nomad, ca, *own)


def test_a_function_runs_with_every_connection_encrypted(cluster: Cluster, tmp_path: Path) -> None:
    done = modal_nomad(tmp_path, cluster.url, "run", "app.py", "--count", "20", MODAL_CA_BUNDLE=cluster.ca)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len([line for line in done.stdout.splitlines() if " in " in line]) == 20, done.stdout


BLOCKED = """
import os, socket
import modal

app = modal.App("blocked")

@app.function(block_network=True)
def look(port: int) -> list:
    with modal.Dict.ephemeral() as kept:
        kept["port"] = port
        with socket.socket() as sock:
            reached = sock.connect_ex(("127.0.0.1", kept["port"])) == 0
    return [reached, os.listdir("/proc/self/fd") != []]

@app.local_entrypoint()
def main(port: int):
    print(look.remote(port))
"""


def test_the_relay_of_a_blocked_container_encrypts_too(cluster: Cluster, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as host:
        port = str(host.getsockname()[1])
        command = ("run", "app.py", "--port", port)
        done = modal_nomad(tmp_path, cluster.url, *command, file=BLOCKED, MODAL_CA_BUNDLE=cluster.ca)
    assert "[False, True]" in done.stdout, done.stdout + done.stderr


def test_an_unknown_authority_is_refused_in_one_line(cluster: Cluster, tmp_path: Path) -> None:
    done = modal_nomad(tmp_path, cluster.url, "app", "list")
    assert done.returncode == 1
    assert "is not trusted" in done.stderr and "MODAL_CA_BUNDLE" in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    done = modal_nomad(tmp_path, cluster.url, "app", "list", MODAL_CA_BUNDLE="/nonexistent.pem")
    assert done.returncode == 1 and "MODAL_CA_BUNDLE=/nonexistent.pem" in done.stderr, done.stderr


@pytest.mark.parametrize("missing", ["ca_file", "client_cert"])
async def test_nomads_certificate_is_checked_and_ours_asked_for(cluster: Cluster, missing: str) -> None:
    files = {"ca_file": cluster.ca, "client_cert": cluster.cert, "client_key": cluster.key}
    good = NomadClient(NomadSettings(cluster.nomad, **files))
    assert await good.leader() and await good.jwks()
    await good.close()
    del files[missing]
    bad = NomadClient(NomadSettings(cluster.nomad, **files))
    # Both ways to Nomad: python-nomad's and aiohttp's.
    for ask in (bad.leader, bad.jwks):
        with pytest.raises(NomadUnavailable):
            await ask()
    await bad.close()
