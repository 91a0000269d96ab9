"""Reads what a rendered job says of its container image, and says it to a container runtime. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modal_nomad.engines.base import EngineError, Job
from modal_nomad.wire.spec import CONTAINER_DRIVERS

SOCKET = "/run/modal-nomad/dispatcher.sock"
"""Where a container has the dispatcher's socket."""
_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_CPU_LIMIT = "modal_cpu_limit"
_NANO = 1_000_000_000
_OF_NETWORK = ("NET_ADMIN", "SYS_ADMIN")
_MOUNT = ("SYS_ADMIN",)
# What the rendered job says where there is no limit; no machine has as much.
_UNLIMITED = 1 << 42


@dataclass(frozen=True)
class Mount:
    """A directory or file of this machine in a container; for a host volume ``source`` is its name."""

    source: str
    target: str
    read_only: bool = False
    volume: bool = False


_UNFILTERED = "seccomp=unconfined"
"""What a container needs that leaves the network by itself."""


@dataclass(frozen=True)
class ContainerTask:
    """What the config of the docker or podman driver asks for.

    Attributes:
        driver: ``docker`` or ``podman``.
        image: what containers are started from.
        entrypoint: in place of the image's; empty for that one.
        user: in place of the image's; empty for that one.
        network: the network mode.
        memory: the limit in bytes; None for none.
        cores: the limit; 0 for none.
        shm: bytes of ``/dev/shm``.
        devices: paths on this machine and in the container.
        capabilities: those added.
        security: security options.
        mounts: what is mounted from this machine.
        init: whether the runtime's own first process is wanted.
    """

    driver: str
    image: str
    entrypoint: tuple[str, ...] = ()
    user: str = ""
    network: str = "host"
    memory: int | None = None
    cores: float = 0.0
    shm: int = 64 << 20
    devices: tuple[tuple[str, str], ...] = ()
    capabilities: tuple[str, ...] = ()
    security: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    init: bool = False


def container_task(job: Job, meta: Mapping[str, str]) -> ContainerTask | None:
    """Read a job's one task; None where it is a process of this machine. Raises EngineError."""
    group = job["TaskGroups"][0]
    task = group["Tasks"][0]
    if task.get("Driver") not in CONTAINER_DRIVERS:
        return None
    config = task.get("Config") or {}
    image = config.get("image")
    if not isinstance(image, str) or not image:
        raise EngineError("the task's Config has no image; name the one to start its containers from")
    resources = task.get("Resources") or {}
    limit = max(int(config.get("memory_hard_limit") or 0), int(resources.get("MemoryMaxMB") or 0)) << 20
    return ContainerTask(
        driver=str(task["Driver"]),
        image=image,
        entrypoint=tuple(str(x) for x in config.get("entrypoint") or ()),
        user=str(task.get("User") or ""),
        network=str(config.get("network_mode") or "host"),
        memory=limit if 0 < limit < _UNLIMITED else None,
        cores=float(meta.get(_CPU_LIMIT) or 0),
        shm=_size(config.get("shm_size") or "64m"),
        devices=tuple(_device(x) for x in config.get("devices") or ()),
        capabilities=tuple(str(x).upper() for x in config.get("cap_add") or ()),
        security=tuple(str(x) for x in config.get("security_opt") or ()),
        mounts=(*map(_bind, config.get("volumes") or ()), *_host_volumes(group, task)),
        init=bool(config.get("init")),
    )


def without_network(task: ContainerTask) -> ContainerTask:
    """Return a task whose containers have a loopback of their own alone, and no right to change that."""
    # Who mounts file systems asks for their device, too.
    needed = _MOUNT if task.devices else ()
    kept = tuple(x for x in task.capabilities if x not in _OF_NETWORK or x in needed)
    filtered = tuple(x for x in task.security if x != _UNFILTERED)
    return replace(task, network="none", capabilities=kept, security=filtered)


def _size(value: Any) -> int:
    text = str(value).lower().rstrip("b")
    return int(text[:-1]) * _UNITS[text[-1]] if text[-1:] in _UNITS else int(text)


def _device(value: Any) -> tuple[str, str]:
    if isinstance(value, Mapping):
        path = str(value.get("host_path") or "")
        return path, str(value.get("container_path") or path)
    path, _, inside = str(value).partition(":")
    return path, inside.partition(":")[0] or path


def _bind(text: Any) -> Mount:
    source, _, rest = str(text).partition(":")
    target, _, mode = rest.partition(":")
    return Mount(source, target, "ro" in mode.split(","))


def _host_volumes(group: Mapping[str, Any], task: Mapping[str, Any]) -> list[Mount]:
    volumes = group.get("Volumes") or {}
    return [
        Mount(
            str(volumes[mount["Volume"]].get("Source")),
            str(mount["Destination"]),
            bool(mount.get("ReadOnly") or volumes[mount["Volume"]].get("ReadOnly")),
            volume=True,
        )
        for mount in task.get("VolumeMounts") or ()
    ]


def container_body(
    task: ContainerTask,
    command: Sequence[str],
    env: Mapping[str, str],
    mounts: Sequence[Mount],
    labels: Mapping[str, str],
    gpus: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the request that makes a container.

    Args:
        task: what the job asks for.
        command: the program and its arguments, which an image's ENTRYPOINT gets as its own.
        env: its variables, over the image's.
        mounts: what it sees of this machine, by real paths.
        labels: by which it is found.
        gpus: the driver's ids of those it may use.
    """
    host: dict[str, Any] = {
        "NetworkMode": task.network,
        "ShmSize": task.shm,
        # What it prints is read as it comes, and kept once.
        "LogConfig": {"Type": "none"},
        "Mounts": [
            {"Type": "bind", "Source": x.source, "Target": x.target, "ReadOnly": x.read_only} for x in mounts
        ],
        "Devices": [
            {"PathOnHost": outside, "PathInContainer": inside, "CgroupPermissions": "rwm"}
            for outside, inside in task.devices
        ],
        "CapAdd": list(task.capabilities),
        "SecurityOpt": list(task.security),
    }
    if task.memory is not None:
        # Equal: a container that swaps is slow for as long as it lives, where one that is ended is told of.
        host |= {"Memory": task.memory, "MemorySwap": task.memory}
    if task.cores:
        host["NanoCpus"] = int(task.cores * _NANO)
    if task.init:
        host["Init"] = True
    if gpus:
        request = {"Driver": "nvidia", "DeviceIDs": list(gpus), "Capabilities": [["gpu"]]}
        host["DeviceRequests"] = [request]
    body: dict[str, Any] = {
        "Image": task.image,
        "Cmd": list(command),
        "Env": [f"{name}={value}" for name, value in env.items()],
        "Labels": dict(labels),
        # A volume of its own and not a layer: what is written there is as fast as on this machine.
        "Volumes": {"/alloc": {}},
        "HostConfig": host,
    }
    if task.entrypoint:
        body["Entrypoint"] = list(task.entrypoint)
    if task.user:
        body["User"] = task.user
    return body
