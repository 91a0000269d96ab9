"""A Function's resource requests in Nomad's units."""

from __future__ import annotations

import math
from typing import Any

from modal_nomad.render.devices import gpu_devices
from modal_nomad.render.settings import RenderSettings
from modal_nomad.wire.spec import FunctionSpec

_MIN_CPU = 1
_MIN_MEMORY = 10


def task_resources(spec: FunctionSpec, settings: RenderSettings) -> dict[str, Any]:
    """Return the task's ``Resources``: MHz, MiB, and the memory limit where one is above the request."""
    cores, _ = spec.cpu
    request, limit = spec.memory
    if request is None:
        request = settings.default_memory if limit is None else min(settings.default_memory, limit)
    cpu = settings.default_cpu if cores is None else math.ceil(cores * settings.core_mhz)
    resources: dict[str, Any] = {"CPU": max(_MIN_CPU, cpu), "MemoryMB": max(_MIN_MEMORY, request)}
    if limit is not None and limit > resources["MemoryMB"]:
        resources["MemoryMaxMB"] = limit
    devices = gpu_devices(spec.gpu)
    if devices:
        resources["Devices"] = devices
    return resources


def disk_and_logs(spec: FunctionSpec, settings: RenderSettings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the group's ``EphemeralDisk`` and the task's ``LogConfig``.

    Nomad refuses a job whose logs may outgrow its disk, so a small disk gets one log file less
    than fits, and never less than a MiB of log.
    """
    disk = max(settings.ephemeral_disk if spec.ephemeral_disk is None else spec.ephemeral_disk, 10)
    size = min(settings.log_file_size, max(1, disk // 4))
    files = max(1, min(settings.log_files, (disk - 1) // size))
    return {"SizeMB": disk}, {"MaxFiles": files, "MaxFileSizeMB": size}
