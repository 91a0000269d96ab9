"""Endpoints as Consul services of a job."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modal_nomad.render import RenderSettings, render_function
from modal_nomad.wire.spec import FunctionSpec, MethodSpec, WebSpec

SETTINGS = RenderSettings(
    server_url="http://10.0.0.1:8520",
    runtime_sha="a" * 64,
    environment="dev",
    consul_services=True,
    web_domain="modal.example.com",
    web_workspace="acme",
)
WEB = FunctionSpec(
    app="shop",
    name="web",
    module="shop",
    web=WebSpec("asgi", custom_domains=("shop.example.com", "www.example.com")),
)


def group(spec: FunctionSpec, **changes: object) -> dict[str, Any]:
    (found,) = render_function(spec, replace(SETTINGS, **changes))["TaskGroups"]  # type: ignore[arg-type]
    return dict(found)


def services(spec: FunctionSpec, **changes: object) -> list[dict[str, object]]:
    found: list[dict[str, object]] = group(spec, **changes).get("Services", [])
    return found


def test_a_service_says_what_is_served() -> None:
    (service,) = services(WEB)
    assert service["Name"] == "acme--shop-web-dev" and service["PortLabel"] == "http"
    assert service["Tags"] == ["modal-nomad", "app=shop", "environment=dev"]
    meta = service["Meta"]
    assert isinstance(meta, dict) and all(type(x) is str and len(x) <= 512 for x in meta.values())
    assert meta["container"] == "${NOMAD_META_modal_container}" and meta["version"] == WEB.version_key[:12]
    assert meta["domains"] == "shop.example.com,www.example.com" and meta["proxy_auth"] == "false"
    assert service["Checks"] == [
        {
            "Name": "takes requests",
            "Type": "http",
            "Path": "/.well-known/modal-nomad/health",
            "Interval": 10_000_000_000,
            "Timeout": 2_000_000_000,
        }
    ]
    (other,) = services(WEB, web_suffixes={"dev": "d"}, consul_check="tcp")
    assert other["Name"] == "acme--shop-web-d"
    assert isinstance(other["Checks"], list) and other["Checks"][0]["Type"] == "tcp"


def test_none_without_consul_or_endpoints() -> None:
    assert services(WEB, consul_services=False) == []
    assert services(FunctionSpec(app="shop", name="f", module="shop")) == []


def test_what_edges_read() -> None:
    (service,) = services(WEB, edge=True)
    tags = service["Tags"]
    assert isinstance(tags, list)
    hosts = ("acme--shop-web-dev.modal.example.com", "shop.example.com", "www.example.com")
    rule = " || ".join(f"Host(`{x}`)" for x in hosts)
    assert f"traefik.http.routers.acme--shop-web-dev.rule={rule}" in tags and "traefik.enable=true" in tags
    assert [x for x in tags if x.startswith("urlprefix-")] == [f"urlprefix-{x}/" for x in hosts]
    # Where a gateway is to check or to count, no edge is led to containers.
    guarded = replace(WEB, web=WebSpec("asgi", requires_proxy_auth=True))
    for spec in (guarded, replace(WEB, single_use_containers=True)):
        (service,) = services(spec, edge=True)
        assert service["Tags"] == ["modal-nomad", "app=shop", "environment=dev"]


def test_what_edges_lead_to_leaves_consul_before_it_is_told_to_end() -> None:
    def delay(spec: FunctionSpec, **changes: object) -> Any:
        return group(spec, **changes).get("ShutdownDelay")

    assert delay(WEB, edge=True, edge_seconds=7.5) == 7_500_000_000
    # Gateways hear of it at once, and no other service is there that anybody could still be led to.
    assert delay(WEB) is None and delay(WEB, edge=True, consul_services=False) is None
    assert delay(replace(WEB, single_use_containers=True), edge=True) is None


def test_methods_of_a_class_are_told_apart() -> None:
    methods = {x: MethodSpec(web=WebSpec("asgi")) for x in ("one", "two")}
    spec = FunctionSpec(
        app="shop", name="Both.*", module="shop", qualname="Both", is_class=True, methods=methods
    )
    one, two = services(spec, edge=True)
    assert [one["Name"], two["Name"]] == ["acme--shop-both-one-dev", "acme--shop-both-two-dev"]
    tags = one["Tags"]
    assert isinstance(tags, list) and not any(x.startswith("urlprefix-") for x in tags)
    name = "acme--shop-both-one-dev"
    header = f"traefik.http.middlewares.{name}.headers.customrequestheaders.X-Modal-Nomad-Method=one"
    assert header in tags and f"traefik.http.routers.{name}.middlewares={name}" in tags


def test_meta_fits() -> None:
    many = tuple(f"{'x' * 50}{n}.example.com" for n in range(20))
    (service,) = services(replace(WEB, web=WebSpec("asgi", custom_domains=many)))
    meta = service["Meta"]
    assert isinstance(meta, dict)
    assert len(meta["domains"]) <= 512 and tuple(meta["domains"].split(",")) == many[:8]


def test_wrong_checks_are_refused() -> None:
    with pytest.raises(ValueError, match="http or tcp"):
        replace(SETTINGS, consul_check="udp")
