"""What an ops team has: a Nomad with ACLs, a Consul, and an OpenBao that trusts Nomad's workloads."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tests._consul import Consul
from tests.engine_contract._nomad_agent import nomad_agent
from tests.stack._openbao import Bao, bao_server

T = TypeVar("T")
JOBSPECS = Path(__file__).parents[2] / "jobspecs"
_LIMIT = 150.0

PROGRAM = str(Path(sys.executable).parent / "modal-nomad")


@dataclass(frozen=True)
class Cluster:
    """The addresses of all three.

    Attributes:
        directory: of this cluster's own.
        nomad: Nomad's address.
        token: its management token.
        consul: a server.
        bao: another; nothing of Nomad is set up in it.
    """

    directory: Path
    nomad: str
    token: str = field(repr=False)
    consul: Consul
    bao: Bao

    @property
    def env(self) -> dict[str, str]:
        """The environment of commands that are to speak to all of them."""
        clean = {
            k: v for k, v in os.environ.items() if not k.startswith(("NOMAD_", "CONSUL_", "VAULT_", "MODAL_"))
        }
        return {
            **clean,
            "NOMAD_ADDR": self.nomad,
            "NOMAD_TOKEN": self.token,
            "CONSUL_HTTP_ADDR": self.consul.address,
            "VAULT_ADDR": self.bao.address,
            "VAULT_TOKEN": self.bao.token,
        }

    def run(self, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command with all of them in its environment."""
        return subprocess.run(
            command, env=self.env, cwd=cwd or self.directory, capture_output=True, text=True, timeout=300
        )


@contextmanager
def cluster_of(nomad: str, bao: str, consul: Consul, directory: Path) -> Iterator[Cluster]:
    """Yield a running cluster of these programs and this Consul."""
    token = str(uuid.uuid4())
    with bao_server(bao, directory) as server:
        vault = {
            "enabled": True,
            "address": server.address,
            "jwt_auth_backend_path": "jwt-nomad",
            "create_from_role": "modal-containers",
            "default_identity": {"aud": ["vault.io"], "ttl": "1h"},
        }
        settings = {
            "address": consul.address.removeprefix("http://"),
            "client_auto_join": False,
            "server_auto_join": False,
            "auto_advertise": False,
        }
        with nomad_agent(nomad, token=token, consul=settings, vault=[vault]) as address:
            yield Cluster(directory, address, token, consul, server)


def trust_nomad(cluster: Cluster) -> None:
    """Let the gateways' job log in to OpenBao under its identity, with the policy that is called like it."""
    bao = cluster.bao
    bao.call("POST", "sys/auth/jwt-nomad", {"type": "jwt"})
    bao.call("POST", "auth/jwt-nomad/config", {"jwks_url": f"{cluster.nomad}/.well-known/jwks.json"})
    role = {
        "role_type": "jwt",
        "bound_audiences": ["vault.io"],
        "bound_claims": {"nomad_namespace": "default", "nomad_job_id": "modal-gateway"},
        "user_claim": "/nomad_job_id",
        "user_claim_json_pointer": True,
        "token_policies": ["modal-gateway"],
        "token_period": "30m",
    }
    bao.call("POST", "auth/jwt-nomad/role/modal-gateway", role)


def until(condition: Callable[[], T]) -> T:
    """Return what ``condition`` gives as soon as that is true."""
    deadline = time.monotonic() + _LIMIT
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.1)
    return found
