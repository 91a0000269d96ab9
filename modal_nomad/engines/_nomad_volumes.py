"""Whether a job's volumes are there, asked of Nomad before the job is registered."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from modal_nomad.engines.base import EngineError
from modal_nomad.hashicorp.nomad import NomadClient, NomadDenied, NomadNotFound

_MOST_NODES = 200
_WITHOUT_VOLUMES = frozenset({"raw_exec"})


async def check_volumes(client: NomadClient, job: Mapping[str, Any], token: str | None) -> None:
    """Look for the volumes that a job's group asks for.

    Raises:
        EngineError: one is not there, or the task's driver mounts none; the line names the remedy.
    """
    for group in job.get("TaskGroups") or ():
        wanted = (group.get("Volumes") or {}).values()
        if not wanted:
            continue
        drivers = {task.get("Driver") for task in group.get("Tasks") or ()}
        if drivers & _WITHOUT_VOLUMES:
            raise EngineError(
                f"the driver raw_exec mounts no volumes, such as {next(iter(wanted))['Source']!r}: let the"
                ' dispatcher\'s settings have driver = "exec" under [render]'
            )
        for volume in wanted:
            await _check(client, volume, str(job.get("Namespace") or "default"), token)


async def _check(client: NomadClient, volume: Mapping[str, Any], namespace: str, token: str | None) -> None:
    name, kind = str(volume["Source"]), str(volume["Type"])
    try:
        known = await client.volumes(kind, namespace=namespace, token=token)
        found = [x for x in known if name in (x.get("ID" if kind == "csi" else "Name"), x.get("ID"))]
        if found:
            await _check_modes(client, volume, [str(x["ID"]) for x in found[:_MOST_NODES]], namespace, token)
            return
        there = kind == "host" and await _is_static(client, name)
    except (NomadDenied, NomadNotFound):
        # Whoever may not look may still be allowed to mount: Nomad decides when the job is placed.
        return
    if not there:
        raise EngineError(
            f"Nomad has no {kind} volume {name!r} in namespace {namespace!r}: make it with"
            f" `nomad volume create -namespace={namespace} {name}.hcl` (docs/volumes.md)"
        )


async def _check_modes(
    client: NomadClient, volume: Mapping[str, Any], ids: list[str], namespace: str, token: str | None
) -> None:
    """Look whether one of the volumes of a name was made for what is asked: Nomad would place nothing."""
    kind, asked = str(volume["Type"]), str(volume["AccessMode"])
    all_of_them = await asyncio.gather(
        *(client.volume(kind, one, namespace=namespace, token=token) for one in ids)
    )
    modes = {str(x["AccessMode"]) for one in all_of_them for x in one.get("RequestedCapabilities") or ()}
    if modes and asked not in modes:
        raise EngineError(
            f"the {kind} volume {volume['Source']!r} was not made for access mode {asked}: give"
            f" Volume.from_name access_mode={' or '.join(repr(x) for x in sorted(modes))}, or make the volume"
            " with another capability block"
        )


async def _is_static(client: NomadClient, name: str) -> bool:
    """Tell whether a node's own configuration has a host volume of that name."""
    nodes = [str(x["ID"]) for x in await client.nodes() if x.get("Status") == "ready"][:_MOST_NODES]
    found = await asyncio.gather(*(client.node(node_id) for node_id in nodes))
    return any(name in (node.get("HostVolumes") or {}) for node in found)
