"""The ``exec`` driver: containers in a chroot, as nobody, with processes of their own."""

from __future__ import annotations

import ast
import glob
import os
import socket
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import NO_NOMAD
from tests.engine_contract._nomad_agent import nomad_agent, nomad_binary
from tests.stack._dispatcher import dispatcher, get, modal_nomad, put

PYTHON = "/usr/bin/python3"
FILE = """
import os
import modal

app = modal.App("isolated")

@app.function()
def look(x: int) -> list:
    return [x, os.getpid(), os.getuid(), os.path.exists("/root")]

@app.local_entrypoint()
def main():
    print(look.remote(7))
"""
BLOCKED = """
import os, socket
import modal

app = modal.App("blocked")

@app.function(block_network=True)
def look(port: int) -> list:
    with modal.Dict.ephemeral() as kept:
        kept["port"] = port
        with socket.socket() as sock:
            reached = sock.connect_ex(("127.0.0.1", kept["port"])) == 0
    return [reached, [name for _, name in socket.if_nameindex()], os.getuid() != 0]

@app.local_entrypoint()
def main(port: int):
    print(look.remote(port))
"""


EATS = """
import os, subprocess, sys
import modal

app = modal.App("eats")

@app.function(memory=(64, 200), retries=0)
def children() -> None:
    # Each of them is within the limit.
    eat = "import time; held = bytearray(b'x') * (120 << 20); time.sleep(300)"
    started = [subprocess.Popen([sys.executable, "-c", eat]) for _ in range(2)]
    pid, status = os.wait()
    for child in started:
        child.kill()
    raise RuntimeError(f"a child ended with {status}")

@app.local_entrypoint()
def main():
    children.remote()
"""


def _chroot() -> dict[str, str]:
    """The least that Python needs: Nomad's own default copies all of /usr for each container."""
    triplet = sysconfig.get_config_var("MULTIARCH") or ""
    wanted = [PYTHON, os.path.realpath(PYTHON), "/etc", "/lib64", *glob.glob("/usr/lib/python3*")]
    wanted += [f"{root}/{triplet}" for root in ("/lib", "/usr/lib") if triplet]
    return {path: path for path in wanted if os.path.exists(path)}


SHARED = """
import io
import os
import modal

nfs = modal.NetworkFileSystem.from_name("shared", create_if_missing=True)
other = modal.NetworkFileSystem.from_name("other", create_if_missing=True)
app = modal.App("shares")

@app.function(network_file_systems={"/data/shared": nfs})
def write(name: str) -> list:
    with open("/data/shared/" + name, "w") as file:
        file.write("from a container")
    return [sorted(os.listdir("/data/shared")), os.listdir("/modal-nfs")]

@app.local_entrypoint()
def main():
    other.hydrate()
    nfs.write_file("seed", io.BytesIO(b"from outside"))
    print([write.remote("made"), b"".join(nfs.read_file("made"))])
"""


def test_a_rendered_job_runs_isolated(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    binary = nomad_binary()
    if binary is None:
        pytest.skip(NO_NOMAD)
    if os.geteuid() != 0 or not os.path.exists(PYTHON):
        pytest.skip(f"the exec driver needs root, and this test {PYTHON}")
    options = {
        "fingerprint.denylist": "env_aws,env_gce,env_azure,env_digitalocean",
        "driver.allowlist": "raw_exec,exec",
    }
    client = {
        "options": options,
        "chroot_env": _chroot(),
        "host_volume": [{"files": {"path": str(tmp_path / "shared"), "read_only": False}}],
    }
    with nomad_agent(binary, client=client) as nomad:
        (node,) = get(nomad, "/v1/nodes")
        if not node["Drivers"].get("exec", {}).get("Healthy"):
            pytest.skip(f"no exec driver here: {node['Drivers'].get('exec')}")
        render = {"driver": "exec", "python": PYTHON}
        nfs = {"directory": str(tmp_path / "shared"), "volume": "files"}
        with dispatcher(tmp_path, {"address": nomad}, auth="none", render=render, nfs=nfs) as url:
            done = modal_nomad(tmp_path, url, "run", "app.py", file=FILE)
            shares = modal_nomad(tmp_path, url, "run", "app.py", file=SHARED)
            put(nomad, "/v1/operator/scheduler/configuration", {"MemoryOversubscriptionEnabled": True})
            eats = modal_nomad(tmp_path, url, "run", "app.py", file=EATS)
            with socket.create_server(("127.0.0.1", 0)) as host:
                port = str(host.getsockname()[1])
                blocked = modal_nomad(tmp_path, url, "run", "app.py", "--port", port, file=BLOCKED)
    assert done.returncode == 0, done.stdout + done.stderr
    x, pid, user, sees_root = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    assert (x, sees_root) == (7, False)
    assert pid < 20 and user != 0
    # As nobody, in a user namespace of its own.
    assert blocked.stdout.strip().splitlines()[-1:] == ["[False, ['lo'], True]"], (
        blocked.stdout + blocked.stderr
    )
    # Where it sees no control groups a process of namespaces of its own does.
    assert "Error: out of memory: its processes together went above its limit of 200 MiB" in (
        eats.stdout + eats.stderr
    )
    assert shares.returncode == 0, shares.stdout + shares.stderr
    # What a container was not given it does not see, though its allocation has the whole volume.
    assert ast.literal_eval(shares.stdout.strip().splitlines()[-1]) == [
        [["made", "seed"], []],
        b"from a container",
    ]
