"""jobspecs/image-builder.nomad.hcl on a real Nomad: a node builds, pushes and says how it goes."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests._docker import Docker
from tests._registry import PASSWORD, USER, registry
from tests.engine_contract._nomad_agent import nomad_binary
from tests.stack._dispatcher import dispatcher

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys

import modal_nomad as modal

image = modal.Image.from_registry(sys.argv[1]).add_local_file(__file__, "/copied", copy=True)
image = image.run_commands("echo a word of the build", sys.argv[2])
app = modal.App("built", image=image)
app.function(serialized=True, name="f")(lambda: 1)
with modal.enable_output():
    try:
        result = modal.runner.deploy_app(app)
    except modal.exception.ImageBuildError as error:
        print("FAILED:", error)
"""

READ = """
import sys

import modal_nomad as modal

image = modal.Image.from_registry(sys.argv[1]).run_commands(sys.argv[2])
app = modal.App("read", image=image)

def read():
    with open("/kept") as file:
        return file.read()

function = app.function(serialized=True)(read)
with modal.enable_output(), app.run():
    print("ANSWER", function.remote())
"""
ENDLESS = """
import sys

import modal_nomad as modal

image = modal.Image.from_registry(sys.argv[1]).run_commands(sys.argv[2])
app = modal.App("endless", image=image)
app.function(serialized=True, name="f")(lambda: 1)
with modal.enable_output():
    modal.runner.deploy_app(app)
"""


@dataclass
class Cluster:
    url: str
    host: str
    docker: Docker
    folder: Path

    def start(self, command: str, url: str = "", text: str = PROGRAM) -> subprocess.Popen[str]:
        program = self.folder / "app.py"
        program.write_text(text)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("NOMAD_", "MODAL_"))}
        env = {**clean, "MODAL_SERVER_URL": url or self.url, "MODAL_CONFIG_PATH": "/nonexistent"}
        words = [sys.executable, "-W", "ignore", str(program), self.docker.image, command]
        return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def deploy(self, command: str, url: str = "", text: str = PROGRAM) -> str:
        with self.start(command, url, text) as program:
            said, trouble = program.communicate(timeout=250)
        assert program.returncode == 0, said + trouble
        return said

    def forget(self, reference: str) -> None:
        """Take an image out of the registry."""
        place = f"http://{self.host}/v2/modal/manifests"
        user = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        headers = {
            "Authorization": f"Basic {user}",
            "Accept": "application/vnd.docker.distribution.manifest.v2+json",
        }
        tag = reference.rpartition(":")[2]
        with urllib.request.urlopen(urllib.request.Request(f"{place}/{tag}", headers=headers)) as answer:
            digest = answer.headers["Docker-Content-Digest"]
        request = urllib.request.Request(f"{place}/{digest}", headers=headers, method="DELETE")
        urllib.request.urlopen(request).close()


@pytest.fixture(scope="module")
def cluster(
    nomad_docker_address: str, docker: Docker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("image-builder")
    (folder / "password").write_text(PASSWORD)
    nomad = {"address": nomad_docker_address}
    with registry(folder) as host:
        images = {
            "repository": f"{host}/modal",
            "username": USER,
            "password_file": str(folder / "password"),
            "network": "none",
        }
        with dispatcher(folder, nomad, auth="none", images=images) as url:
            variables = {"server_url": url, "docker_host": docker.host, "python": sys.executable}
            given = [word for key, value in variables.items() for word in ("-var", f"{key}={value}")]
            spec = ROOT / "jobspecs/image-builder.nomad.hcl"
            command = [str(nomad_binary()), "job", "run", f"-address={nomad_docker_address}", *given, spec]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            yield Cluster(url, host, docker, folder)


def test_a_node_builds_and_pushes(cluster: Cluster) -> None:
    said = cluster.deploy("cp /copied /made")
    assert "\na word of the build\n" in said and "Built image im-" in said and "FAILED" not in said
    found = cluster.docker("image", "ls", f"{cluster.host}/modal", "--format", "{{.ID}}").split()
    made = cluster.docker("run", "--rm", "--network=none", "--entrypoint", "cat", found[0], "/made")
    assert made == PROGRAM.strip()
    # Known by now: nothing is built, and nothing said of it.
    assert "image" not in cluster.deploy("cp /copied /made")


def test_a_step_that_fails_on_a_node_says_how(cluster: Cluster) -> None:
    said = cluster.deploy("echo no; exit 3")
    assert "FAILED: image step 3 (run echo a word of the build; echo no; exit 3) failed:" in said
    assert "no\n" in said.partition("FAILED")[2]


def test_a_cluster_without_a_registry_says_what_to_set(
    nomad_docker_address: str, cluster: Cluster, tmp_path: Path
) -> None:
    with dispatcher(tmp_path, {"address": nomad_docker_address}, auth="none") as url:
        said = cluster.deploy("true", url)
    assert "FAILED: image step 2 (add local files at /copied) needs a registry" in said


def test_a_cluster_without_the_job_says_what_to_register(
    nomad_docker_address: str, cluster: Cluster, tmp_path: Path
) -> None:
    images = {"repository": f"{cluster.host}/modal", "job": "no-such-job"}
    with dispatcher(tmp_path, {"address": nomad_docker_address}, auth="none", images=images) as url:
        said = cluster.deploy("echo another", url)
    assert "'no-such-job' cannot be started" in said and "jobspecs/image-builder.nomad.hcl" in said


def test_an_image_that_somebody_removed_is_built_anew(cluster: Cluster) -> None:
    assert "ANSWER kept" in cluster.deploy("echo kept > /kept", text=READ)
    listed = cluster.docker("image", "ls", f"{cluster.host}/modal", "--format", "{{.Repository}}:{{.Tag}}")
    for reference in listed.split():
        cluster.docker("image", "rm", "--force", reference)
        cluster.forget(reference)
    said = cluster.deploy("echo kept > /kept", text=READ)
    assert "is gone, and is built anew" in said and "ANSWER kept" in said


def test_a_build_that_nobody_waits_for_is_ended(cluster: Cluster) -> None:
    def running() -> bool:
        return "sleep 1000005" in cluster.docker("ps", "--no-trunc", "--format", "{{.Command}}")

    with cluster.start("sleep 1000005", text=ENDLESS) as program:
        until(running)
        program.send_signal(signal.SIGINT)
        program.communicate(timeout=100)
    until(lambda: not running())


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
