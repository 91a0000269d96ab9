"""Function → parameterized batch job: one child job, one allocation, one container."""

from __future__ import annotations

import dataclasses
from typing import Any

from modal_nomad.render.container import (
    RUNTIME_VARIABLE,
    USER,
    container_config,
    container_driver,
    container_image,
    container_meta,
)
from modal_nomad.render.devices import gpu_words
from modal_nomad.render.names import job_id
from modal_nomad.render.nfs import nfs_directory, nfs_volumes
from modal_nomad.render.placement import job_placement
from modal_nomad.render.resources import disk_and_logs, task_resources
from modal_nomad.render.secrets import SECRETS_FILE, reads_vault, vault_blocks
from modal_nomad.render.services import open_to_edges, web_services
from modal_nomad.render.settings import RenderSettings
from modal_nomad.render.volumes import nomad_volumes
from modal_nomad.wire.over_use import DISK
from modal_nomad.wire.spec import FunctionSpec, canonical_json

CONTAINER_META = "modal_container"
SNAPSHOT_META = "modal_snapshot"
TASK_NAME = "container"
WEB_PORT = "http"
IDENTITY_NAME = "modal"
BUCKETS_IDENTITY = "buckets"
BUCKETS_AUDIENCE = "sts.amazonaws.com"
AUDIENCE = "modal-nomad"
_SECOND = 1_000_000_000


def render_function(spec: FunctionSpec, settings: RenderSettings) -> dict[str, Any]:
    """Return the Nomad job of a Function: the object that stands under ``"Job"``.

    Args:
        spec: what to run.
        settings: what the cluster decides.

    Raises:
        ValueError: the Function asks for a place that contradicts itself, or that the cluster lacks.
    """
    disk, logs = disk_and_logs(spec, settings)
    shared, shared_mounts = nfs_volumes(spec, settings)
    volumes, volume_mounts = nomad_volumes(spec)
    volumes, volume_mounts = {**shared, **volumes}, [*shared_mounts, *volume_mounts]
    name = job_id(
        spec.app,
        # A class is one Function, named Class.*, and its job is called by the class.
        spec.name[:-2] if spec.is_class else spec.name,
        environment=settings.environment,
        namespace=settings.namespace,
        suffix=settings.app_suffix,
    )
    task = {
        "Name": TASK_NAME,
        **_driver(spec, settings),
        "Env": _environment(spec, settings),
        "Artifacts": _artifacts(spec, settings),
        "Identities": _identities(spec),
        "Resources": task_resources(spec, settings),
        "LogConfig": logs,
        "KillSignal": "SIGTERM",
        "KillTimeout": int(settings.kill_timeout * _SECOND),
        **vault_blocks(spec, settings),
        **({"VolumeMounts": volume_mounts} if volume_mounts else {}),
    }
    group = {
        "Name": TASK_NAME,
        "Count": 1,
        "Tasks": [task],
        "EphemeralDisk": disk,
        # The dispatcher starts the next container; a copy restarted by Nomad would carry a used id.
        "RestartPolicy": {"Attempts": 0, "Mode": "fail"},
        "ReschedulePolicy": {"Attempts": 0, "Unlimited": False},
        "Disconnect": {"Replace": False},
        **({"Volumes": volumes} if volumes else {}),
    }
    if spec.served:
        group["Networks"] = [{"Mode": "host", "DynamicPorts": [{"Label": WEB_PORT}]}]
        if settings.consul_services:
            container = f"${{NOMAD_META_{CONTAINER_META}}}"
            group["Services"] = web_services(spec, settings, name, WEB_PORT, container)
            if open_to_edges(spec, settings.edge):
                # What Nomad stops itself leaves Consul this long before it is told to end: a node's drain.
                group["ShutdownDelay"] = int(settings.edge_seconds * _SECOND)
        if settings.consul_services and settings.consul_namespace:
            group["Consul"] = {"Namespace": settings.consul_namespace}
    return {
        "ID": name,
        "Name": name,
        "Type": "batch",
        "Namespace": settings.namespace,
        **job_placement(spec, settings),
        "ParameterizedJob": {
            "Payload": "forbidden",
            "MetaRequired": [CONTAINER_META],
            **({"MetaOptional": [SNAPSHOT_META]} if keeps_snapshots(spec, settings) else {}),
        },
        "Meta": {
            **(spec.nomad.meta if spec.nomad is not None else {}),
            "modal_app": spec.app,
            "modal_function": spec.name,
            "modal_version": spec.version_key[:12],
            "modal_environment": settings.environment,
            "modal_deployer": settings.deployer,
            "modal_image": _image(spec),
            **container_meta(spec, settings),
            # What the user asked for, in the user's words, for whoever waits for it.
            **({"modal_gpu": gpu_words(spec.gpu)} if spec.gpu else {}),
        },
        "TaskGroups": [group],
    }


def _driver(spec: FunctionSpec, settings: RenderSettings) -> dict[str, Any]:
    image = container_image(spec, settings)
    if image:
        config = container_config(image, spec, settings)
        return {"Driver": container_driver(settings), "Config": config, "User": USER}
    return {
        "Driver": settings.driver,
        "Config": {
            "command": settings.python,
            # -I and -S: nothing of the node's own Python packages or of the user's shell leaks in.
            "args": ["-I", "-S", "${NOMAD_TASK_DIR}/runtime/_start_worker.py"],
        },
    }


def keeps_snapshots(spec: FunctionSpec, settings: RenderSettings) -> bool:
    """Say whether containers leave memory snapshots: only processes of the node itself can fork them."""
    # A Volume's tree, a mounted bucket or the way to the dispatcher is one container's own.
    wanted = spec.enable_memory_snapshot and not spec.volumes and not spec.buckets and not spec.block_network
    process = settings.driver == "raw_exec" and not container_image(spec, settings)
    return wanted and process and settings.snapshot_seconds > 0


def _identities(spec: FunctionSpec) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"Name": IDENTITY_NAME, "Audience": [AUDIENCE], "File": True}]
    if any(bucket.role_arn for bucket in spec.buckets):
        hour = 3600 * _SECOND
        found.append({"Name": BUCKETS_IDENTITY, "Audience": [BUCKETS_AUDIENCE], "File": True, "TTL": hour})
    return found


def _image(spec: FunctionSpec) -> str:
    layers = [dataclasses.asdict(layer) for layer in spec.image.layers]
    return canonical_json({"python": spec.image.python, "layers": layers}).decode()


def _environment(spec: FunctionSpec, settings: RenderSettings) -> dict[str, str]:
    ours = {
        "MODAL_IS_REMOTE": "1",
        "MODAL_SERVER_URL": settings.server_url,
        "MODAL_TASK_ID": f"${{NOMAD_META_{CONTAINER_META}}}",
        "MODAL_ENVIRONMENT": settings.environment,
        "MODAL_WORKER_TOKEN_FILE": f"${{NOMAD_SECRETS_DIR}}/nomad_{IDENTITY_NAME}.jwt",
        "MODAL_RUNTIME_DIR": "${NOMAD_TASK_DIR}/runtime",
        "MODAL_KILL_TIMEOUT": f"{settings.kill_timeout:g}",
    }
    if spec.code_bundle:
        ours["MODAL_CODE_DIR"] = "${NOMAD_TASK_DIR}/code"
    if spec.served and settings.web_sha:
        ours["MODAL_WEB_DIR"] = "${NOMAD_TASK_DIR}/web"
    if reads_vault(spec, settings):
        ours["MODAL_SECRETS_FILE"] = f"${{NOMAD_SECRETS_DIR}}/{SECRETS_FILE}"
    image = container_image(spec, settings)
    if image:
        ours[RUNTIME_VARIABLE] = container_driver(settings)
    if (shared := nfs_directory(spec, settings)) and (settings.nfs_volume or not image):
        ours["MODAL_NFS_DIR"] = shared
    if keeps_snapshots(spec, settings):
        ours["MODAL_SNAPSHOT"] = f"${{NOMAD_META_{SNAPSHOT_META}}}"
        ours["MODAL_SNAPSHOT_SECONDS"] = f"{settings.snapshot_seconds:g}"
    if not container_image(spec, settings):
        # A runtime of containers holds them to these itself.
        for name, limit in (("MODAL_CPU_LIMIT", spec.cpu[1]), ("MODAL_MEMORY_LIMIT", spec.memory[1])):
            if limit is not None:
                ours[name] = f"{limit:g}" if isinstance(limit, float) else str(limit)
    if spec.ephemeral_disk is not None:
        # Nomad places by it and holds nobody to it.
        ours[DISK] = str(spec.ephemeral_disk)
    if spec.i6pn:
        # Nomad's containers have the node's own network.
        ours["MODAL_I6PN"] = "${attr.unique.network.ip-address}"
    if spec.block_network:
        # What comes to it, or is mounted for it, is beside it on the network.
        ours["MODAL_BLOCK_NETWORK"] = "web" if spec.served else "mounts" if spec.buckets else "1"
    if not spec.container_image and (spec.image.layers or spec.image.python):
        ours["MODAL_IMAGE"] = _image(spec)
    return {**spec.image.env, **spec.env, **ours}


def _artifacts(spec: FunctionSpec, settings: RenderSettings) -> list[dict[str, Any]]:
    wanted = [(settings.runtime_sha, "local/runtime")]
    if spec.code_bundle:
        wanted.append((spec.code_bundle, "local/code"))
    if spec.served and settings.web_sha:
        wanted.append((settings.web_sha, "local/web"))
    return [
        {
            "GetterSource": f"{settings.server_url.rstrip('/')}/artifacts/{sha}.zip",
            "GetterOptions": {"checksum": f"sha256:{sha}"},
            "GetterMode": "dir",
            "RelativeDest": destination,
        }
        for sha, destination in wanted
    ]
