"""Image.run_function on a real Nomad: placed by it, on its pool, with its card, by its docker driver."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests._docker import Docker
from tests._registry import PASSWORD, USER, registry
from tests.conftest import NO_NOMAD
from tests.engine_contract._nomad_agent import docker_client, nomad_agent, nomad_binary
from tests.plugin._plugin_client import A100, write_cards
from tests.stack._dispatcher import dispatcher, get, modal_nomad
from tests.stack.test_gpu_plugin import plugin_blocks, plugin_dir

JOBSPEC = str(Path(__file__).resolve().parents[2] / "jobspecs/image-builder.nomad.hcl")
FILE = """
import os
from pathlib import Path

import modal_nomad as modal

def place(word):
    print("the step prints", word)
    Path("/placed").write_text(f"{os.environ['NVIDIA_VISIBLE_DEVICES']} {os.environ['NOMAD_DC']} {word}")
    Path("/before").unlink()

image = (
    modal.Image.from_registry("{image}")
    .run_commands("echo 1 > /before")
    .run_function(place, args=["kept"], gpu="A100-80GB", nomad=modal.nomad.Placement(node_pool="cards"))
    .run_commands("echo 2 > /after")
)
app = modal.App("placed", image=image)

@app.function(serialized=True, nomad=modal.nomad.Placement(node_pool="cards"))
def read():
    from pathlib import Path
    return Path("/placed").read_text(), Path("/before").exists(), Path("/after").exists()

@app.local_entrypoint()
def main():
    print("ANSWER", read.remote())
"""


@dataclass
class Cluster:
    nomad: str
    url: str
    folder: Path


@pytest.fixture(scope="module")
def cluster(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    binary = nomad_binary()
    if binary is None:
        pytest.skip(NO_NOMAD)
    folder = tmp_path_factory.mktemp("run-function")
    (folder / "password").write_text(PASSWORD)
    write_cards(folder / "cards.json", A100)
    client = docker_client(docker.host)
    client["client"]["node_pool"] = "cards"
    (driver,) = (x["docker"]["config"] for x in client["plugin"] if "docker" in x)
    # The cards are none that NVIDIA's own runtime could show.
    driver["nvidia_runtime"] = "runc"
    client["plugin"] += [x for x in plugin_blocks(fake=str(folder / "cards.json")) if "raw_exec" not in x]
    with (
        registry(folder) as host,
        nomad_agent(binary, plugin_dir=str(plugin_dir(folder)), **client) as nomad,
    ):
        images = {
            "repository": f"{host}/modal",
            "username": USER,
            "password_file": str(folder / "password"),
            "network": "none",
        }
        with dispatcher(folder, {"address": nomad}, auth="none", images=images) as url:
            variables = {
                "server_url": url,
                "docker_host": docker.host,
                "python": sys.executable,
                "node_pool": "cards",
            }
            given = [word for key, value in variables.items() for word in ("-var", f"{key}={value}")]
            command = [binary, "job", "run", f"-address={nomad}", *given, JOBSPEC]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            yield Cluster(nomad, url, folder)


def test_a_step_is_placed_by_nomad(cluster: Cluster, docker: Docker) -> None:
    file = FILE.replace("{image}", docker.image)
    done = modal_nomad(cluster.folder, cluster.url, "run", "app.py", file=file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the step prints kept" in done.stdout + done.stderr
    assert "ANSWER ('GPU-a dc1 kept', False, True)" in done.stdout
    # Nothing of the step's App is left.
    jobs = get(cluster.nomad, "/v1/jobs")
    assert not [
        x for x in jobs if x["ID"].startswith("image-") and x["Status"] == "running" and "place" in x["ID"]
    ]
