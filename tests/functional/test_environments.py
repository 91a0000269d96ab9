"""Environments: what is in one is invisible to another, and out of reach for tokens of another."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Live

import modal_nomad as modal
from modal_nomad import exception

ON_BOTH_STORES = True


def test_objects_and_apps_of_one_are_invisible_to_another(own: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    app = modal.App("here")
    app.function(serialized=True, name="f")(lambda: 1)
    app.deploy(environment_name="one")
    for kind in (modal.Dict, modal.Queue):
        kind.objects.create("thing", environment_name="one")
        with pytest.raises(exception.NotFoundError, match="'two'"):
            kind.from_name("thing", environment_name="two").hydrate()
        assert kind.objects.list(environment_name="two") == []
        monkeypatch.setenv("MODAL_ENVIRONMENT", "one")
        assert [x.name for x in kind.objects.list()] == ["thing"]
        assert kind.from_name("thing").hydrate().is_hydrated
        monkeypatch.delenv("MODAL_ENVIRONMENT")
    with pytest.raises(exception.NotFoundError, match="two"):
        modal.App.lookup("here", environment_name="two")
    assert modal.App.lookup("here", environment_name="one").app_id
    assert [x.name for x in modal.Environment.objects.list()] == ["main", "one"]


def test_a_container_uses_the_environment_of_its_app(own: Live) -> None:
    app = modal.App("inside")

    @app.function(serialized=True)
    def note(value: int) -> str:
        import modal_nomad

        modal_nomad.Dict.from_name("notes", create_if_missing=True)["value"] = value
        return str(modal_nomad.Environment.from_context().name)

    with app.run(environment_name="staging"):
        assert note.remote(7) == "staging"
    assert modal.Dict.from_name("notes", environment_name="staging")["value"] == 7


def test_one_that_is_deleted_takes_all_that_is_in_it(own: Live) -> None:
    app = modal.App("stays")
    app.function(serialized=True, name="f")(lambda: 1)
    app.deploy(environment_name="old")
    d = modal.Dict.from_name("d", {"a": 1}, environment_name="old", create_if_missing=True).hydrate()
    with pytest.raises(exception.InvalidError, match="stays"):
        own.request("environment.update", name="old", new_name="new")
    modal.Environment.objects.delete("old")
    assert [x.name for x in modal.Environment.objects.list()] == ["main"]
    with pytest.raises(exception.NotFoundError):
        d.get("a")
    with pytest.raises(exception.NotFoundError):
        modal.App.lookup("stays", environment_name="old")


def test_names_survive_a_restart_and_a_rename(own: Live) -> None:
    modal.Environment.objects.create("one")
    q = modal.Queue.from_name("q", environment_name="one", create_if_missing=True)
    q.put("kept")
    with pytest.raises(exception.AlreadyExistsError):
        own.request("environment.update", name="one", new_name="main")
    own.request("environment.update", name="one", new_name="two")
    own.kill()
    assert modal.Queue.from_name("q", environment_name="two").get() == "kept"
    assert [x.name for x in modal.Environment.objects.list()] == ["main", "two"]
    renamed = own.request("object.rename", kind="queue", name="q", environment="two", new_name="r")
    assert renamed["object_id"] == q.object_id
    modal.Queue.objects.create("q", environment_name="two")
    with pytest.raises(exception.AlreadyExistsError, match="'q'"):
        own.request("object.rename", object_id=q.object_id, new_name="q")


def held_app() -> modal.App:
    """An App whose code reaches for what is in another environment."""
    app = modal.App("held")

    @app.function(serialized=True)
    def reach(object_id: str, volume_id: str) -> list[str]:
        import modal_nomad

        attempts = {
            "by name": lambda: modal_nomad.Dict.from_name("d", environment_name="prod")["a"],
            "by id": lambda: modal_nomad.Dict.from_id(object_id)["a"],
            "files": lambda: modal_nomad.Volume.from_id(volume_id).listdir("/"),
            "own": lambda: modal_nomad.Dict.from_name("held", create_if_missing=True).put("a", 1),
        }
        reached = []
        for name, attempt in attempts.items():
            try:
                attempt()
                reached.append(name)
            except modal_nomad.exception.AuthError as error:
                if "for the environments dev" not in str(error):
                    reached.append(str(error))
        return reached

    return app


def test_a_token_of_one_gets_a_permission_error_in_the_other(
    own: Live, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(auth="token")
    config = str(own.home / "dispatcher.toml")

    def issue(*words: str) -> modal.Client:
        done = own.cli("dispatcher", "token", "create", "--json", "--config", config, *words)
        token = json.loads(done.stdout)
        return modal.Client.from_credentials(token["token_id"], token["token_secret"])

    anyone, scoped = issue(), issue("--env", "dev")
    modal.Environment.objects.create("prod", client=anyone)
    theirs = modal.Dict.from_name(
        "d", {"a": 1}, environment_name="prod", create_if_missing=True, client=anyone
    )
    queue = modal.Queue.from_name("q", environment_name="prod", create_if_missing=True, client=anyone)
    queue.put("secret")
    theirs.hydrate()
    named = {"environment_name": "prod", "create_if_missing": True, "client": anyone}
    volume = modal.Volume.from_name("v", **named).hydrate()
    nfs = modal.NetworkFileSystem.from_name("n", **named)
    nfs.write_file("a", io.BytesIO(b"1"))
    reached = modal.NetworkFileSystem.from_id(nfs.object_id, scoped)
    shows_files, shows_volume = modal.App("shows-files"), modal.App("shows-volume")
    shows_files.function(serialized=True, name="f", network_file_systems={"/a": reached})(lambda: 1)
    of_theirs = modal.Volume.from_id(volume.object_id, scoped)
    shows_volume.function(serialized=True, name="f", volumes={"/a": of_theirs})(lambda: 1)
    ours = modal.Dict.from_name("d", environment_name="dev", create_if_missing=True, client=scoped)
    ours["b"] = 2
    assert ours["b"] == 2
    for refused in (
        lambda: modal.Dict.from_name("d", environment_name="prod", client=scoped).hydrate(),
        lambda: modal.Dict.from_name("d", client=scoped).hydrate(),
        lambda: modal.Dict.from_id(theirs.object_id, scoped).get("a"),
        lambda: modal.Dict.objects.list(environment_name="prod", client=scoped),
        lambda: modal.Dict.objects.delete("d", environment_name="prod", client=scoped),
        lambda: modal.Queue.from_id(queue.object_id, scoped).get(block=False),
        lambda: modal.Queue.from_id(queue.object_id, scoped).put("x"),
        lambda: b"".join(reached.read_file("a")),
        lambda: reached.listdir("/"),
        lambda: reached.write_file("a", io.BytesIO(b"2")),
        lambda: reached.remove_file("a"),
        lambda: shows_files.deploy(environment_name="dev", client=scoped),
        lambda: shows_volume.deploy(environment_name="dev", client=scoped),
        lambda: modal.Environment.from_name("prod").hydrate(scoped),
        lambda: modal.Environment.objects.create("more", client=scoped),
        lambda: modal.Environment.objects.delete("dev", client=scoped),
    ):
        with pytest.raises(exception.AuthError, match="for the environments dev"):
            refused()
    assert [x.name for x in modal.Environment.objects.list(client=scoped)] == ["dev"]
    # Code is held to what the token may that deployed it, and to that of who gave it other options.
    held_app().deploy(environment_name="dev", client=scoped)
    held_app().deploy(name="free", environment_name="dev", client=anyone)
    ids = (theirs.object_id, volume.object_id)

    def reach(app: str, client: modal.Client) -> modal.Function[..., Any]:
        return modal.Function.from_name(app, "reach", environment_name="dev").hydrate(client)

    assert reach("held", anyone).remote(*ids) == ["own"]
    assert reach("free", scoped).remote(*ids) == ["by name", "by id", "files", "own"]
    assert reach("free", scoped).with_options(memory=300).remote(*ids) == ["own"]
    assert queue.get() == "secret" and theirs["a"] == 1 and b"".join(nfs.read_file("a")) == b"1"
