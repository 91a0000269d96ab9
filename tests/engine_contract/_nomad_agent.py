"""A real Nomad for a test session: ``nomad agent -dev`` on free ports of 127.0.0.1."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

START_LIMIT = 60.0


def nomad_binary() -> str | None:
    return shutil.which("nomad")


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


def _ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/v1/nodes", timeout=2) as answer:
            return any(
                node["Status"] == "ready" and "raw_exec" in node["Drivers"] for node in json.load(answer)
            )
    except OSError:
        return False


@contextmanager
def nomad_agent(binary: str) -> Iterator[str]:
    """Yield the address of a ready agent; it and its containers are gone afterwards."""
    http, rpc, serf = free_ports(3)
    with tempfile.TemporaryDirectory(prefix="nomad-test-", ignore_cleanup_errors=True) as directory:
        config = Path(directory, "agent.json")
        config.write_text(
            json.dumps(
                {
                    "bind_addr": "127.0.0.1",
                    "ports": {"http": http, "rpc": rpc, "serf": serf},
                    "data_dir": f"{directory}/data",
                    "disable_update_check": True,
                    "consul": {"client_auto_join": False, "server_auto_join": False, "auto_advertise": False},
                    "client": {
                        "network_interface": "lo",
                        "options": {
                            "fingerprint.denylist": "env_aws,env_gce,env_azure,env_digitalocean",
                            "driver.allowlist": "raw_exec",
                        },
                    },
                    "plugin": [{"raw_exec": {"config": {"enabled": True}}}],
                }
            )
        )
        with open(Path(directory, "agent.log"), "wb") as log:
            process = subprocess.Popen(
                [binary, "agent", "-dev", f"-config={config}"], stdout=log, stderr=log, cwd=directory
            )
            address = f"http://127.0.0.1:{http}"
            try:
                deadline = time.monotonic() + START_LIMIT
                while not _ready(address):
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError(Path(directory, "agent.log").read_text()[-4000:])
                    time.sleep(0.1)
                yield address
            finally:
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
