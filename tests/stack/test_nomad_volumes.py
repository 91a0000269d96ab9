"""Dynamic host volumes of a real Nomad: read and written by two containers, looked for before a job is."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import Any

import pytest

import modal_nomad as modal
from modal_nomad.render import RenderSettings, render_function
from modal_nomad.wire.spec import FunctionSpec
from tests.conftest import NO_NOMAD
from tests.engine_contract._nomad_agent import nomad_agent, nomad_binary
from tests.stack._dispatcher import dispatcher, get, modal_nomad, put
from tests.stack.test_exec_driver import PYTHON, _chroot

FILE = """
import os
import modal

data = modal.Volume.from_name("files", backend="host")
app = modal.App("volumes")

@app.function(single_use_containers=True, volumes={"/data/files": data})
def write(name: str) -> list:
    with open("/data/files/" + name, "w") as file:
        file.write("from " + name)
    return [os.environ["NOMAD_ALLOC_ID"], sorted(os.listdir("/data/files"))]

@app.function(volumes={"/data": data.read_only()})
def read(name: str) -> list:
    try:
        open("/data/other", "w")
    except OSError as error:
        return [open("/data/" + name).read(), error.strerror]

@app.local_entrypoint()
def main():
    print([write.remote("a"), write.remote("b"), read.remote("a")])
"""
ABSENT = """
import modal

app = modal.App("absent", volumes={"/data": modal.Volume.from_name("absent", backend="KIND")})

@app.function()
def never():
    pass

@app.local_entrypoint()
def main():
    never.remote()
"""


def csi_job() -> dict[str, Any]:
    """Return the job of a Function with a CSI volume."""
    volumes = (modal.Volume.from_name("disk", backend="csi")._mount("/disk"),)
    settings = RenderSettings(server_url="http://127.0.0.1:1", runtime_sha="0" * 64, driver="exec")
    return render_function(FunctionSpec("a", "f", volumes=volumes), settings)


def test_containers_share_a_dynamic_host_volume(tmp_path: Path) -> None:
    binary = nomad_binary()
    if binary is None:
        pytest.skip(NO_NOMAD)
    if os.geteuid() != 0 or not os.path.exists(PYTHON):
        pytest.skip(f"the exec driver needs root, and this test {PYTHON}")
    options = {
        "fingerprint.denylist": "env_aws,env_gce,env_azure,env_digitalocean",
        "driver.allowlist": "raw_exec,exec",
    }
    with nomad_agent(binary, client={"options": options, "chroot_env": _chroot()}) as nomad:
        (node,) = get(nomad, "/v1/nodes")
        if not node["Drivers"].get("exec", {}).get("Healthy"):
            pytest.skip(f"no exec driver here: {node['Drivers'].get('exec')}")
        modes = ["single-node-multi-writer", "single-node-reader-only"]
        volume = {
            "Name": "files",
            "PluginID": "mkdir",
            "Parameters": {"mode": "0777"},
            "RequestedCapabilities": [
                {"AccessMode": mode, "AttachmentMode": "file-system"} for mode in modes
            ],
        }
        put(nomad, "/v1/volume/host/create", {"Volume": volume})
        render = {"driver": "exec", "python": PYTHON}
        with dispatcher(tmp_path, {"address": nomad}, auth="none", render=render) as url:
            done = modal_nomad(tmp_path, url, "run", "app.py", file=FILE)
            absent = {
                kind: modal_nomad(tmp_path, url, "run", "app.py", file=ABSENT.replace("KIND", kind))
                for kind in ("host", "csi")
            }
        on_csi = put(nomad, "/v1/validate/job", {"Job": csi_job()})
        jobs = [job["ID"] for job in get(nomad, "/v1/jobs")]
        (tmp_path / "raw").mkdir()
        with dispatcher(tmp_path / "raw", {"address": nomad}, auth="none") as url:
            raw = modal_nomad(tmp_path, url, "run", "app.py", file=FILE)
    assert done.returncode == 0, done.stdout + done.stderr
    one, other, read = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    assert one[1] == ["a"] and other[1] == ["a", "b"] and one[0] != other[0]
    assert read == ["from a", "Read-only file system"]
    for kind, refused in absent.items():
        line = f"Nomad has no {kind} volume 'absent' in namespace 'default': make it with"
        assert line in refused.stdout + refused.stderr
    assert not on_csi["ValidationErrors"], on_csi
    assert not [job for job in jobs if "absent" in job]
    assert "the driver raw_exec mounts no volumes, such as 'files'" in raw.stdout + raw.stderr
