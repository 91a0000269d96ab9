"""Secrets of image builds on a cluster: the job reads them, by paths that the dispatcher tells it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modal_nomad.dispatcher.secrets import Secrets, SecretStore
from modal_nomad.exception import ImageBuildError, InvalidError, NotFoundError
from modal_nomad.wire.mounts import SecretRef
from modal_nomad.worker.image_builder.secrets import read_secrets


class Stored:
    """One Secret ``known``."""

    async def fields(self, key: Any) -> set[str] | None:
        return {"A"} if key.name == "known" else None

    def place(self, key: Any) -> str:
        return f"secret/data/modal/{key.environment}/{key.name}"


def secrets(tmp_path: Path) -> Secrets:
    store: Any = Stored()
    kept: SecretStore = store
    return Secrets(kept, tmp_path, delivers=False, vault=True, kept_out="secret/")


async def test_the_job_is_told_places_and_no_values(tmp_path: Path) -> None:
    refs = [
        SecretRef("known", required=("A",)),
        SecretRef("known", environment="prod"),
        SecretRef(vault_path="database/creds/readonly"),
    ]
    assert await secrets(tmp_path).places(refs, "main") == [
        {"path": "secret/data/modal/main/known", "leased": False},
        {"path": "secret/data/modal/prod/known", "leased": False},
        {"path": "database/creds/readonly", "leased": True},
    ]


@pytest.mark.parametrize("path", ["secret/data/modal/prod/known", "/secret//data/x", "a/../secret/data/x"])
async def test_a_path_reaches_no_secret_of_another_environment(tmp_path: Path, path: str) -> None:
    with pytest.raises(InvalidError, match="use Secret"):
        await secrets(tmp_path).places([SecretRef(vault_path=path)], "main")


async def test_what_is_not_there_is_told_before_the_job_waits_for_it(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="absent"):
        await secrets(tmp_path).places([SecretRef("absent")], "main")
    with pytest.raises(InvalidError, match="has no B"):
        await secrets(tmp_path).places([SecretRef("known", required=("B",))], "main")


def test_each_step_gets_its_own(tmp_path: Path) -> None:
    rendered = [
        {"values": {"A": "1", "B": 2}},
        {"values": {"user": "u"}, "lease": "l/1"},
        {"values": {"C": "3"}},
    ]
    path = tmp_path / "secrets.json"
    path.write_text(json.dumps(rendered))
    every = {"keys": {}, "prefix": ""}
    layers = [
        {"reads": [[every, {"keys": {"DB": "user"}, "prefix": "X_"}], []], "values": {}, "pull_values": {}},
        {"reads": [[], [every]], "values": {}, "pull_values": {}},
    ]
    plan: dict[str, Any] = {"secrets": [{}, {}, {}], "layers": layers}
    said: list[Any] = []
    assert read_secrets(plan, str(path), said.append) == ["l/1"]
    assert layers[0]["values"] == {"A": "1", "B": "2", "X_DB": "u"} and layers[0]["pull_values"] == {}
    assert layers[1]["values"] == {} and layers[1]["pull_values"] == {"C": "3"}
    assert said == []


@pytest.mark.parametrize("content", [None, "not JSON", "[]"])
def test_a_job_that_rendered_nothing_says_so(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "secrets.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ImageBuildError, match="Secrets"):
        read_secrets({"secrets": [{}], "layers": []}, str(path), print)


def test_values_that_the_dispatcher_gave_are_let_be() -> None:
    layers = [{"reads": None, "values": {"A": "1"}, "pull_values": {}}]
    assert read_secrets({"secrets": [], "layers": layers}, None, print) == []
    assert layers[0]["values"] == {"A": "1"}
