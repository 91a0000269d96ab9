"""A Consul where nobody may do anything without a token: what each of ours needs and is told."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests._consul import NO_CONSUL, Consul, consul_binary, consul_server
from tests.conftest import NO_NOMAD
from tests.engine_contract._nomad_agent import nomad_agent, nomad_binary
from tests.stack._cluster import until
from tests.stack._dispatcher import dispatcher, modal_nomad
from tests.stack.test_web_consul import APP, TOKEN, Gateway, Stack

DOCS = Path(__file__).parents[2] / "docs/gateway.md"
AUDIENCE = "consul.io"
NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def consul() -> Iterator[Consul]:
    binary = consul_binary()
    if binary is None:
        pytest.skip(NO_CONSUL)
    with consul_server(binary, str(uuid.uuid4())) as server:
        yield server


@pytest.fixture
def nomad(consul: Consul) -> Iterator[str]:
    """A Nomad whose services get tokens of Consul's for their identities, as docs/gateway.md says."""
    binary = nomad_binary()
    if binary is None:
        pytest.skip(NO_NOMAD)
    settings = {
        **consul.nomad_settings(),
        "token": token(consul, "nomad", 'agent_prefix "" { policy = "read" }'),
        "service_identity": {"aud": [AUDIENCE], "ttl": "1h"},
    }
    with nomad_agent(binary, consul=settings) as address:
        method = {
            "Name": "nomad-workloads",
            "Type": "jwt",
            "Config": {
                "JWKSURL": f"{address}/.well-known/jwks.json",
                "JWTSupportedAlgs": ["RS256"],
                "BoundAudiences": [AUDIENCE],
                "ClaimMappings": {"nomad_service": "nomad_service", "nomad_namespace": "nomad_namespace"},
            },
        }
        consul.put("/v1/acl/auth-method", method)
        rule = {
            "AuthMethod": "nomad-workloads",
            "BindType": "service",
            "BindName": "${value.nomad_service}",
            "Selector": '"nomad_service" in value',
        }
        consul.put("/v1/acl/binding-rule", rule)
        yield address


def token(consul: Consul, name: str, rules: str) -> str:
    consul.put("/v1/acl/policy", {"Name": name, "Rules": rules})
    return str(consul.put("/v1/acl/token", {"Policies": [{"Name": name}]})["SecretID"])


def test_each_has_the_rights_that_the_page_names_and_no_others(consul: Consul, nomad: str) -> None:
    rights = 'service_prefix "" { policy = "read" }\nnode_prefix "" { policy = "read" }'
    assert all(f"`{line}`" in DOCS.read_text() for line in rights.splitlines())
    own = 'service "modal-gateway" { policy = "write" }'
    assert f"`{own}`" in DOCS.read_text()
    web: dict[str, Any] = {
        "gateway_token": TOKEN,
        "consul": True,
        "consul_check_interval": 1,
        "url": "http://{label}.localhost",
    }
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="mn-", dir="/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        url = stack.enter_context(dispatcher(folder, {"address": nomad}, auth="none", web=web))
        done = modal_nomad(folder, url, "deploy", "app.py", file=APP)
        assert done.returncode == 0, done.stderr
        # Nomad registered it under the service's own identity.
        until(lambda: consul.get("/v1/health/service/found-web?passing=1"))
        made = Stack(folder, nomad, consul)
        reader = Gateway(made, NOBODY, "reader", "", token(consul, "gateway", f"{rights}\n{own}"))
        stack.callback(reader.close)
        until(lambda: reader.get().status_code == 200)
        until(lambda: consul.get("/v1/catalog/service/modal-gateway"))
        # Whose token is none is told what it has to be.
        with pytest.raises(RuntimeError, match='service "modal-gateway" with policy write'):
            Gateway(made, NOBODY, "stranger", "", str(uuid.uuid4()))
        said = (folder / "stranger.log").read_text()
        assert "service_prefix and node_prefix with policy read" in said and "Traceback" not in said
