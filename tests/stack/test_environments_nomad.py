"""Environments are Nomad namespaces: made with them, their jobs are in them, and Nomad's rights hold."""

from __future__ import annotations

import time
import urllib.error
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NO_NOMAD
from tests.engine_contract._nomad_agent import nomad_agent, nomad_binary
from tests.stack._dispatcher import dispatcher, get, modal_nomad, put

DISPATCHER = """
namespace "*" {
  capabilities = ["list-jobs", "read-job", "submit-job", "dispatch-job", "alloc-lifecycle", "read-logs"]
}
node { policy = "read" }
"""
DEVELOPER = """
namespace "dev" { capabilities = ["list-jobs", "read-job", "submit-job", "read-logs"] }
"""
FILE = """
import modal

app = modal.App("placed")

@app.function()
def where() -> str:
    import os

    return os.environ["NOMAD_NAMESPACE"] + " " + os.environ["MODAL_ENVIRONMENT"]

@app.function()
def reach() -> str:
    try:
        modal.Dict.from_name("d", environment_name="main", create_if_missing=True).put("a", 1)
    except modal.exception.AuthError as error:
        return str(error)
    return "reached"

@app.local_entrypoint()
def main():
    print(where.remote())
    print(reach.remote())
"""


@pytest.fixture(scope="module")
def nomad() -> Iterator[tuple[str, str]]:
    binary = nomad_binary()
    if binary is None:
        pytest.skip(NO_NOMAD)
    management = str(uuid.uuid4())
    with nomad_agent(binary, token=management) as address:
        yield address, management


def token(nomad: tuple[str, str], name: str, rules: str) -> str:
    address, management = nomad
    put(address, f"/v1/acl/policy/{name}", {"Name": name, "Rules": rules}, management)
    body = {"Name": name, "Type": "client", "Policies": [name]}
    return str(put(address, "/v1/acl/token", body, management)["SecretID"])


def namespaces(nomad: tuple[str, str]) -> dict[str, Any]:
    return {x["Name"]: x for x in get(nomad[0], "/v1/namespaces", nomad[1])}


def test_environments_are_namespaces(nomad: tuple[str, str], tmp_path: Path) -> None:
    address, management = nomad
    own, developer = token(nomad, "dispatcher", DISPATCHER), token(nomad, "developer", DEVELOPER)
    put(address, "/v1/namespace", {"Name": "apart"}, management)
    settings = {"address": address, "token": own}
    with dispatcher(tmp_path, settings, auth="nomad", namespaces={"prod": "apart"}) as url:

        def run(*words: str, by: str = management, code: int = 0) -> str:
            done = modal_nomad(tmp_path, url, *words, file=FILE, MODAL_TOKEN_SECRET=by)
            assert done.returncode == code, done.stdout + done.stderr
            return done.stdout if code == 0 else done.stderr

        # Who may make namespaces makes them with environments; whose they are stands there.
        run("environment", "create", "dev")
        assert namespaces(nomad)["dev"]["Meta"] == {"modal_environment": "dev"}
        refused = run("environment", "create", "default", code=1)
        assert "the Nomad namespace that another one has" in refused
        assert "letters, digits and '-'" in run("environment", "create", "a_b", code=1)
        # A token with rights in one namespace is a token for that environment.
        listed = run("environment", "list", "--json", by=developer)
        assert "dev" in listed and "main" not in listed
        for words in (["dict", "list"], ["dict", "create", "d"], ["run", "app.py"], ["secret", "list"]):
            assert "for the environments dev" in run(*words, by=developer, code=1)
        # Its jobs are there, and their code is held to it.
        out = run("run", "--env", "dev", "app.py::main", by=developer).strip().splitlines()
        assert "dev dev" in out and any("for the environments dev" in line for line in out), out
        out = run("run", "--env", "dev", "app.py::main").strip().splitlines()
        assert {"dev dev", "reached"} <= set(out), out
        # One that is there already is used as it is, made or not by who runs what.
        run("deploy", "--env", "prod", "app.py")
        found = get(address, "/v1/jobs?namespace=apart&prefix=placed-where", management)
        assert [job["Namespace"] for job in found] == ["apart"]
        # The first thing that is put into an environment makes it.
        run("deploy", "--env", "late", "app.py")
        assert get(address, "/v1/job/placed-where?namespace=late", management)["Namespace"] == "late"
        run("environment", "delete", "late", "--confirm")
        run("environment", "delete", "prod", "--confirm")
        deadline = time.monotonic() + 90
        while "late" in namespaces(nomad):
            assert time.monotonic() < deadline, "the namespace of a deleted environment stays"
            time.sleep(0.1)
        assert "apart" in namespaces(nomad)


def test_who_may_make_no_namespace_is_told_the_remedy(nomad: tuple[str, str], tmp_path: Path) -> None:
    address, management = nomad
    own = token(nomad, "dispatcher", DISPATCHER)
    anywhere = token(nomad, "anywhere", DEVELOPER.replace('"dev"', '"*"'))
    settings = {"address": address, "token": own}
    with dispatcher(tmp_path, settings, auth="nomad", namespaces={"*": "default"}) as url:
        # All in one: no namespace is made, and jobs of the same name do not meet.
        for environment in ("one", "two"):
            done = modal_nomad(
                tmp_path,
                url,
                "deploy",
                "--env",
                environment,
                "app.py",
                file=FILE,
                MODAL_TOKEN_SECRET=anywhere,
            )
            assert done.returncode == 0, done.stdout + done.stderr
        jobs = [x["ID"] for x in get(address, "/v1/jobs?prefix=placed-where-", management)]
        assert len(jobs) == 2 and not {"one", "two"} & set(namespaces(nomad))
    with dispatcher(tmp_path, settings, auth="nomad") as url:
        done = modal_nomad(
            tmp_path, url, "deploy", "--env", "fresh", "app.py", file=FILE, MODAL_TOKEN_SECRET=anywhere
        )
    assert done.returncode == 1
    assert "for the environments" in done.stderr, done.stderr
    with pytest.raises(urllib.error.HTTPError):
        get(address, "/v1/namespace/fresh", management)
