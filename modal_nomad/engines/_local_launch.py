"""From a rendered job's container to a request of this machine's runtime: variables, mounts, secret files."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modal_nomad.engines._local_container import LocalContainer
from modal_nomad.engines._local_docker import DockerContainers
from modal_nomad.engines._local_gpus import gpu_environment
from modal_nomad.engines._local_image import SOCKET, ContainerTask, Mount, container_body, without_network
from modal_nomad.engines._local_job import interpolate, variables_of
from modal_nomad.engines._local_runtimes import Runtime, find_runtime
from modal_nomad.engines.base import EngineError

_UNIX = "unix://"
_SECRETS = "modal_secrets.json"
_TOKEN = "nomad_modal.jwt"
_BLOCK, _ASKED, _BLOCKED = "MODAL_BLOCK_NETWORK", "1", "done"


class ContainerRuntimes:
    """The runtimes that an engine's containers are on, each opened when it is first needed.

    Args:
        home: the engine's directory.
        on_event: gets what ``DockerContainers`` tells.
    """

    def __init__(self, home: pathlib.Path, on_event: Callable[[dict[str, Any]], None]) -> None:
        self._home = home
        self._on_event = on_event
        self._open: dict[Runtime, DockerContainers] = {}

    def of(self, task: ContainerTask) -> DockerContainers:
        """Return the runtime for a task. Raises EngineError where this machine has none."""
        runtime = find_runtime(task.driver, self._home)
        for known, containers in self._open.items():
            # One that is served here has a socket by now.
            if known.socket == runtime.socket:
                return containers
        self._open[runtime] = DockerContainers(runtime, self._home, self._on_event)
        return self._open[runtime]

    def faults(self, task: ContainerTask) -> list[str]:
        """Return what keeps a task from running here, in words."""
        try:
            find_runtime(task.driver, self._home)
        except EngineError as exc:
            return [str(exc)]
        faults = [f"the device {outside} is not on this machine" for outside, _ in _missing(task.devices)]
        return [f"{fault}: set container_fuse = false under [render] in local.toml" for fault in faults]

    def launch(
        self, container: LocalContainer, bundles: Mapping[str, pathlib.Path], logs: Sequence[int]
    ) -> None:
        """Start a container; takes ownership of ``logs``. Raises EngineError, OSError."""
        plan, request = container.plan, container.request
        assert plan.container is not None
        containers = self.of(plan.container)
        variables = variables_of(plan, request.container_id, container.allocation_id, "")
        env = {**variables, **{k: interpolate(v, variables) for k, v in plan.env.items()}}
        mounts = [Mount(str(path), f"/local/{name}", True) for name, path in bundles.items()]
        secrets = container.directory / "secrets"
        secrets.mkdir(mode=0o700, parents=True, exist_ok=True)
        mounts.append(Mount(str(secrets), "/secrets"))
        given = {**request.env, **gpu_environment(container.gpus)}
        if plan.is_worker:
            # In files and not in variables: those a runtime shows to whoever asks it.
            token = given.pop("MODAL_WORKER_TOKEN", None)
            if token is not None:
                _write(secrets / _TOKEN, token)
                given["MODAL_WORKER_TOKEN_FILE"] = f"/secrets/{_TOKEN}"
            if request.secrets:
                values = {"keys": {}, "values": dict(request.secrets)}
                _write(secrets / _SECRETS, json.dumps({"keep": [], "secrets": [values]}))
                given["MODAL_SECRETS_FILE"] = f"/secrets/{_SECRETS}"
        else:
            given = {**request.secrets, **given}
        address = given.get("MODAL_SERVER_URL", "")
        if address.startswith(_UNIX):
            mounts.append(Mount(address[len(_UNIX) :], SOCKET))
            given["MODAL_SERVER_URL"] = _UNIX + SOCKET
        mounts += [self._real(mount) for mount in plan.container.mounts]
        command = [interpolate(plan.command, variables), *(interpolate(x, variables) for x in plan.args)]
        gpus = [grant.gpu.uuid for grant in container.gpus]
        env.update(given)
        task = plan.container
        if _needs_no_network(env):
            # The runtime gives it none, and so it needs no rights by which to leave one.
            env[_BLOCK] = _BLOCKED
            task = without_network(task)
        labels = {"modal-nomad.container": request.container_id, "modal-nomad.job": plan.job_id}
        body = container_body(task, command, env, mounts, labels, gpus)
        container.warm = containers
        containers.spawn(request.container_id, body, logs)

    async def close(self) -> None:
        """Remove every container, and be done with the runtimes."""
        for containers in list(self._open.values()):
            await containers.close()
        self._open.clear()

    def _real(self, mount: Mount) -> Mount:
        if mount.volume:
            if "/" in mount.source or mount.source in ("", ".", ".."):
                raise EngineError(f"{mount.source!r} is no name of a host volume: correct the name")
            mount = Mount(str(self._home / "host-volumes" / mount.source), mount.target, mount.read_only)
        # As Nomad's driver has it, and unlike a file that is missing, a directory that is missing is made.
        os.makedirs(mount.source, exist_ok=True)
        return mount


def _needs_no_network(env: Mapping[str, str]) -> bool:
    """Say whether a container is to have no network, and nothing that it needs first comes over one."""
    if env.get(_BLOCK) != _ASKED or "MODAL_IMAGE" in env:
        return False
    return env.get("MODAL_SERVER_URL", "").startswith(_UNIX)


def _missing(devices: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [device for device in devices if not os.path.exists(device[0])]


def _write(path: pathlib.Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
