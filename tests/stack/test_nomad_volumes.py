"""Dynamic host volumes and CSI volumes of a real Nomad, the latter of a plugin that runs on it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NO_NOMAD
from tests.engine_contract._nomad_agent import nomad_agent, nomad_binary
from tests.stack import _csi_plugin
from tests.stack._dispatcher import dispatcher, get, modal_nomad, put
from tests.stack.test_exec_driver import PYTHON, _chroot

FILE = """
import os
import modal

data = modal.Volume.from_name("NAME", backend="KIND")
app = modal.App("volumes")

@app.function(single_use_containers=True, timeout=60, volumes={"/data/files": data})
def write(name: str) -> list:
    with open("/data/files/" + name, "w") as file:
        file.write("from " + name)
    return [os.environ["NOMAD_ALLOC_ID"], sorted(set(os.listdir("/data/files")) - {"seed"})]

@app.function(scaledown_window=300, volumes={"/data": data.read_only()})
def read(name: str) -> list:
    try:
        open("/data/other", "w")
    except OSError as error:
        return [open("/data/" + name).read(), error.strerror]

@app.local_entrypoint()
def main(first: str = ""):
    # A reader that stays claims the volume before the writers do.
    seen = [read.remote(first)] if first else []
    print([write.remote("a"), write.remote("b"), read.remote("a"), *seen])
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


MODE = """
import modal

data = modal.Volume.from_name("one", backend="csi", access_mode=MODE)
app = modal.App("modes", volumes={"/data": data})

@app.function(timeout=60)
def touch():
    open("/data/x", "w").close()

@app.local_entrypoint()
def main():
    touch.remote()
    print("touched")
"""


@dataclass
class Running:
    """A Nomad with the exec driver, a dispatcher on it, and the directory of a CSI plugin."""

    nomad: str
    url: str
    folder: Path
    plugin: Path

    def run(self, file: str, *words: str) -> subprocess.CompletedProcess[str]:
        return modal_nomad(self.folder, self.url, "run", "app.py", *words, file=file)

    def make_csi(self, name: str, mode: str) -> None:
        volume = {
            "ID": name,
            "Name": name,
            "PluginID": "directories",
            "RequestedCapabilities": [{"AccessMode": mode, "AttachmentMode": "file-system"}],
        }
        put(self.nomad, f"/v1/volume/csi/{name}/create", {"Volumes": [volume]})

    def delete_csi(self, name: str) -> None:
        request = urllib.request.Request(f"{self.nomad}/v1/volume/csi/{name}/delete", method="DELETE")
        urllib.request.urlopen(request, timeout=100).close()

    def calls(self, name: str) -> list[dict[str, Any]]:
        """Return what Nomad asked of the plugin by calls of a name."""
        told = [json.loads(line) for line in (self.plugin / "calls").read_text().splitlines()]
        return [given for call, given in told if call == name]


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 150
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    binary = nomad_binary()
    if binary is None:
        pytest.skip(NO_NOMAD)
    if os.geteuid() != 0 or not os.path.exists(PYTHON):
        pytest.skip(f"the exec driver needs root, and this test {PYTHON}")
    options = {
        "fingerprint.denylist": "env_aws,env_gce,env_azure,env_digitalocean",
        "driver.allowlist": "raw_exec,exec",
    }
    folder = tmp_path_factory.mktemp("volumes")
    with nomad_agent(binary, client={"options": options, "chroot_env": _chroot()}) as nomad:
        (node,) = get(nomad, "/v1/nodes")
        if not node["Drivers"].get("exec", {}).get("Healthy"):
            pytest.skip(f"no exec driver here: {node['Drivers'].get('exec')}")
        _start_plugin(nomad, folder / "plugin")
        render = {"driver": "exec", "python": PYTHON}
        with dispatcher(folder, {"address": nomad}, auth="none", render=render) as url:
            yield Running(nomad, url, folder, folder / "plugin")


@pytest.fixture
def csi(running: Running) -> Running:
    """The same once its CSI plugin is healthy: Nomad looks every five seconds."""
    wait_for(lambda: _healthy(running.nomad))
    return running


def _start_plugin(nomad: str, folder: Path) -> None:
    folder.mkdir()
    data = get(nomad, "/v1/agent/self")["config"]["DataDir"]
    task = {
        "Name": "plugin",
        "Driver": "raw_exec",
        "Config": {"command": sys.executable, "args": [_csi_plugin.__file__, str(folder)]},
        "CSIPluginConfig": {
            "ID": "directories",
            "Type": "monolith",
            "MountDir": "/csi",
            # Without a file system of its own the task mounts where Nomad keeps volumes.
            "StagePublishBaseDir": f"{data}/client/csi/monolith/directories",
        },
    }
    job = {"ID": "csi", "Type": "service", "TaskGroups": [{"Name": "csi", "Tasks": [task]}]}
    put(nomad, "/v1/jobs", {"Job": job})


def _healthy(nomad: str) -> bool:
    plugins = get(nomad, "/v1/plugins?type=csi")
    return any(x["ControllersHealthy"] and x["NodesHealthy"] for x in plugins)


def _shared(done: subprocess.CompletedProcess[str]) -> list[Any]:
    assert done.returncode == 0, done.stdout + done.stderr
    one, other, *read = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    assert one[1] == ["a"] and other[1] == ["a", "b"] and one[0] != other[0]
    return read


def test_containers_share_a_dynamic_host_volume(running: Running, tmp_path: Path) -> None:
    volume = {
        "Name": "files",
        "PluginID": "mkdir",
        "Parameters": {"mode": "0777"},
        # What reads only asks for the same: a volume that was made for writers is enough.
        "RequestedCapabilities": [
            {"AccessMode": "single-node-multi-writer", "AttachmentMode": "file-system"}
        ],
    }
    put(running.nomad, "/v1/volume/host/create", {"Volume": volume})
    on_host = FILE.replace("KIND", "host").replace("NAME", "files")
    assert _shared(running.run(on_host)) == [["from a", "Read-only file system"]]
    for kind in ("host", "csi"):
        refused = running.run(ABSENT.replace("KIND", kind))
        line = f"Nomad has no {kind} volume 'absent' in namespace 'default': make it with"
        assert line in refused.stdout + refused.stderr
    assert not [job["ID"] for job in get(running.nomad, "/v1/jobs") if "absent" in job["ID"]]
    with dispatcher(tmp_path, {"address": running.nomad}, auth="none") as url:
        raw = modal_nomad(tmp_path, url, "run", "app.py", file=on_host)
    assert "the driver raw_exec mounts no volumes, such as 'files'" in raw.stdout + raw.stderr


def test_containers_share_a_csi_volume(csi: Running) -> None:
    csi.make_csi("disk", "multi-node-multi-writer")
    (csi.plugin / "volumes" / "of-disk" / "seed").write_text("from a plugin")
    on_csi = FILE.replace("KIND", "csi").replace("NAME", "disk")
    # Nomad would keep writers out for as long as one that asked for reading alone holds the volume.
    read = _shared(csi.run(on_csi, "--first", "seed"))
    assert read == [["from a", "Read-only file system"], ["from a plugin", "Read-only file system"]]
    # What was written outlives the containers, and each gave the volume back.
    assert (csi.plugin / "volumes" / "of-disk" / "b").read_text() == "from b"
    published = {given["target_path"] for given in csi.calls("publish")}
    wait_for(lambda: published <= {given["target_path"] for given in csi.calls("unpublish")})
    assert len(published) == 3 and not [path for path in published if os.path.ismount(path)]
    wait_for(lambda: get(csi.nomad, "/v1/volume/csi/disk")["AccessMode"] == "")
    csi.delete_csi("disk")
    assert not (csi.plugin / "volumes" / "of-disk").exists()


def test_what_a_csi_volume_or_its_plugin_refuses_is_told(csi: Running) -> None:
    csi.make_csi("one", "single-node-writer")
    refused = csi.run(MODE.replace("MODE", "None"))
    words = "the csi volume 'one' was not made for access mode multi-node-multi-writer: give"
    assert words in refused.stderr and "access_mode='single-node-writer'" in refused.stderr
    writer = MODE.replace("MODE", "'single-node-writer'")
    (csi.plugin / "refuse").write_text("publish: the shelf\nis empty")
    try:
        refused = csi.run(writer)
    finally:
        (csi.plugin / "refuse").unlink()
    assert "desc = publish: the shelf is empty" in refused.stderr, refused.stdout + refused.stderr
    done = csi.run(writer)
    assert done.stdout.splitlines()[-1] == "touched", done.stdout + done.stderr
    assert (csi.plugin / "volumes" / "of-one" / "x").exists()
