"""Nomad with ACLs on: the dispatcher under its own policy, callers under theirs."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engine_contract._nomad_agent import nomad_agent, nomad_binary
from tests.stack._dispatcher import dispatcher, get, modal_nomad, put

POLICIES = Path(__file__).parents[2] / "jobspecs/policies"
READER = 'namespace "default" { policy = "read" }'


@dataclass(frozen=True)
class Cluster:
    url: str
    nomad: str
    management: str
    deployer: str
    reader: str


def _token(address: str, management: str, name: str, rules: str) -> str:
    put(address, f"/v1/acl/policy/{name}", {"Name": name, "Rules": rules}, management)
    body = {"Name": name, "Type": "client", "Policies": [name]}
    return str(put(address, "/v1/acl/token", body, management)["SecretID"])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    binary = nomad_binary()
    if binary is None:
        pytest.skip("no `nomad` binary on PATH")
    management = str(uuid.uuid4())
    with nomad_agent(binary, token=management) as nomad:
        own, deployer = (
            _token(nomad, management, name, (POLICIES / f"{name}.policy.hcl").read_text())
            for name in ("dispatcher", "deployer")
        )
        reader = _token(nomad, management, "reader", READER)
        directory = tmp_path_factory.mktemp("acl")
        with dispatcher(directory, {"address": nomad, "token": own}, auth="nomad") as url:
            yield Cluster(url, nomad, management, deployer, reader)


def test_who_may_submit_jobs_may_run(cluster: Cluster, tmp_path: Path) -> None:
    done = modal_nomad(
        tmp_path, cluster.url, "run", "app.py", "--count", "20", MODAL_TOKEN_SECRET=cluster.deployer
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len([line for line in done.stdout.splitlines() if " in " in line]) == 20, done.stdout


def test_who_may_not_submit_jobs_is_told_so_in_one_line(cluster: Cluster, tmp_path: Path) -> None:
    for command in ("run", "deploy"):
        done = modal_nomad(tmp_path, cluster.url, command, "app.py", MODAL_TOKEN_SECRET=cluster.reader)
        assert done.returncode == 1
        assert "Permission denied" in done.stderr and "submit-job" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize("token", ["", "no-token", "5a1c0b1e-0000-4000-8000-000000000000", "a:b"])
def test_who_is_nobody_is_refused_in_one_line(cluster: Cluster, tmp_path: Path, token: str) -> None:
    done = modal_nomad(tmp_path, cluster.url, "app", "list", MODAL_TOKEN_SECRET=token)
    assert done.returncode == 1
    assert "refused the token" in done.stderr and "MODAL_TOKEN_SECRET" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_jobs_are_registered_under_the_callers_token(cluster: Cluster, tmp_path: Path) -> None:
    done = modal_nomad(tmp_path, cluster.url, "deploy", "app.py", MODAL_TOKEN_SECRET=cluster.deployer)
    assert done.returncode == 0, done.stdout + done.stderr
    job = get(cluster.nomad, "/v1/job/stack-where", cluster.management)
    assert job["Meta"]["modal_app"] == "stack"
    # A caller's rights are looked at when it acts, not when it came: the dispatcher's own would allow this.
    done = modal_nomad(tmp_path, cluster.url, "app", "stop", "stack", MODAL_TOKEN_SECRET=cluster.reader)
    assert done.returncode == 1 and "Permission denied" in done.stderr, done.stdout + done.stderr
    assert not get(cluster.nomad, "/v1/job/stack-where", cluster.management)["Stop"]
    done = modal_nomad(tmp_path, cluster.url, "app", "stop", "stack", MODAL_TOKEN_SECRET=cluster.deployer)
    assert done.returncode == 0, done.stdout + done.stderr
    assert get(cluster.nomad, "/v1/job/stack-where", cluster.management)["Stop"]
