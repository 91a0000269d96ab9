"""Host names of endpoints, and who answers at which."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modal_nomad.dispatcher.gateway.routes import Route, Routes
from modal_nomad.wire.labels import endpoint_label, host_of


def test_labels() -> None:
    assert endpoint_label("shop", "web") == "shop-web"
    assert endpoint_label("My Shop", "Api.get_items") == "my-shop-api-get-items"
    assert endpoint_label("shop", "web", environment_suffix="test") == "shop-web-test"
    assert endpoint_label("shop", "web", environment_suffix="test", dev_suffix="dev") == "shop-web-test-dev"
    assert endpoint_label("shop", "web", label="front", dev_suffix="dev") == "front-dev"
    assert endpoint_label("shop", "web", workspace="Acme") == "acme--shop-web"


def test_long_labels_are_cut_and_stay_different() -> None:
    one = endpoint_label("a" * 60, "web", dev_suffix="dev", workspace="acme")
    other = endpoint_label("a" * 60, "web2", dev_suffix="dev", workspace="acme")
    assert len(one) == len(other) == 63 and one != other
    assert one.startswith("acme--aaa") and one.endswith("-dev")
    assert one == endpoint_label("a" * 60, "web", dev_suffix="dev", workspace="acme")


@given(*[st.text(st.sampled_from(string.ascii_letters + "0_-. é"), max_size=80)] * 5)
def test_every_label_is_one_part_of_a_host_name(a: str, f: str, e: str, d: str, w: str) -> None:
    label = endpoint_label(f"a{a}", f, environment_suffix=e, dev_suffix=d, workspace=w)
    assert 0 < len(label) <= 63
    assert set(label) <= set(string.ascii_lowercase + string.digits + "-") and label[0] != "-"


def test_hosts() -> None:
    assert host_of("a.b:80") == "a.b" and host_of("a.b.") == "a.b" and host_of("[::1]:80") == "::1"


@pytest.fixture
def routes() -> Routes:
    made = Routes("localhost")
    made.put("fu-1", [Route("shop-web", "fu-1", domains=("api.example.com",))])
    made.put("fu-2", [Route("other", "fu-2", "show"), Route("third", "fu-2", "more")])
    return made


@pytest.mark.parametrize(
    ("host", "target", "function_id", "prefix"),
    [
        ("shop-web.localhost:80", b"/x", "fu-1", ""),
        ("api.example.com", b"/", "fu-1", ""),
        ("localhost:80", b"/shop-web", "fu-1", "/shop-web"),
        ("127.0.0.1", b"/shop-web/x?y", "fu-1", "/shop-web"),
        ("127.0.0.1", b"/shop-web?y", "fu-1", "/shop-web"),
        ("[::1]:80", b"/other/x", "fu-2", "/other"),
    ],
)
def test_found(routes: Routes, host: str, target: bytes, function_id: str, prefix: str) -> None:
    found = routes.find(host, target)
    assert found is not None and (found[0].function_id, found[1]) == (function_id, prefix)


@pytest.mark.parametrize(
    ("host", "target"),
    [
        ("evil.example.com", b"/shop-web"),
        ("localhost.evil.com", b"/shop-web"),
        ("shop-web.localhost.evil.com", b"/"),
        ("x.shop-web.localhost", b"/"),
        ("localhost", b"/shop-webx"),
        ("localhost", b"/../shop-web"),
        ("localhost", b"/%73hop-web"),
        ("localhost", b"//shop-web"),
        ("", b"/shop-web"),
        ("localhost", b"/"),
    ],
)
def test_nowhere(routes: Routes, host: str, target: bytes) -> None:
    assert routes.find(host, target) is None


def test_who_asks_in_vain_is_told_where_endpoints_are(routes: Routes) -> None:
    assert "/<label>" in routes.nothing_at("localhost:8000") and "<label>.localhost" in routes.nothing_at(
        "localhost"
    )
    assert "label" not in routes.nothing_at("other.localhost")
    assert "label" not in Routes("modal.example.com").nothing_at("localhost")


def test_paths_lead_nowhere_on_a_real_domain() -> None:
    made = Routes("modal.example.com")
    made.put("fu-1", [Route("shop-web", "fu-1")])
    assert made.find("localhost", b"/shop-web") is None
    assert made.find("shop-web.modal.example.com", b"/") is not None


def test_the_later_one_has_a_label_for_now(routes: Routes) -> None:
    routes.put("fu-3", [Route("shop-web", "fu-3")])
    held = routes.holders("shop-web", ("API.example.com", "nobody.example.com"))
    assert [(name, route.function_id) for name, route in held] == [
        ("shop-web", "fu-1"),
        ("shop-web", "fu-3"),
        ("API.example.com", "fu-1"),
    ]
    assert routes.find("shop-web.localhost", b"/") == (Route("shop-web", "fu-3"), "")
    routes.remove("fu-3")
    assert routes.holders("nothing", ("nobody.example.com",)) == []
    assert [x.method for x in routes.of("fu-2")] == ["show", "more"]
    routes.put("fu-2", [])
    assert routes.find("other.localhost", b"/") is None
