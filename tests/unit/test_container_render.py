"""Container images: how a job is rendered, its start line, what this machine's runtime is asked for."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modal_nomad.engines._docker_api import split_reference
from modal_nomad.engines._local_container import describe_end
from modal_nomad.engines._local_image import Mount, container_body
from modal_nomad.engines._local_job import TaskPlan, faults_of, parse
from modal_nomad.engines._local_runtimes import find_runtime, registry_credentials
from modal_nomad.engines.base import ContainerState, EngineError
from modal_nomad.render import RenderSettings, render_function, schedule_job
from modal_nomad.render.container import START, UNLIMITED
from modal_nomad.wire.mounts import BucketMount, NfsMount, VolumeMount
from modal_nomad.wire.spec import FunctionSpec, ImageLayer, ImageSpec, ScheduleSpec, WebSpec

SETTINGS = RenderSettings(server_url="http://10.0.0.1:8520", runtime_sha="a" * 64)
IMAGE = "registry.example/mine@sha256:" + "b" * 64
PLAIN = FunctionSpec(
    app="boxed",
    name="f",
    image=ImageSpec(python="3.12", layers=(ImageLayer("base", ("x",)),), env={"A": "1"}),
    container_image=IMAGE,
    code_bundle="c" * 64,
)


def _task(spec: FunctionSpec, settings: RenderSettings = SETTINGS) -> dict[str, Any]:
    task: dict[str, Any] = render_function(spec, settings)["TaskGroups"][0]["Tasks"][0]
    return task


def test_a_container_image_is_the_docker_drivers() -> None:
    task = _task(PLAIN)
    assert (task["Driver"], task["User"]) == ("docker", "root")
    config = task["Config"]
    assert (config["image"], config["command"]) == (IMAGE, "/bin/sh")
    assert "entrypoint" not in config and "devices" not in config and "cap_add" not in config
    assert config["args"][-1] == "${NOMAD_TASK_DIR}/runtime/_start_worker.py"
    assert config["memory_hard_limit"] == UNLIMITED
    assert task["Env"]["MODAL_CONTAINER_RUNTIME"] == "docker" and task["Env"]["A"] == "1"
    # The image is built: nothing is to be installed in its containers.
    assert "MODAL_IMAGE" not in task["Env"]
    assert {artifact["RelativeDest"] for artifact in task["Artifacts"]} == {"local/runtime", "local/code"}


def test_no_word_of_the_start_line_is_nomads() -> None:
    assert "${" not in START and "%{" not in START


def test_a_plain_image_is_a_process_unless_an_operator_says_otherwise() -> None:
    plain = replace(PLAIN, container_image="", image=ImageSpec())
    assert _task(plain)["Driver"] == "raw_exec"
    inside = _task(plain, replace(SETTINGS, driver="docker", default_image="python:3.12"))
    assert (inside["Driver"], inside["Config"]["image"]) == ("docker", "python:3.12")
    assert _task(PLAIN, replace(SETTINGS, driver="podman", default_image="x"))["Driver"] == "podman"
    assert _task(PLAIN, replace(SETTINGS, container_driver="podman"))["Driver"] == "podman"


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"driver": "docker"}, "default_image"), ({"container_driver": "lxc"}, "none of docker, podman")],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(SETTINGS, **changes)


def test_who_mounts_file_systems_may() -> None:
    volume = replace(PLAIN, volumes=(VolumeMount("/vol", "vo-1"),))
    for spec in (volume, replace(PLAIN, buckets=(BucketMount("/b", "bucket"),))):
        config = _task(spec)["Config"]
        assert config["cap_add"] == ["sys_admin"]
        assert [device["host_path"] for device in config["devices"]] == ["/dev/fuse"]
        assert "cap_add" not in _task(spec, replace(SETTINGS, container_fuse=False))["Config"]
    assert _task(volume, replace(SETTINGS, container_driver="podman"))["Config"]["devices"] == ["/dev/fuse"]
    nomads = replace(PLAIN, volumes=(VolumeMount("/vol", "", backend="host", source="s"),))
    assert "cap_add" not in _task(nomads)["Config"]


def test_who_is_to_reach_nothing_needs_rights_only_beside_mounts() -> None:
    blocked = replace(PLAIN, block_network=True)
    config = _task(blocked)["Config"]
    assert "cap_add" not in config and config["security_opt"] == ["seccomp=unconfined"]
    config = _task(replace(blocked, volumes=(VolumeMount("/vol", "vo-1"),)))["Config"]
    assert config["cap_add"] == ["sys_admin", "net_admin"]
    assert config["security_opt"] == ["apparmor=unconfined"]


def test_shared_directories_are_mounted_by_the_driver() -> None:
    spec = replace(PLAIN, network_file_systems=(NfsMount("/shared", "sv-1"),))
    task = _task(spec, replace(SETTINGS, nfs_directory="/srv/nfs"))
    assert task["Config"]["volumes"] == ["/srv/nfs/sv-1:/shared"]
    assert "MODAL_NFS_DIR" not in task["Env"]
    task = _task(spec, replace(SETTINGS, driver="exec", nfs_volume="files"))
    assert "volumes" not in task["Config"] and task["Env"]["MODAL_NFS_DIR"] == "/modal-nfs"


def test_ports_are_published_where_the_network_is_another() -> None:
    spec = replace(PLAIN, web=WebSpec("asgi"))
    assert "ports" not in _task(spec)["Config"]
    config = _task(spec, replace(SETTINGS, container_network="bridge"))["Config"]
    assert (config["ports"], config["network_mode"]) == (["http"], "bridge")


def test_limits() -> None:
    limited = replace(PLAIN, memory=(128, 300), cpu=(0.5, 2.0))
    assert _task(limited)["Config"]["memory_hard_limit"] == 300
    job = render_function(limited, SETTINGS)
    assert job["Meta"]["modal_cpu_limit"] == "2"
    plan = parse(job).container
    assert plan is not None and (plan.memory, plan.cores) == (300 << 20, 2.0)
    unlimited = parse(render_function(PLAIN, SETTINGS))
    assert unlimited.container is not None and unlimited.container.memory is unlimited.memory is None


def test_snapshots_are_of_processes() -> None:
    job = render_function(replace(PLAIN, enable_memory_snapshot=True), SETTINGS)
    assert "MetaOptional" not in job["ParameterizedJob"]


def test_a_schedules_launch_runs_in_the_image() -> None:
    job = schedule_job(render_function(PLAIN, SETTINGS), ScheduleSpec(cron="0 6 * * *"))
    assert job is not None
    (task,) = job["TaskGroups"][0]["Tasks"]
    assert task["Config"]["args"][-2:] == ["${NOMAD_TASK_DIR}/runtime/_start_worker.py", "--launch"]


def _start(tmp_path: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        # Of this machine's own programs none is to be found.
        ["/bin/sh", "-c", re.sub(r" /[a-z]+[a-z/]*/python3", "", START), "x", *arguments],
        env={"PATH": str(tmp_path), **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def _program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_the_start_line_finds_a_python(tmp_path: Path) -> None:
    none = _start(tmp_path)
    assert none.returncode == 127 and len(none.stderr.splitlines()) == 1
    assert none.stderr.startswith("modal-nomad: this image has no Python: add CPython 3.9")
    _program(tmp_path / "python", 'echo "python $*"; exit 3')
    done = _start(tmp_path, "a b", "c")
    assert (done.stdout, done.returncode) == ("python a b c\n", 3)
    _program(tmp_path / "python3", "echo three")
    assert _start(tmp_path).stdout == "three\n"
    own = _program(tmp_path / "own", "kill -9 $$")
    assert _start(tmp_path, MODAL_PYTHON=str(own)).returncode == 137


def test_the_start_line_passes_signals_on(tmp_path: Path) -> None:
    _program(tmp_path / "python3", "trap 'exit 5' TERM; echo up; while :; do /bin/sleep 0.02; done")
    command = ["/bin/sh", "-c", START, "x"]
    with subprocess.Popen(command, env={"PATH": str(tmp_path)}, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"up\n"
            process.terminate()
            assert process.wait(60) == 5
        finally:
            process.kill()


def test_what_the_runtime_is_asked_for() -> None:
    spec = replace(PLAIN, memory=(64, 128), cpu=(1.0, 1.5), volumes=(VolumeMount("/v", "vo-1"),))
    plan = parse(render_function(spec, SETTINGS))
    assert plan.is_worker and plan.container is not None and plan.image is None
    mounts = [Mount("/here", "/there", True)]
    body = container_body(plan.container, ["/bin/sh"], {"A": "1"}, mounts, {"l": "x"}, ["GPU-1"])
    host = body["HostConfig"]
    assert (body["Image"], body["Cmd"], body["Env"], body["User"]) == (IMAGE, ["/bin/sh"], ["A=1"], "root")
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (128 << 20, 128 << 20, 1_500_000_000)
    assert (host["NetworkMode"], host["ShmSize"], host["CapAdd"]) == ("host", 2 << 30, ["SYS_ADMIN"])
    assert host["Mounts"] == [{"Type": "bind", "Source": "/here", "Target": "/there", "ReadOnly": True}]
    assert host["Devices"][0]["PathInContainer"] == "/dev/fuse"
    assert host["DeviceRequests"][0]["DeviceIDs"] == ["GPU-1"]
    assert "Entrypoint" not in body


def test_the_podman_drivers_words_are_understood() -> None:
    settings = replace(SETTINGS, container_driver="podman", nfs_directory="/n")
    spec = replace(
        PLAIN, volumes=(VolumeMount("/v", "vo-1"),), network_file_systems=(NfsMount("/s", "sv-1"),)
    )
    task = parse(render_function(spec, settings)).container
    assert task is not None
    assert (task.driver, task.shm, task.devices) == ("podman", 2 << 30, (("/dev/fuse", "/dev/fuse"),))
    assert task.mounts == (Mount("/n/sv-1", "/s"),)


def test_a_job_without_an_image_is_a_fault() -> None:
    job = render_function(PLAIN, SETTINGS)
    assert faults_of(job) == []
    del job["TaskGroups"][0]["Tasks"][0]["Config"]["image"]
    assert faults_of(job) == ["the task's Config has no image; name the one to start its containers from"]


def _ended(oom: bool, number: int | None, code: int = 137) -> tuple[ContainerState, str, int | None]:
    plan: TaskPlan = parse(render_function(replace(PLAIN, memory=(64, 128)), SETTINGS))
    return describe_end(plan, code, number, stopping=False, oom=oom)


def test_ends_in_words() -> None:
    assert _ended(True, 9)[1] == "out of memory (limit 128 MiB): ask for more with memory="
    assert _ended(False, 9)[1] == "killed by signal 9 (SIGKILL)"
    assert _ended(False, None, 3) == (ContainerState.FAILED, "exit code 3", 3)
    # One of its processes was ended, and it went on.
    assert _ended(True, None, 0) == (ContainerState.COMPLETE, "", 0)


@pytest.mark.parametrize(
    ("reference", "name", "tag"),
    [
        ("debian", "debian", "latest"),
        ("debian:12", "debian", "12"),
        ("localhost:5000/a/b", "localhost:5000/a/b", "latest"),
        ("localhost:5000/a/b:1", "localhost:5000/a/b", "1"),
        ("r.example/a@sha256:ff", "r.example/a", "sha256:ff"),
    ],
)
def test_references(reference: str, name: str, tag: str) -> None:
    assert split_reference(reference) == (name, tag)


def _listen(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    return sock


def test_which_runtime(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("r")
    config, bare = folder / "config", {"PATH": str(folder), "DOCKER_CONFIG": str(folder / "config")}
    with _listen(folder / "d"), _listen(folder / "p"):
        named = {**bare, "DOCKER_HOST": f"unix://{folder}/d", "CONTAINER_HOST": f"unix://{folder}/p"}
        assert find_runtime("docker", folder, named).name == "Docker"
        assert find_runtime("podman", folder, named).socket == f"{folder}/p"
        with pytest.raises(EngineError, match="not on this machine"):
            find_runtime("docker", folder, {**bare, "DOCKER_HOST": "tcp://10.0.0.1:2376"})
        # The current context of Docker's own command line.
        meta = config / "contexts" / "meta" / hashlib.sha256(b"mine").hexdigest()
        meta.mkdir(parents=True)
        (meta / "meta.json").write_text(json.dumps({"Endpoints": {"docker": {"Host": f"unix://{folder}/d"}}}))
        (config / "config.json").write_text(json.dumps({"currentContext": "mine"}))
        assert find_runtime("docker", folder, bare).socket == f"{folder}/d"
    podman = _program(folder / "podman", "true")
    served = find_runtime("podman", folder, {**bare, "CONTAINER_HOST": ""})
    if served.command:
        assert served.command[0] == str(podman) and served.socket == str(folder / "podman.sock")
    podman.unlink()
    monkeypatch.setattr("modal_nomad.engines._local_runtimes._usable", lambda path: False)
    with pytest.raises(EngineError, match=r"needs a container runtime .* start Docker or Podman"):
        find_runtime("docker", folder, {"PATH": str(folder), "DOCKER_CONFIG": os.devnull})


def test_registries_are_asked_as_docker_login_says(tmp_path: Path) -> None:
    auth = base64.b64encode(b"ann:secret").decode()
    auths = {"r.example": {"auth": auth}, "https://index.docker.io/v1/": {"identitytoken": "t"}}
    (tmp_path / "config.json").write_text(json.dumps({"auths": auths}))
    environ = {"DOCKER_CONFIG": str(tmp_path)}
    mine = {"username": "ann", "password": "secret", "serveraddress": "r.example"}
    assert registry_credentials("r.example/a:1", environ) == mine
    assert registry_credentials("debian", environ)["identitytoken"] == "t"
    assert registry_credentials("other.example/a", environ) == {}
    assert registry_credentials("r.example/a:1", {"DOCKER_CONFIG": os.devnull}) == {}
