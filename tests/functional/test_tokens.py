"""Tokens: issued and revoked on the dispatcher's machine, stored by their holders, held to environments."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Live

import modal_nomad as modal
from modal_nomad import exception
from modal_nomad.client import Client

APP = """
    import modal

    app = modal.App("guarded")

    @app.function()
    def double(x: int):
        return 2 * x

    @app.local_entrypoint()
    def main():
        print("doubled", double.remote(4))
"""
Serve = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def guarded(own: Live, serve: Serve) -> Live:
    serve(auth="token")
    own.write("app.py", APP)
    return own


def issue(live: Live, *words: str) -> tuple[str, str]:
    done = live.cli("dispatcher", "token", "create", "--json", "--config", config(live), *words)
    assert done.returncode == 0, done.stderr
    token = json.loads(done.stdout)
    return token["token_id"], token["token_secret"]


def config(live: Live) -> str:
    return str(live.home / "dispatcher.toml")


def connect(token: tuple[str, str]) -> Client:
    return Client.from_credentials(*token)


def use(monkeypatch: pytest.MonkeyPatch, token: tuple[str, str]) -> None:
    monkeypatch.setenv("MODAL_TOKEN_ID", token[0])
    monkeypatch.setenv("MODAL_TOKEN_SECRET", token[1])


def test_a_token_is_issued_while_the_dispatcher_runs_stored_and_revoked(guarded: Live) -> None:
    assert guarded.cli("run", "app.py").returncode == 1
    token = issue(guarded, "--label", "ci")
    wrong = guarded.cli("token", "set", "--token-id", token[0], "--token-secret", "as-wrong")
    assert wrong.returncode == 1 and "does not take this token" in wrong.stderr
    assert not (guarded.home / "modal.toml").exists()
    stored = guarded.cli("token", "set", "--token-id", token[0], "--token-secret", token[1])
    assert stored.returncode == 0, stored.stderr
    done = guarded.cli("run", "app.py")
    assert done.returncode == 0 and "doubled 8" in done.stdout, done.stderr

    listed = guarded.cli("dispatcher", "token", "list", "--json", "--config", config(guarded))
    (entry,) = json.loads(listed.stdout)
    assert entry["Token ID"] == token[0] and entry["Label"] == "ci" and entry["Environments"] == "all"
    store = b"".join(path.read_bytes() for path in (guarded.home / "state").glob("store.db*"))
    assert token[0].encode() in store and token[1].encode() not in store

    assert guarded.cli("dispatcher", "token", "revoke", token[0], "--config", config(guarded)).returncode == 0
    again = guarded.cli("dispatcher", "token", "revoke", token[0], "--config", config(guarded))
    assert again.returncode == 1 and token[0] in again.stderr
    assert guarded.cli("dispatcher", "token", "list", "--config", config(guarded)).stdout.count("\n") == 1


def test_a_revoked_token_opens_nothing(guarded: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    token = issue(guarded)
    guarded.cli("dispatcher", "token", "revoke", token[0], "--config", config(guarded))
    use(monkeypatch, token)
    done = guarded.cli("app", "list")
    assert done.returncode == 1 and "modal-nomad token set" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_scoped_token_keeps_to_its_environments(guarded: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, issue(guarded))
    assert guarded.cli("deploy", "app.py", "--env", "prod").returncode == 0
    function_id = modal.Function.from_name("guarded", "double", environment_name="prod").hydrate().object_id
    app_id = modal.App.lookup("guarded", environment_name="prod").app_id

    use(monkeypatch, issue(guarded, "--env", "dev"))
    assert guarded.cli("run", "app.py", "--env", "dev").returncode == 2
    done = guarded.cli("run", "--env", "dev", "app.py")
    assert done.returncode == 0 and "doubled 8" in done.stdout, done.stderr
    refused = guarded.cli("run", "app.py")
    assert refused.returncode == 1 and "for the environments dev" in refused.stderr
    assert "--env" in refused.stderr
    for words in (
        ["deploy", "--env", "prod", "app.py"],
        ["app", "list", "--env", "prod"],
        ["app", "stop", str(app_id)],
        ["app", "logs", str(app_id)],
        ["app", "history", "guarded", "--env", "prod"],
    ):
        refused = guarded.cli(*words)
        assert refused.returncode == 1 and "for the environments dev" in refused.stderr, words
    with pytest.raises(exception.AuthError, match="prod"):
        modal.Function.from_name("guarded", "double", environment_name="prod").remote(1)
    with pytest.raises(exception.AuthError, match="prod"):
        guarded.request("function.stats", function_id=function_id)


def test_a_scoped_token_keeps_to_its_environments_volumes(guarded: Live) -> None:
    everywhere, staging = connect(issue(guarded)), connect(issue(guarded, "--env", "staging"))
    secret = modal.Volume.from_name("v", create_if_missing=True, environment_name="prod", client=everywhere)
    with secret.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"1"), "a")
    with pytest.raises(exception.AuthError):
        modal.Volume.from_name("v", environment_name="prod", client=staging).listdir("/")
    # Also to who knows the id.
    known = modal.Volume.from_id(secret.object_id, client=staging)
    for attempt in (
        lambda: known.listdir("/"),
        lambda: list(known.read_file("a")),
        lambda: known.remove_file("a"),
        lambda: known.copy_files(["a"], "b"),
    ):
        with pytest.raises(exception.AuthError):
            attempt()
    with pytest.raises(exception.AuthError), known.batch_upload(force=True) as batch:
        batch.put_file(io.BytesIO(b"2"), "a")
    assert [(x.path, x.size) for x in secret.listdir("/")] == [("a", 1)]
    own = modal.Volume.from_name("v", create_if_missing=True, environment_name="staging", client=staging)
    assert own.listdir("/") == []


def test_tokens_need_to_know_which_dispatcher_is_meant(own: Live) -> None:
    for words in (
        ["create"],
        ["create", "--config", "absent.toml"],
        ["list", "--home", "a", "--config", "b"],
    ):
        done = own.cli("dispatcher", "token", *words)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr


def test_a_token_may_be_issued_before_the_first_start(own: Live, serve: Serve) -> None:
    done = own.cli("dispatcher", "token", "create", "--json", "--home", str(own.home / "state"))
    token: dict[str, Any] = json.loads(done.stdout)
    serve(auth="token")
    assert not connect((token["token_id"], token["token_secret"])).is_closed()
