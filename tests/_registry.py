"""A real registry of container images for tests: Debian's docker-registry, on a free port of 127.0.0.1."""

from __future__ import annotations

import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests._ports import free_ports
from tests.engine_contract._nomad_agent import wait_until

NO_REGISTRY = "no `docker-registry` on PATH"
USER, PASSWORD = "modal", "s3cret"
AWS_PASSWORD, GCP_KEY = "of-aws", '{"type": "service_account"}'
# bcrypt of the three passwords, which the standard library cannot make.
_USERS = """\
modal:$2b$04$VFQjQMtzqJ0kJ1Wbcf5AF.zLFD3Wy8B4FyPB5L2/00vXQzlcZ0LRe
AWS:$2b$04$0fJgtguK2jajBqafiBlFWO4p7RnRGatnNSuTCvaO25gS.uHNjSbdi
_json_key:$2b$04$0kX8Y3QTUm2IKn4LG69eD.duo6Zmxy/S83wJ5OR7RnQmV8w6QJ78u
"""
_CONFIG = """\
version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: {folder}/images}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"}}
auth: {{htpasswd: {{realm: tests, path: {folder}/users}}}}
"""


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    """Run a registry that wants a user; gives its ``host:port``. Skips where there is none."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip(NO_REGISTRY)
    (port,) = free_ports(1)
    (folder / "users").write_text(_USERS)
    (folder / "config.yml").write_text(_CONFIG.format(folder=folder, port=port))
    log = folder / "registry.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [program, "serve", str(folder / "config.yml")],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )

    def answers() -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=10)
        except urllib.error.HTTPError as error:
            return error.code == 401
        except OSError:
            return False
        return True

    try:
        wait_until(answers, process, log)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
