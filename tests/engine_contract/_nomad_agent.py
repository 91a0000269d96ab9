"""A real Nomad for a test session: ``nomad agent -dev`` on free ports of 127.0.0.1."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests._ports import free_ports

START_LIMIT = 150.0
_DOCKERS_OWN_CAPABILITIES = (
    "audit_write",
    "chown",
    "dac_override",
    "fowner",
    "fsetid",
    "kill",
    "mknod",
    "net_bind_service",
    "setfcap",
    "setgid",
    "setpcap",
    "setuid",
    "sys_chroot",
)


def nomad_binary() -> str | None:
    return shutil.which("nomad")


def ready_nodes(
    address: str, token: str = "", *, ca: str | None = None, cert: tuple[str, str] | None = None
) -> int:
    """Return how many nodes of a Nomad are ready to run raw_exec tasks."""
    request = urllib.request.Request(f"{address}/v1/nodes", headers={"X-Nomad-Token": token})
    context = ssl.create_default_context(cafile=ca) if ca else None
    if context is not None and cert is not None:
        context.load_cert_chain(*cert)
    try:
        with urllib.request.urlopen(request, timeout=2, context=context) as answer:
            return sum(
                node["Status"] == "ready" and "raw_exec" in node["Drivers"] for node in json.load(answer)
            )
    except OSError:
        return 0


def docker_client(host: str) -> dict[str, Any]:
    """Return the configuration of a client whose docker driver uses a daemon, and may do what we ask."""
    config = {
        "endpoint": host,
        "allow_caps": ["sys_admin", *_DOCKERS_OWN_CAPABILITIES],
        "volumes": {"enabled": True},
        # Images are the tests' own, and many agents share one daemon.
        "gc": {"image": False, "container": True, "dangling_containers": {"enabled": False}},
    }
    options = {
        "fingerprint.denylist": "env_aws,env_gce,env_azure,env_digitalocean",
        "driver.allowlist": "raw_exec,docker",
    }
    plugins = [{"raw_exec": {"config": {"enabled": True}}}, {"docker": {"config": config}}]
    return {"plugin": plugins, "client": {"options": options}}


def healthy_driver(address: str, driver: str) -> bool:
    """Tell whether a node runs tasks of a driver."""
    try:
        with urllib.request.urlopen(f"{address}/v1/nodes", timeout=2) as answer:
            return any((x["Drivers"].get(driver) or {}).get("Healthy") for x in json.load(answer))
    except OSError:
        return False


def bootstrap_acls(address: str, secret: str) -> bool:
    """Make ``secret`` the management token of a Nomad that has none yet; False while it is not up."""
    body = json.dumps({"BootstrapSecret": secret}).encode()
    request = urllib.request.Request(f"{address}/v1/acl/bootstrap", body, method="PUT")
    try:
        with urllib.request.urlopen(request, timeout=2):
            return True
    except urllib.error.HTTPError as error:
        # An earlier request was carried out, but answered too late.
        return b"already done" in error.read()
    except OSError:
        return False


def agent_config(directory: str, http: int, rpc: int, serf: int, **more: Any) -> dict[str, Any]:
    """Return the configuration of an agent that uses loopback and raw_exec alone."""
    return {
        "bind_addr": "127.0.0.1",
        "advertise": {"http": "127.0.0.1", "rpc": "127.0.0.1", "serf": "127.0.0.1"},
        "ports": {"http": http, "rpc": rpc, "serf": serf},
        "data_dir": f"{directory}/data",
        "disable_update_check": True,
        "consul": {"client_auto_join": False, "server_auto_join": False, "auto_advertise": False},
        "plugin": [{"raw_exec": {"config": {"enabled": True}}}],
        **more,
        "client": {
            "network_interface": "lo",
            "options": {
                "fingerprint.denylist": "env_aws,env_gce,env_azure,env_digitalocean",
                "driver.allowlist": "raw_exec",
            },
            **more.get("client", {}),
        },
    }


def wait_until(true: Callable[[], Any], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for an agent; its log is the error when it ends or takes too long."""
    deadline = time.monotonic() + START_LIMIT
    while not true():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(log.read_text()[-4000:])
        time.sleep(0.1)


@contextmanager
def agent_process(
    binary: str, directory: str, config: dict[str, Any], *flags: str
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run an agent; yields the process and its log. It and its containers are gone afterwards."""
    file, out = Path(directory, "agent.json"), Path(directory, "agent.log")
    file.write_text(json.dumps(config))
    with open(out, "wb") as log:
        process = subprocess.Popen(
            [binary, "agent", *flags, f"-config={file}"], stdout=log, stderr=log, cwd=directory
        )
        try:
            yield process, out
        finally:
            process.terminate()
            try:
                process.wait(100)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            unmount_below(directory)


def unmount_below(directory: str) -> None:
    """Undo what a killed agent left mounted in its containers, so that its files can be removed."""
    root = f"{Path(directory).resolve()}/"
    with open("/proc/self/mounts") as file:
        # The kernel writes a space in a path as \\040.
        found = [line.split()[1].replace("\\040", " ") for line in file]
    for path in sorted((path for path in found if path.startswith(root)), key=len, reverse=True):
        subprocess.run(["umount", "--lazy", path], check=False, capture_output=True)


@contextmanager
def nomad_agent(binary: str, *, token: str = "", **more: Any) -> Iterator[str]:
    """Yield the address of a ready agent; with ``token`` its ACLs are on and that one may do all."""
    http, rpc, serf = free_ports(3)
    address = f"http://127.0.0.1:{http}"
    if token:
        more["acl"] = {"enabled": True}
    with (
        tempfile.TemporaryDirectory(prefix="nomad-test-", ignore_cleanup_errors=True) as directory,
        agent_process(binary, directory, agent_config(directory, http, rpc, serf, **more), "-dev") as running,
    ):
        if token:
            wait_until(lambda: bootstrap_acls(address, token), *running)
        wait_until(lambda: ready_nodes(address, token), *running)
        if any("docker" in plugin for plugin in more.get("plugin", ())):
            wait_until(lambda: healthy_driver(address, "docker"), *running)
        yield address
