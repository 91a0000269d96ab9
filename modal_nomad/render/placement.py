"""Where a Function's containers may run, as the job's fields: constraints, affinities, spreads, priority."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modal_nomad.render.settings import RenderSettings
from modal_nomad.wire.spec import FunctionSpec

_UNPREEMPTED = 91
"""Nomad preempts for jobs that are at least 10 above, and 100 is the highest by default."""
_SPOT = "${meta.preemptible}"


def job_placement(spec: FunctionSpec, settings: RenderSettings) -> dict[str, Any]:
    """Return the job's fields that say where its containers may run.

    Raises:
        ValueError: what was asked for contradicts itself, or names a proxy that the cluster lacks.
    """
    asked = spec.nomad
    proxy = proxy_nodes(spec, settings)
    datacenters = asked.datacenters if asked is not None else ()
    if datacenters and spec.region:
        raise ValueError(
            f"{spec.name} names datacenters both as region= and in its nomad= placement: leave one of them"
            " out"
        )
    pool = asked.node_pool if asked is not None else ""
    needed = str(proxy.get("node_pool") or "")
    if pool and needed and pool != needed:
        raise ValueError(
            f"{spec.name} is placed in node pool {pool!r}, and its proxy {spec.proxy!r} is in {needed!r}:"
            " leave one of them out"
        )
    priority = settings.priority if asked is None or asked.priority is None else asked.priority
    fields: dict[str, Any] = {
        "NodePool": pool or needed or settings.node_pool,
        "Datacenters": list(datacenters or spec.region or settings.datacenters),
        "Priority": max(priority, _UNPREEMPTED) if spec.nonpreemptible else priority,
        "Constraints": _constraints(spec, proxy),
    }
    if asked is not None and asked.affinities:
        fields["Affinities"] = [
            {**_rule(attribute, operator, value), "Weight": weight}
            for attribute, operator, value, weight in asked.affinities
        ]
    if asked is not None and asked.spreads:
        fields["Spreads"] = [
            {
                "Attribute": attribute,
                "Weight": weight,
                "SpreadTarget": [{"Value": value, "Percent": percent} for value, percent in targets],
            }
            for attribute, weight, targets in asked.spreads
        ]
    return fields


def proxy_nodes(spec: FunctionSpec, settings: RenderSettings) -> Mapping[str, Any]:
    """Return what the cluster says of a Function's proxy; nothing for no proxy. Raises ValueError."""
    if not spec.proxy:
        return {}
    found = settings.proxies.get(spec.proxy)
    if found is None:
        known = ", ".join(sorted(settings.proxies)) or "none"
        raise ValueError(
            f"this cluster has no proxy {spec.proxy!r} (it has {known}): say which nodes have its address"
            f" under [proxies.{spec.proxy}] in the dispatcher's settings"
        )
    return found


def _constraints(spec: FunctionSpec, proxy: Mapping[str, Any]) -> list[dict[str, str]]:
    found = []
    if spec.cloud:
        found.append(_rule("${meta.cloud}", "=", spec.cloud))
    scheduler = spec.scheduler
    if spec.nonpreemptible or (scheduler is not None and scheduler.spot is False):
        # Also true of nodes that say nothing of it.
        found.append(_rule(_SPOT, "!=", "true"))
    if scheduler is not None:
        if scheduler.spot:
            found.append(_rule(_SPOT, "=", "true"))
        if scheduler.zone:
            found.append(_rule("${meta.zone}", "=", scheduler.zone))
        if scheduler.instance_types:
            found.append(
                _rule("${meta.instance_type}", "set_contains_any", ",".join(scheduler.instance_types))
            )
    for name, value in (proxy.get("node_meta") or {}).items():
        found.append(_rule(f"${{meta.{name}}}", "=", value))
    if spec.nomad is not None:
        found += [_rule(*rule) for rule in spec.nomad.constraints]
    return found


def _rule(attribute: str, operator: str, value: str) -> dict[str, str]:
    return {"LTarget": attribute, "Operand": operator, "RTarget": value}
