"""Volumes of Nomad's own, CSI and host: the group's ``Volumes`` and the task's ``VolumeMounts``."""

from __future__ import annotations

from typing import Any

from modal_nomad.wire.spec import FunctionSpec


def nomad_volumes(spec: FunctionSpec) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return both; none where a Function uses none. A block's name says at which path it is mounted."""
    volumes: dict[str, Any] = {}
    mounts: list[dict[str, Any]] = []
    for number, volume in enumerate(v for v in spec.volumes if v.backend):
        block = f"volume-{number}"
        volumes[block] = {
            "Name": block,
            "Type": volume.backend,
            "Source": volume.source,
            "ReadOnly": volume.read_only,
            "AccessMode": volume.access_mode,
            "AttachmentMode": "file-system",
        }
        mounts.append({"Volume": block, "Destination": volume.path, "ReadOnly": volume.read_only})
    return volumes, mounts
