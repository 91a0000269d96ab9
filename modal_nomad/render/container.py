"""A Function's container image → the ``config`` of Nomad's docker or podman driver, and its start line.

The image has nothing of ours in it. Its ENTRYPOINT stays and gets the start line as its arguments, in place
of the image's CMD; its WORKDIR and its variables hold.
"""

from __future__ import annotations

from typing import Any

from modal_nomad.render.settings import RenderSettings
from modal_nomad.wire.spec import CONTAINER_DRIVERS, FunctionSpec

CPU_LIMIT_META = "modal_cpu_limit"
RUNTIME_VARIABLE = "MODAL_CONTAINER_RUNTIME"
"""Says to a worker that its file system is its own, and which driver started it."""
UNLIMITED = 1 << 22
"""MiB that no node has: without a limit the docker driver takes the request for one."""
USER = "root"
_FUSE = "/dev/fuse"
_ADMIN = {True: "sys_admin", False: "SYS_ADMIN"}
_NET_ADMIN = {True: "net_admin", False: "NET_ADMIN"}
"""Capabilities, as Docker and as Podman call them."""
# Braces after a dollar sign would be Nomad's, which puts its own variables there.
# The shell stays, as the first process: a program in that place ignores the signals that it has no handler
# for, even its own SIGKILL, and would have to collect the ends of processes that are not its children.
START = """\
for python in $MODAL_PYTHON python3 python /usr/local/bin/python3 /usr/bin/python3 \
/opt/conda/bin/python3 /opt/venv/bin/python3; do
command -v "$python" >/dev/null 2>&1 || continue
got=; worker=
trap 'got=TERM; [ "$worker" ] && kill -TERM "$worker" 2>/dev/null' TERM
trap 'got=INT; [ "$worker" ] && kill -INT "$worker" 2>/dev/null' INT
"$python" "$@" & worker=$!
[ "$got" ] && kill -"$got" "$worker"
while got=; wait "$worker"; code=$?; [ "$got" ] && kill -0 "$worker" 2>/dev/null; do :; done
[ "$got" ] && { wait "$worker"; last=$?; [ "$last" = 127 ] || code=$last; }
exit "$code"
done
echo "modal-nomad: this image has no Python: add CPython 3.9 or newer to it (add_python= of\
 Image.from_registry, or a step that installs one), or name it with Image.env({'MODAL_PYTHON': ...})" >&2
exit 127
"""
NO_PYTHON = 127
"""The exit code of a container whose image has no Python, or none that is new enough."""


def container_image(spec: FunctionSpec, settings: RenderSettings) -> str:
    """Return what a Function's containers are started from; empty where they are processes of the node."""
    if spec.container_image:
        return spec.container_image
    return settings.default_image if settings.driver in CONTAINER_DRIVERS else ""


def container_driver(settings: RenderSettings) -> str:
    """Return the driver that runs container images."""
    return settings.driver if settings.driver in CONTAINER_DRIVERS else settings.container_driver


def container_meta(spec: FunctionSpec, settings: RenderSettings) -> dict[str, str]:
    """Return what the job's meta says of it; nothing where containers are processes of the node."""
    image = container_image(spec, settings)
    if not image:
        return {}
    # Nomad has no word for the limit: its drivers share the processors out by the requests.
    limit = {CPU_LIMIT_META: f"{spec.cpu[1]:g}"} if spec.cpu[1] else {}
    return {"modal_container_image": image, **limit}


def shows_file_systems(spec: FunctionSpec) -> bool:
    """Say whether containers mount file systems of their own."""
    return bool(spec.buckets) or any(not volume.backend for volume in spec.volumes)


def container_config(image: str, spec: FunctionSpec, settings: RenderSettings) -> dict[str, Any]:
    """Return the task's ``Config``.

    Args:
        image: what ``container_image`` says.
        spec: what to run.
        settings: what the cluster decides.
    """
    docker = container_driver(settings) == "docker"
    config: dict[str, Any] = {
        "image": image,
        "command": "/bin/sh",
        "args": ["-c", START, "modal-nomad", "${NOMAD_TASK_DIR}/runtime/_start_worker.py"],
        # Who is to be reached from outside has the node's network.
        "network_mode": "host" if spec.i6pn else settings.container_network,
        "shm_size": settings.container_shm << 20 if docker else f"{settings.container_shm}m",
        "auth_soft_fail": True,
        # Many allocations ask for one large image at a time, and each has to wait for it.
        "image_pull_timeout": "30m",
    }
    if docker:
        config["memory_hard_limit"] = spec.memory[1] or UNLIMITED
    if spec.served and settings.container_network != "host":
        config["ports"] = ["http"]
    if shows_file_systems(spec) and settings.container_fuse:
        config["devices"] = [{"host_path": _FUSE, "container_path": _FUSE}] if docker else [_FUSE]
        config["cap_add"] = [_ADMIN[docker]]
        # Where a node has AppArmor, Docker's own profile lets nobody mount.
        config["security_opt"] = ["apparmor=unconfined"]
    if spec.block_network and "cap_add" in config:
        # To leave the network once it has the way to its dispatcher, and to have a loopback of its own.
        config["cap_add"] = [_ADMIN[docker], _NET_ADMIN[docker]]
    elif spec.block_network:
        # It leaves into a user namespace of its own, which needs no rights and has no way back; but the
        # runtime's filter of system calls allows that to nobody who could not do without.
        config["security_opt"] = ["seccomp=unconfined"]
    if spec.network_file_systems and settings.nfs_directory and not settings.nfs_volume:
        config["volumes"] = [
            f"{settings.nfs_directory}/{mount.nfs_id}:{mount.path}" for mount in spec.network_file_systems
        ]
    return config
