"""Apps: definition, and publishing against a server that is only a record of requests."""

import hashlib
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from modal_nomad import enable_output, runner
from modal_nomad.app import App
from modal_nomad.exception import (
    ConnectionError,
    DeprecationError,
    ExecutionError,
    InvalidError,
    NotFoundError,
)
from modal_nomad.image import Image
from modal_nomad.wire.spec import FunctionSpec

RENDER = {"server_url": "unix:///tmp/x.sock", "runtime_sha": "0" * 64}


class Server:
    """Answers requests as the dispatcher would, and keeps them."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.blobs: dict[str, bytes] = {}
        self.fail: dict[str, Exception] = {}
        self.server = SimpleNamespace(render=RENDER)

    async def _request(self, method: str, args: dict[str, Any]) -> dict[str, Any]:
        self.requests.append((method, args))
        if method in self.fail:
            raise self.fail[method]
        if method == "blob.missing":
            return {"missing": [x for x in args["hashes"] if x not in self.blobs]}
        if method == "app.publish":
            names = [f["spec"]["name"] for f in args["functions"]]
            functions = {name: f"fu-{name}" for name in names}
            return {"app_id": "ap-1", "version": 1, "functions": functions, "url": "u", "logs_url": "l"}
        if method == "app.plan":
            return {"plans": [{"job_id": "j", "changes": True}]}
        return {"app_id": "ap-9"}

    async def _put_blobs(self, contents: list[bytes]) -> list[str]:
        names = [hashlib.sha256(data).hexdigest() for data in contents]
        self.blobs.update(zip(names, contents, strict=True))
        return names

    def _subscribe(self, app_id: str, callback: Any) -> None:
        pass

    _unsubscribe = _subscribe

    @property
    def methods(self) -> list[str]:
        return [method for method, _ in self.requests]


@pytest.fixture
def server() -> Any:
    return Server()


def plain(x: int) -> int:
    return x


def generator():
    yield 1


def test_names() -> None:
    app = App("a")
    assert (app.name, app.description, app.app_id, app.is_interactive) == ("a", "a", None, False)
    unnamed = App()
    assert unnamed.name is None and unnamed.description
    unnamed.set_description("words")
    assert unnamed.description == "words"


def test_registration_and_dict_access() -> None:
    app = App("a")
    function = app.function()(plain)
    again = app.function(name="other")(plain)
    entry = app.local_entrypoint()(plain)
    assert app.registered_functions == {"plain": function, "other": again} == app.indexed_objects
    assert app["plain"] is function and "plain" in app and list(app) == ["plain", "other"] and len(app) == 2
    assert bool(App())
    assert app.registered_entrypoints == {"plain": entry} and entry(3) == 3
    assert entry.app is app and entry.info.name == "plain" and entry.get_raw_f() is plain
    assert function.get_raw_f() is plain
    assert (app.registered_classes, app.registered_web_endpoints) == ({}, [])


def _entry_twice(app: App) -> None:
    app.local_entrypoint(name="x")(plain)
    app.local_entrypoint(name="x")(generator)


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda app: App(3), InvalidError, "Must be string"),
        (lambda app: App("x", image="debian"), InvalidError, "image is 'debian'"),
        (lambda app: app.function(plain), InvalidError, r"Suggestion: `@app.function\(\)`"),
        (lambda app: app.local_entrypoint(plain), InvalidError, r"`@app.local_entrypoint\(\)`"),
        (lambda app: app.function(Image.debian_slim()), InvalidError, r"function\(image=image\)"),
        (lambda app: app.function()(type("C", (), {})), TypeError, "class C"),
        (lambda app: app.function()(lambda: 1), InvalidError, "global scope"),
        (lambda app: App().function()(app.function()(plain)), InvalidError, "plain is a Function already"),
        (lambda app: App(secrets=[1]), InvalidError, "secrets of an App must be a list or tuple of Secrets"),
        (lambda app: App(include_source="no"), InvalidError, "include_source is 'no'"),
        (lambda app: setattr(app, "image", "x"), InvalidError, "image is 'x'"),
        (lambda app: app["nothing"], KeyError, "nothing"),
        (lambda app: app.function()(plain).map([1]).__next__(), ExecutionError, "hydrated"),
        (lambda app: app.function()(plain).spawn(1), ExecutionError, "hydrated"),
        (lambda app: app.function()(plain)(1), InvalidError, "is not called directly"),
        (lambda app: app.function(retries=1)(generator), InvalidError, "cannot have retries"),
        (lambda app: app.function(nothing=1), TypeError, "no parameter 'nothing'"),
        (_entry_twice, InvalidError, "Duplicate local entrypoint name: x"),
        (lambda app: app.run(show_progress=True).__enter__(), InvalidError, "enable_output"),
        (lambda app: App().deploy(client=Server()), InvalidError, "no name to deploy"),
        (lambda app: app.deploy(name="a b", client=Server()), InvalidError, "Invalid App name"),
        (lambda app: App.lookup("a b"), InvalidError, "Invalid App name"),
        (lambda app: app.function()(plain).remote(1), ExecutionError, "hydrated"),
    ],
)
def test_refused(act, error, message: str) -> None:
    with pytest.raises(error, match=message):
        act(App("a"))


def test_two_functions_of_one_name_warn() -> None:
    app = App("a")
    app.function(name="f")(plain)
    app.function(name="f")(plain)
    with pytest.warns(UserWarning, match=r"two functions named 'f', of modules .*test_app and .*test_app;"):
        app.function(name="f")(generator)


def test_old_name_warns_here() -> None:
    with pytest.warns(DeprecationError, match="min_containers") as caught:
        function = App("a").function(keep_warm=2)(plain)
    assert caught[0].filename == __file__
    assert function._options is not None and function._options.min_containers == 2


def test_include(caplog: pytest.LogCaptureFixture) -> None:
    one, two = App("one"), App("two")
    kept = one.function()(generator)
    one.function()(plain)
    theirs = two.function()(plain)
    with caplog.at_level(logging.WARNING, "modal_nomad"):
        assert one.include(two) is one
    assert "Overriding existing function plain" in caplog.text
    assert one.registered_functions == {"generator": kept, "plain": theirs}


def test_run_publishes_and_stops(server: Any) -> None:
    app = App("a")
    function = app.function()(plain)
    with app.run(client=server, environment_name="dev") as running:
        assert running is app and app.app_id == "ap-1" and function.object_id == "fu-plain"
        with pytest.raises(InvalidError, match="already running"), app.run(client=server):
            pass
    assert app.app_id == "ap-1" and not function.is_hydrated
    assert server.methods == ["blob.missing", "app.publish", "app.stop"]
    args = server.requests[1][1]
    assert (args["state"], args["name"], args["environment"]) == ("ephemeral", None, "dev")
    with app.run(client=server):
        pass
    # The code, and what the Image is.
    assert len(server.blobs) == 2


async def test_run_async(server: Any) -> None:
    app = App("a")
    app.function()(plain)
    async with app.run(client=server):
        assert app["plain"].is_hydrated
    assert server.methods[-1] == "app.stop"


def test_detached_runs_go_on(server: Any) -> None:
    with App("a").run(client=server, detach=True):
        pass
    assert server.methods == ["app.publish"]
    assert server.requests[0][1]["state"] == "detached"


def test_keyboard_interrupt_is_swallowed_after_the_stop(server: Any) -> None:
    with App("a").run(client=server):
        raise KeyboardInterrupt
    assert server.methods[-1] == "app.stop"


def test_errors_inside_pass_through_and_stop(server: Any) -> None:
    server.fail["app.stop"] = ConnectionError("gone")
    app = App("a")
    with pytest.raises(LookupError, match="mine"), app.run(client=server):
        raise LookupError("mine")
    assert server.methods[-1] == "app.stop"


def test_failed_publish_leaves_the_app_usable(server: Any) -> None:
    app = App("a")
    server.fail["app.publish"] = NotFoundError("no such environment")
    with pytest.raises(NotFoundError, match="no such environment"), app.run(client=server):
        pass
    server.fail.clear()
    with app.run(client=server):
        pass


def test_run_in_global_scope_of_a_container(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODAL_IS_REMOTE", "1")
    with pytest.raises(InvalidError, match="global scope within a container"), App("a").run(client=server):
        pass


def test_old_parameters_of_run(server: Any) -> None:
    with (
        pytest.warns(DeprecationError, match="no effect") as caught,
        App("a").run(client=server, show_progress=False),
    ):
        pass
    assert caught[0].filename == __file__
    with (
        pytest.warns(UserWarning, match="enable_output"),
        App("a").run(client=server, interactive=True) as app,
    ):
        assert not app.is_interactive
    with enable_output(), App("a").run(client=server, interactive=True) as app:
        assert app.is_interactive
    assert not app.is_interactive


def test_deploy(server: Any) -> None:
    app = App("a")
    app.function()(plain)
    result = runner.deploy_app(app, client=server, tag="v1")
    assert (result.app_id, result.app_page_url, result.app_logs_url) == ("ap-1", "u", "l")
    args = dict(server.requests)["app.publish"]
    assert (args["state"], args["name"], args["tag"]) == ("deployed", "a", "v1")
    uploaded = dict(server.blobs)
    assert app.deploy(name="b", client=server) is app
    assert server.blobs == uploaded
    assert server.methods.count("blob.missing") == 2


def test_specification(server: Any) -> None:
    app = App("a", image=Image.debian_slim("3.11"))
    app.function(cpu=(1, 2), memory=64, retries=2, timeout=7, env={"A": "1"})(plain)
    app.function(serialized=True, name="pickled", image=Image.debian_slim("3.12"))(lambda: 1)
    specs, contents = runner.function_specs(app, "a")
    one, two = (FunctionSpec.from_dict(s.to_dict()) for s in specs)
    assert (one.module, one.qualname, one.serialized) == (plain.__module__, "plain", False)
    assert one.file == plain.__module__.replace(".", "/") + ".py"
    assert (one.cpu, one.memory, one.timeout, one.image.python) == ((1.0, 2.0), (64, None), 7.0, "3.11")
    assert one.env["A"] == "1" and one.env["MODAL_IMAGE_ID"].startswith("im-")
    assert (two.module, two.serialized, two.image.python) == ("", True, "3.12")
    images = {one.image.image_id[3:], two.image.image_id[3:]}
    assert {one.code_bundle, two.function_blob} | images == set(contents)
    assert one.env["MODAL_IMAGE_ID"] == one.image.image_id


def test_include_source_false_ships_nothing() -> None:
    app = App("a")
    app.function(include_source=False)(plain)
    (spec,), contents = runner.function_specs(app, "a")
    assert (spec.file, spec.code_bundle, list(contents)) == (None, None, [spec.image.image_id[3:]])


def test_include_source_of_the_app_is_the_default() -> None:
    app = App("a", include_source=False, mounts=[], secrets=[], volumes={})
    app.function()(plain)
    app.function(name="sent", include_source=True)(plain)
    (one, two), _ = runner.function_specs(app, "a")
    assert one.code_bundle is None and two.code_bundle is not None


def test_an_included_function_keeps_its_apps_image() -> None:
    one, two = App("one", image=Image.debian_slim("3.10")), App("two", image=Image.debian_slim("3.11"))
    two.function()(plain)
    one.include(two)
    (spec,), _ = runner.function_specs(one, "one")
    assert (spec.app, spec.image.python) == ("one", "3.11")


@pytest.mark.parametrize(("size", "outcome"), [(300 << 10, "warns"), (17 << 20, "raises")])
def test_large_pickles(size: int, outcome: str) -> None:
    data = bytes(size)
    app = App("a")
    app.function(serialized=True, name="big")(lambda: data)
    if outcome == "warns":
        with pytest.warns(UserWarning, match="larger than the recommended limit"):
            runner.function_specs(app, "a")
    else:
        with pytest.raises(InvalidError, match="at most 16 MiB"):
            runner.function_specs(app, "a")


def test_lookup(server: Any) -> None:
    app = App.lookup("found", client=server, create_if_missing=True)
    assert (app.name, app.app_id) == ("found", "ap-9")
    assert server.requests[0][1]["create_if_missing"] is True
    with pytest.warns(DeprecationError, match="'label' of App.lookup") as caught:
        assert App.lookup(label="found", client=server).name == "found"
    assert caught[0].filename == __file__
    server.fail["app.lookup"] = NotFoundError("no app")
    with pytest.raises(NotFoundError):
        App.lookup("lost", client=server)


async def test_plan_changes_nothing(server: Any) -> None:
    app = App("a")
    app.function()(plain)
    assert await runner.plan_app.aio(app, client=server) == [{"job_id": "j", "changes": True}]
    assert server.methods == ["app.plan"] and not server.blobs
