"""What a cluster decides about every job rendered for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from modal_nomad.wire.spec import CONTAINER_DRIVERS

DRIVERS = ("raw_exec", "exec", *CONTAINER_DRIVERS)
VOLUME_TYPES = ("host", "csi")
CHECKS = ("http", "tcp")


@dataclass(frozen=True)
class RenderSettings:
    """The cluster's side of a rendered job; the dispatcher hands it to clients as a JSON object.

    Attributes:
        server_url: address that containers dial and fetch artifacts from.
        runtime_sha: SHA-256 of the zip with the worker.
        web_sha: SHA-256 of the zip with what serves web Functions in containers; empty for none.
        driver: Nomad task driver of Functions whose Image is a Python environment: ``raw_exec``, ``exec``,
            or ``docker`` or ``podman``, which run ``default_image``.
        container_driver: what runs Functions whose Image is a container image, ``docker`` or ``podman``.
        default_image: the container image of Functions whose own Image needs none, where ``driver`` runs it.
        build_plain_images: whether the packages of such Functions are built into container images, and not
            installed in each container as it starts.
        container_network: the network of containers, as the driver takes it.
        container_shm: MiB that ``/dev/shm`` of a container may hold.
        container_fuse: whether containers that show Volumes or buckets get ``/dev/fuse`` and may mount.
        datacenters: where jobs may run when a Function names no region.
        namespace: Nomad namespace.
        namespaces: Nomad namespaces by environments, ``*`` for those that are not named; without that they
            are called as their environments. With none at all everything is in ``namespace``.
        node_pool: Nomad node pool.
        python: interpreter on the node that starts the worker.
        app_suffix: makes the jobs of an ephemeral App unique; empty for deployed ones.
        deployer: who deploys, for the job's meta.
        environment: the Modal environment.
        priority: Nomad job priority.
        core_mhz: how many of Nomad's MHz one core of ``cpu=`` is.
        default_cpu: MHz when a Function asks for none.
        default_memory: MiB when a Function asks for none.
        kill_timeout: seconds between SIGTERM and SIGKILL.
        snapshot_seconds: how long an allocation stays for a memory snapshot that nobody asks; 0 for none.
        ephemeral_disk: MiB when a Function asks for none.
        log_files: rotated log files kept per stream.
        log_file_size: MiB of one log file.
        vault_mount: Vault's KV version 2 engine that has the Secrets; empty where allocations read none.
        vault_prefix: the folder in it, above the environments' folders.
        vault_role: the JWT role that allocations log in to Vault with; empty for Nomad's default one.
        vault_namespace: Vault's namespace; empty for Nomad's default one.
        nfs_directory: where nodes have the shared directory of NetworkFileSystems; empty for none.
        nfs_volume: the Nomad volume that has it instead.
        nfs_volume_type: ``host`` or ``csi``.
        proxies: which nodes have the address of a proxy, by its name: their ``node_pool``, and what their
            meta says (``node_meta``).
        consul_services: whether the jobs of web Functions register Consul services.
        consul_check: ``http``, which asks the container, or ``tcp``.
        consul_check_interval: seconds between checks.
        consul_namespace: Consul's namespace (Enterprise); empty for none.
        edge: containers of web Functions take requests without the gateways' key, for a proxy of one's own.
        edge_seconds: what that proxy may take to hear from Consul that a container has gone.
        web_domain: what the host names of endpoints end in.
        web_workspace: what they begin with.
        web_suffixes: what stands for an environment in them, where it is not the environment's name.
    """

    server_url: str
    runtime_sha: str
    web_sha: str = ""
    driver: str = "raw_exec"
    container_driver: str = "docker"
    default_image: str = ""
    build_plain_images: bool = False
    container_network: str = "host"
    container_shm: int = 2048
    container_fuse: bool = True
    datacenters: tuple[str, ...] = ("*",)
    namespace: str = "default"
    namespaces: Mapping[str, str] = field(default_factory=dict)
    node_pool: str = "default"
    python: str = "python3"
    app_suffix: str = ""
    deployer: str = ""
    environment: str = "main"
    priority: int = 50
    core_mhz: int = 1000
    default_cpu: int = 100
    default_memory: int = 256
    kill_timeout: float = 30.0
    snapshot_seconds: float = 600.0
    ephemeral_disk: int = 300
    log_files: int = 5
    log_file_size: int = 10
    vault_mount: str = ""
    vault_prefix: str = "modal"
    vault_role: str = ""
    vault_namespace: str = ""
    nfs_directory: str = ""
    nfs_volume: str = ""
    nfs_volume_type: str = "host"
    proxies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    consul_services: bool = False
    consul_check: str = "http"
    consul_check_interval: float = 10.0
    consul_namespace: str = ""
    edge: bool = False
    edge_seconds: float = 30.0
    web_domain: str = "localhost"
    web_workspace: str = ""
    web_suffixes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.driver not in DRIVERS:
            raise ValueError(f"driver {self.driver!r} is not supported: use one of {', '.join(DRIVERS)}")
        if self.container_driver not in CONTAINER_DRIVERS:
            raise ValueError(
                f"container_driver {self.container_driver!r} is none of {', '.join(CONTAINER_DRIVERS)}"
            )
        if self.driver in CONTAINER_DRIVERS and not self.default_image:
            raise ValueError(
                f"the driver {self.driver} needs default_image, for Functions that name none, such as"
                " 'python:3.12-slim'"
            )
        if self.consul_check not in CHECKS or self.consul_check_interval < 1:
            raise ValueError("consul_check is http or tcp, and consul_check_interval 1 second or more")
        if self.nfs_volume_type not in VOLUME_TYPES:
            raise ValueError(f"volume_type {self.nfs_volume_type!r} is none of {', '.join(VOLUME_TYPES)}")
        if self.nfs_volume and self.driver == "raw_exec":
            raise ValueError(
                "the driver raw_exec mounts no volumes: for NetworkFileSystems give node_directory under"
                " [nfs], or use the driver exec"
            )

    def namespace_of(self, environment: str) -> str:
        """Return the Nomad namespace that an environment's jobs are in."""
        if not self.namespaces:
            return self.namespace
        return self.namespaces.get(environment) or self.namespaces.get("*") or environment

    def placed(self, environment: str) -> RenderSettings:
        """Return the settings for an environment, with its namespace."""
        return replace(self, environment=environment, namespace=self.namespace_of(environment))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of these settings."""
        return {**dataclasses.asdict(self), "datacenters": list(self.datacenters)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RenderSettings:
        """Read the JSON object of settings; unknown fields are ignored, so a newer server is understood."""
        names = {f.name for f in dataclasses.fields(cls)}
        known = {k: v for k, v in data.items() if k in names}
        if "datacenters" in known:
            known["datacenters"] = tuple(known["datacenters"])
        return cls(**known)
