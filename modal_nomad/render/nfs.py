"""Where containers find the directories of NetworkFileSystems: on the node, or in a Nomad volume."""

from __future__ import annotations

from typing import Any

from modal_nomad.render.settings import RenderSettings
from modal_nomad.wire.nfs import MOUNTED_AT
from modal_nomad.wire.spec import FunctionSpec

_BLOCK = "modal-nfs"


def nfs_directory(spec: FunctionSpec, settings: RenderSettings) -> str:
    """Return where the containers of a Function have the directories; empty when it uses none."""
    if not spec.network_file_systems:
        return ""
    return MOUNTED_AT if settings.nfs_volume else settings.nfs_directory


def nfs_volumes(spec: FunctionSpec, settings: RenderSettings) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the group's ``Volumes`` and the task's ``VolumeMounts``; none where nodes have the directory."""
    if not spec.network_file_systems or not settings.nfs_volume:
        return {}, []
    volume: dict[str, Any] = {
        "Name": _BLOCK,
        "Type": settings.nfs_volume_type,
        "Source": settings.nfs_volume,
        "ReadOnly": False,
    }
    if settings.nfs_volume_type == "csi":
        volume |= {"AccessMode": "multi-node-multi-writer", "AttachmentMode": "file-system"}
    return {_BLOCK: volume}, [{"Volume": _BLOCK, "Destination": MOUNTED_AT, "ReadOnly": False}]
