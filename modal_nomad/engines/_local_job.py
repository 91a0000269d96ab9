"""Reads a rendered Nomad job the way a Nomad client would, for processes on this machine. Pure."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modal_nomad.engines._local_gpus import GPURequest, gpu_request
from modal_nomad.engines._local_image import ContainerTask, container_task
from modal_nomad.engines.base import EngineError, Job
from modal_nomad.wire.over_use import DISK
from modal_nomad.wire.spec import CONTAINER_DRIVERS, ImageSpec

WORKER_SUFFIX = "_start_worker.py"
CPU_LIMIT = "MODAL_CPU_LIMIT"
_PROCESS_DRIVERS = ("raw_exec", "exec")
_REFERENCE = re.compile(r"\$\{([A-Za-z0-9_.\-]+)\}")
_SHA = re.compile(r"[0-9a-f]{64}")
# What a process needs to find programs, files, certificates and the user's language; nothing secret.
_INHERITED = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "CUDA_VISIBLE_DEVICES",
)


@dataclass(frozen=True)
class Artifact:
    """One zip to lay out below the task directory: its SHA-256 and where it goes."""

    sha: str
    destination: str


@dataclass(frozen=True)
class TaskPlan:
    """What one container of a job is.

    Attributes:
        job_id: the job's id.
        namespace: the job's namespace.
        task: the task's name.
        command: the program to run.
        args: its arguments, references not yet replaced.
        env: the task's environment, references not yet replaced.
        meta: job, group and task meta, the inner one winning.
        memory: the limit in bytes, or None.
        cpu: the limit in processors, or 0.
        kill_timeout: seconds between SIGTERM and SIGKILL.
        artifacts: the zips.
        image: the image, when the job names one.
        gpus: the GPUs, when it asks for any.
        host_volumes: the names of host volumes.
        container: what its containers are, where a container runtime has them.
        disk: the limit of what a container keeps in files of its own, in bytes, or None.
    """

    job_id: str
    namespace: str
    task: str
    command: str
    args: tuple[str, ...]
    env: Mapping[str, str]
    meta: Mapping[str, str]
    memory: int | None
    cpu: float
    kill_timeout: float
    artifacts: tuple[Artifact, ...] = ()
    image: ImageSpec | None = field(default=None)
    gpus: GPURequest | None = None
    host_volumes: tuple[str, ...] = ()
    container: ContainerTask | None = None
    disk: int | None = None

    @property
    def cores(self) -> int:
        """On how many processors it runs at a time; 0 for all."""
        return math.ceil(self.cpu)

    @property
    def is_worker(self) -> bool:
        """True when the container is a worker, which as a process is forked from a warm interpreter."""
        return bool(self.args) and self.args[-1].endswith(WORKER_SUFFIX)

    def artifact(self, name: str) -> Artifact | None:
        """Return the artifact whose destination ends in ``name``."""
        for artifact in self.artifacts:
            if artifact.destination == name:
                return artifact
        return None


def base_environment() -> dict[str, str]:
    """Return the part of this process's environment that a container may see."""
    return {name: os.environ[name] for name in _INHERITED if name in os.environ}


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """Replace ``${NAME}``; a name nobody knows stays as it is, as Nomad leaves it."""
    return _REFERENCE.sub(lambda found: variables.get(found.group(1), found.group(0)), text)


def task_of(job: Job) -> Mapping[str, Any]:
    """Return the one task of a job. Raises EngineError when there is none."""
    try:
        task = job["TaskGroups"][0]["Tasks"][0]
    except (KeyError, IndexError, TypeError):
        raise EngineError(
            f"job {job.get('ID')!r} has no task group with a task; render it again with this version"
        ) from None
    if not isinstance(task, Mapping):
        raise EngineError(f"job {job.get('ID')!r} has a task that is no object; render it again")
    return task


def image_of(meta: Mapping[str, Any]) -> ImageSpec | None:
    """Return the image that a job's meta names."""
    text = meta.get("modal_image")
    if not text:
        return None
    try:
        return ImageSpec.from_dict(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise EngineError(f"meta modal_image is not an image ({exc}); publish the app again") from exc


def parse(job: Job) -> TaskPlan:
    """Read a job. Raises EngineError naming the fault."""
    faults = faults_of(job)
    if faults:
        raise EngineError("; ".join(faults))
    group, task = job["TaskGroups"][0], task_of(job)
    meta: dict[str, str] = {}
    for level in (job, group, task):
        meta.update({k: str(v) for k, v in (level.get("Meta") or {}).items()})
    config = task.get("Config") or {}
    resources = task.get("Resources") or {}
    limit = int(resources.get("MemoryMaxMB") or 0) << 20
    container = container_task(job, meta)
    if container is not None:
        limit = container.memory or 0
    return TaskPlan(
        job_id=job["ID"],
        namespace=job.get("Namespace") or "default",
        task=task.get("Name") or "task",
        command=str(config.get("command") or ""),
        args=tuple(str(x) for x in config.get("args") or ()),
        # Its engine looks at its files here, not its worker.
        env={k: str(v) for k, v in (task.get("Env") or {}).items() if k != DISK},
        meta=meta,
        memory=limit if limit > 0 else None,
        cpu=float(resources.get("Cores") or (task.get("Env") or {}).get(CPU_LIMIT) or 0),
        kill_timeout=(task.get("KillTimeout") or 5_000_000_000) / 1e9,
        artifacts=tuple(_artifact(x) for x in task.get("Artifacts") or ()),
        image=image_of(meta) if container is None else None,
        gpus=gpu_request(resources),
        host_volumes=tuple(str(x.get("Source")) for x in (group.get("Volumes") or {}).values()),
        container=container,
        disk=int((task.get("Env") or {}).get(DISK) or 0) << 20 or None,
    )


def _artifact(block: Mapping[str, Any]) -> Artifact:
    options = block.get("GetterOptions") or {}
    for text in (str(block.get("GetterSource") or ""), str(options.get("checksum") or "")):
        found = _SHA.search(text)
        if found:
            destination = str(block.get("RelativeDest") or "local").rstrip("/").rsplit("/", 1)[-1]
            return Artifact(found.group(0), destination)
    raise EngineError(
        f"artifact {block.get('GetterSource')!r} is not named by its SHA-256, "
        "and this machine fetches nothing else; publish the app again"
    )


def faults_of(job: Job) -> list[str]:
    """Return what keeps a job from running on this machine, in words."""
    faults: list[str] = []
    if not isinstance(job.get("ID"), str) or not job["ID"]:
        faults.append("the job has no ID; give it one")
    if not isinstance(job.get("Namespace") or "", str):
        faults.append(f"the job's namespace {job['Namespace']!r} is no name; give it one")
    if job.get("Type") != "batch":
        faults.append(f"job type {job.get('Type')!r} is not supported here; use 'batch'")
    try:
        task = task_of(job)
    except EngineError as exc:
        return [*faults, str(exc)]
    driver = task.get("Driver")
    if driver not in (*_PROCESS_DRIVERS, *CONTAINER_DRIVERS):
        faults.append(
            f"driver {driver!r} is not supported here; set the driver to 'raw_exec' or 'docker', or send the"
            " app to a Nomad cluster (MODAL_SERVER_URL)"
        )
    elif driver in _PROCESS_DRIVERS and not isinstance((task.get("Config") or {}).get("command"), str):
        faults.append("the task's Config has no command; name the program to run")
    meta: dict[str, Any] = {**(job.get("Meta") or {}), **(task.get("Meta") or {})}
    for volume in (job["TaskGroups"][0].get("Volumes") or {}).values():
        if volume.get("Type") != "host":
            faults.append(
                f'{volume.get("Type")} volume {volume.get("Source")!r} needs Nomad: use backend="host", or'
                " send the app to a cluster (MODAL_SERVER_URL)"
            )
    try:
        for artifact in task.get("Artifacts") or ():
            _artifact(artifact)
        if driver in CONTAINER_DRIVERS:
            container_task(job, meta)
        else:
            faults.extend(_image_faults(image_of(meta)))
        gpu_request(task.get("Resources") or {})
    except EngineError as exc:
        faults.append(str(exc))
    return faults


def _image_faults(image: ImageSpec | None) -> Sequence[str]:
    return [
        f"image step {number} ({' '.join((layer.kind, *layer.args))}) needs a container runtime; "
        "use pip_install, uv_sync and add_local_... only, or send the app to a Nomad cluster with the docker"
        " driver"
        for number, layer in enumerate(image.layers if image else (), 1)
        if layer.needs_container
    ]


def variables_of(plan: TaskPlan, container_id: str, allocation_id: str, directory: str) -> dict[str, str]:
    """Return the ``NOMAD_*`` variables of a container."""
    values = {
        "NOMAD_META_modal_container": container_id,
        "NOMAD_ALLOC_ID": allocation_id,
        "NOMAD_ALLOC_DIR": f"{directory}/alloc",
        "NOMAD_TASK_DIR": f"{directory}/local",
        "NOMAD_SECRETS_DIR": f"{directory}/secrets",
        "NOMAD_TASK_NAME": plan.task,
        "NOMAD_JOB_ID": f"{plan.job_id}/{container_id}",
        "NOMAD_JOB_PARENT_ID": plan.job_id,
        "NOMAD_NAMESPACE": plan.namespace,
    }
    if plan.memory:
        values["NOMAD_MEMORY_MAX_LIMIT"] = str(plan.memory >> 20)
    for name, value in plan.meta.items():
        values.setdefault(f"NOMAD_META_{name}", value)
    return values
