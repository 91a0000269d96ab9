"""What a container that is a process is started with: its directory, its variables, its command."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Mapping
from dataclasses import replace

from modal_nomad.engines._local_container import LocalContainer
from modal_nomad.engines._local_gpus import gpu_environment
from modal_nomad.engines._local_job import interpolate, variables_of
from modal_nomad.engines._warm import Spawn
from modal_nomad.engines.base import EngineError


def process_of(
    container: LocalContainer,
    bundles: Mapping[str, pathlib.Path],
    base: Mapping[str, str],
    home: pathlib.Path,
) -> Spawn:
    """Make a container's directory, and return how its process is started.

    Args:
        container: its limits have been chosen; its variables are set here.
        bundles: what is laid out for it, by names.
        base: variables that every container has.
        home: the engine's directory.

    Raises:
        EngineError: there is no such command.
        OSError: the directory cannot be made.
    """
    plan, request, directory = container.plan, container.request, str(container.directory)
    for name in ("local", "secrets", "alloc"):
        os.makedirs(f"{directory}/{name}", mode=0o700, exist_ok=True)
    for name, path in bundles.items():
        os.symlink(path, f"{directory}/local/{name}")
    variables = variables_of(plan, request.container_id, container.allocation_id, directory)
    env = {**base, **variables}
    env.update({k: interpolate(v, variables) for k, v in plan.env.items()})
    env.update(request.secrets)
    env.update(request.env)
    env.update(gpu_environment(container.gpus))
    if plan.host_volumes:
        env["MODAL_HOST_VOLUMES"] = str(home / "host-volumes")
    if "MODAL_WORKER_TOKEN" in request.env:
        # There is no workload identity here, so no file of one.
        env.pop("MODAL_WORKER_TOKEN_FILE", None)
    code = bundles.get("code")
    if "runtime" in bundles:
        env["MODAL_RUNTIME_DIR"] = str(bundles["runtime"])
    if code is not None:
        env["MODAL_CODE_DIR"] = str(code)
    container.env = env
    args = [interpolate(x, variables) for x in plan.args]
    spawn = Spawn(
        request.container_id,
        env,
        directory,
        path=[str(code)] if code else [],
        program=args[-1] if args else "",
        memory=plan.memory,
        cpus=container.cpus,
        groups=container.group.doors if container.group is not None else (),
    )
    if plan.is_worker:
        return spawn
    command = interpolate(plan.command, variables)
    found = shutil.which(command, path=env.get("PATH")) or shutil.which(f"{directory}/{command}")
    if found is None:
        raise EngineError(f"no command {command!r} on this machine; install it or name its full path")
    return replace(spawn, argv=[found, *args])


def cpu_words(container: LocalContainer, why_not: str) -> str:
    """Say that a limit of processors is held less exactly than it was asked for; empty when it is not."""
    cpu, cores = container.plan.cpu, container.plan.cores
    if not cpu or cpu == cores or container.group is not None:
        return ""
    return (
        f"modal-nomad: the limit of {cpu:g} processors is held as {cores}, because parts of one need control"
        f" groups, which cannot be made here ({why_not})\n"
    )
