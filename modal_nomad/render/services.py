"""Endpoints → Consul services of a Function's job: who finds containers, and how an edge leads to them."""

from __future__ import annotations

from typing import Any

from modal_nomad.render.settings import RenderSettings
from modal_nomad.wire.labels import endpoint_label
from modal_nomad.wire.services import HEALTH, TAG
from modal_nomad.wire.spec import FunctionSpec, WebSpec

_SECOND = 1_000_000_000
_MAX_META = 512
"""Of Consul: no value of a service's meta is longer."""


def web_services(
    spec: FunctionSpec, settings: RenderSettings, job: str, port: str, container: str
) -> list[dict[str, Any]]:
    """Return a service for each endpoint of a Function.

    Args:
        spec: the Function.
        settings: what the cluster decides.
        job: the id of its job.
        port: label of the port that containers take requests at.
        container: what Nomad replaces by the container's id.
    """
    return [
        _service(spec, settings, method, web, job, port, container) for method, web in spec.served.items()
    ]


def open_to_edges(spec: FunctionSpec, edge: bool) -> bool:
    """Say whether containers take requests without a key: not where a gateway is to check or to count."""
    guarded = any(web.requires_proxy_auth for web in spec.served.values())
    return edge and not guarded and not spec.single_use_containers


def web_label(spec: FunctionSpec, settings: RenderSettings, method: str, web: WebSpec) -> str:
    """Return the first part of an endpoint's host name."""
    name = spec.name[:-2] if spec.is_class else spec.name
    default = "" if settings.environment == "main" else settings.environment
    return endpoint_label(
        spec.app,
        f"{name}.{method}" if method else name,
        label=web.label,
        environment_suffix=settings.web_suffixes.get(settings.environment) or default,
        dev_suffix=web.dev_suffix,
        workspace=settings.web_workspace,
    )


def _service(
    spec: FunctionSpec,
    settings: RenderSettings,
    method: str,
    web: WebSpec,
    job: str,
    port: str,
    container: str,
) -> dict[str, Any]:
    label = web_label(spec, settings, method, web)
    domains = () if web.dev_suffix else web.custom_domains
    tags = [TAG, f"app={spec.app}", f"environment={settings.environment}"]
    if open_to_edges(spec, settings.edge):
        tags += _edge_tags(label, (f"{label}.{settings.web_domain}", *domains), method, len(spec.served) == 1)
    meta = {
        "app": spec.app,
        "container": container,
        "deployed": "false" if web.dev_suffix else "true",
        "domains": _fitting(domains),
        "environment": settings.environment,
        "function": spec.name,
        "job": f"{settings.namespace}/{job}",
        "label": label,
        "max_inputs": str(spec.slots),
        "method": method,
        "proxy_auth": "true" if web.requires_proxy_auth else "false",
        "single_use": "true" if spec.single_use_containers else "false",
        "version": spec.version_key[:12],
    }
    return {
        "Name": label,
        "Provider": "consul",
        "PortLabel": port,
        "Tags": tags,
        "Meta": meta,
        "Checks": [_check(settings)],
    }


def _check(settings: RenderSettings) -> dict[str, Any]:
    common = {
        "Name": "takes requests",
        "Interval": int(settings.consul_check_interval * _SECOND),
        "Timeout": 2 * _SECOND,
    }
    if settings.consul_check == "tcp":
        return {"Type": "tcp", **common}
    return {"Type": "http", "Path": HEALTH.decode(), **common}


def _fitting(domains: tuple[str, ...]) -> str:
    """Return as many domains as one value may hold; the dispatcher knows all of them."""
    text = ""
    for domain in domains:
        longer = f"{text},{domain}" if text else domain
        if len(longer) > _MAX_META:
            break
        text = longer
    return text


def _edge_tags(label: str, hosts: tuple[str, ...], method: str, alone: bool) -> list[str]:
    """Return what Traefik's Consul catalog and Fabio read."""
    rule = " || ".join(f"Host(`{host}`)" for host in hosts)
    tags = ["traefik.enable=true", f"traefik.http.routers.{label}.rule={rule}"]
    if alone:
        # Fabio adds no field that could say which of several methods is meant.
        return [*tags, *(f"urlprefix-{host}/" for host in hosts)]
    named = f"traefik.http.middlewares.{label}.headers.customrequestheaders.X-Modal-Nomad-Method={method}"
    return [*tags, named, f"traefik.http.routers.{label}.middlewares={label}"]
