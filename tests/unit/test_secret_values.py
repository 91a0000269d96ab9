"""From the fields of Secrets to variables: who wins, what is left out, and what the worker sets."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modal_nomad.render import RenderSettings, render_function
from modal_nomad.wire.mounts import SecretRef
from modal_nomad.wire.secret_values import RESERVED, merge
from modal_nomad.wire.spec import FunctionSpec
from modal_nomad.worker import _secrets

VAULT = RenderSettings("http://d:1", "a" * 64, environment="prod", vault_mount="secret", vault_role="r")
READ = re.compile(r'\{\{ with secret ("(?:[^"\\]|\\.)*") \}\}\{\{ (\S+) \| toJSON \}\}\{\{ end \}\}')


def rendered(spec: FunctionSpec, vault: dict[str, dict[str, object]]) -> str:
    """Render the job's template as Nomad does: each ``with secret`` becomes the JSON of what is there."""
    task = render_function(spec, VAULT)["TaskGroups"][0]["Tasks"][0]

    def read(found: re.Match[str]) -> str:
        fields = vault[json.loads(found[1])]
        return json.dumps(fields["data"] if found[2] == ".Data.data" else fields)

    text = READ.sub(read, task["Templates"][0]["EmbeddedTmpl"])
    return text


def test_the_later_one_wins_and_what_is_kept_stays() -> None:
    one, two = {"values": {"A": "1", "B": "1", "C": "1"}}, {"values": {"B": "2", "C": "2"}}
    assert merge([one, two], ["C"]) == {"A": "1", "B": "2"}


def test_keys_choose_and_rename_fields() -> None:
    secret = {"values": {"username": "u", "password": "p"}, "keys": {"USER": "username", "X": "absent"}}
    said: list[str] = []
    assert merge([secret], (), said.append) == {"USER": "u"}
    assert said == ["a Secret has no field 'absent', so the variable 'X' is not set"]


def test_values_of_other_writers_become_text_and_impossible_names_are_left_out() -> None:
    said: list[str] = []
    values = {
        "N": 5,
        "T": True,
        "O": {"a": [1]},
        "": "x",
        "a=b": "hunter",
        "z": "hunter\0",
        "MODAL_TASK_ID": "hunter",
    }
    assert merge([{"values": values}], (), said.append) == {"N": "5", "T": "true", "O": '{"a": [1]}'}
    assert len(said) == 4 and "hunter" not in "".join(said)


def test_the_inner_fields_of_a_kv_path_are_taken() -> None:
    assert merge([{"values": {"data": {"A": "1"}, "metadata": {"version": 3}}}], ()) == {"A": "1"}
    assert merge([{"values": {"data": "1", "metadata": "2"}}], ()) == {"data": "1", "metadata": "2"}


def test_what_the_job_sets_is_reserved() -> None:
    spec = FunctionSpec("a", "f", code_bundle="b" * 64, secrets=(SecretRef("s"),))
    env = render_function(spec, VAULT)["TaskGroups"][0]["Tasks"][0]["Env"]
    assert {name for name in env if name.startswith("MODAL_")} <= RESERVED


def test_a_job_says_where_its_secrets_are() -> None:
    refs = (
        SecretRef("db", required=("A",)),
        SecretRef("abc.st-x", ephemeral=True),
        SecretRef("there", environment="other"),
    )
    task = render_function(FunctionSpec("a", "f", secrets=refs), VAULT)["TaskGroups"][0]["Tasks"][0]
    [template] = task["Templates"]
    paths = [json.loads(x[0]) for x in READ.findall(template["EmbeddedTmpl"])]
    assert paths == [
        "secret/data/modal/prod/db",
        "secret/data/modal/prod/ephemeral/abc.st-x",
        "secret/data/modal/other/there",
    ]
    assert template["DestPath"].startswith("secrets/") and template["ChangeMode"] == "noop"
    assert template["Envvars"] is False and template["Once"] is True
    assert task["Vault"]["Role"] == "r" and task["Vault"]["DisableFile"] and not task["Vault"]["Env"]
    leased = FunctionSpec("a", "f", secrets=(SecretRef(vault_path="database/creds/x"),))
    [template] = render_function(leased, VAULT)["TaskGroups"][0]["Tasks"][0]["Templates"]
    assert template["Once"] is False and '"database/creds/x"' in template["EmbeddedTmpl"]


@pytest.mark.parametrize("settings", [RenderSettings("http://d:1", "a" * 64), VAULT])
def test_a_job_without_secrets_or_vault_has_no_blocks(settings: RenderSettings) -> None:
    refs = () if settings.vault_mount else (SecretRef("db"),)
    task = render_function(FunctionSpec("a", "f", secrets=refs), settings)["TaskGroups"][0]["Tasks"][0]
    assert "Vault" not in task and "Templates" not in task and "MODAL_SECRETS_FILE" not in task["Env"]


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0="), min_size=1).filter(
    lambda name: name not in RESERVED
)


@given(
    values=st.dictionaries(names, st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))),
    kept=st.lists(names, max_size=3),
)
def test_whatever_is_stored_arrives_in_the_container(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, str], kept: list[str]
) -> None:
    spec = FunctionSpec("a", "f", env=dict.fromkeys(kept, "kept"), secrets=(SecretRef("s"),))
    path: Path = tmp_path_factory.getbasetemp() / "modal_secrets.json"
    path.write_text(rendered(spec, {"secret/data/modal/prod/s": {"data": values}}))
    environ = {"MODAL_SECRETS_FILE": str(path), **spec.env}
    _secrets.take(environ)
    assert environ == {**values, **spec.env}


def test_a_container_without_such_a_file_is_left_alone() -> None:
    environ = {"A": "1"}
    _secrets.take(environ)
    assert environ == {"A": "1"}
