"""What the web decorators refuse where they stand, and what they leave behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import modal_nomad as modal
from modal_nomad import runner
from modal_nomad._class_info import class_info
from modal_nomad.exception import DeprecationError, InvalidError

WORDS = ["asgi_app", "wsgi_app", "fastapi_endpoint", "web_server"]


def decorator(word: str, **options: Any) -> Callable[[Any], Any]:
    made: Callable[[Any], Any] = getattr(modal, word)(*([8000] if word == "web_server" else []), **options)
    return made


@pytest.mark.parametrize("word", [*WORDS, "web_endpoint"])
def test_parentheses_that_were_forgotten(word: str) -> None:
    with pytest.raises(InvalidError, match=rf"Did you forget parentheses\? Suggestion: `@modal.{word}\("):
        getattr(modal, word)(lambda: None)


def test_the_older_name_warns() -> None:
    with pytest.warns(DeprecationError, match="fastapi_endpoint"):
        made = modal.web_endpoint(method="post")(lambda: 1)
    assert made.settings.web.kind == "endpoint" and made.settings.web.method == "POST"


@pytest.mark.parametrize("word", ["asgi_app", "wsgi_app", "web_endpoint"])
def test_wait_for_response_must_be_true(word: str) -> None:
    with pytest.raises(InvalidError, match="wait_for_response"):
        getattr(modal, word)(wait_for_response=False)


@pytest.mark.parametrize("word", WORDS)
def test_options_are_checked(word: str) -> None:
    for options, match in (
        ({"label": "Not_A_Label"}, "label"),
        ({"label": "-x"}, "label"),
        ({"custom_domains": "api.example.com"}, "custom_domains is a string"),
        ({"custom_domains": 3}, "custom_domains"),
        ({"custom_domains": ["no dots"]}, "custom_domains"),
        ({"requires_proxy_auth": "yes"}, "requires_proxy_auth"),
    ):
        with pytest.raises(InvalidError, match=match):
            decorator(word, **options)
    made = decorator(word, label="my-label", custom_domains=["a.example.com"], requires_proxy_auth=True)
    web = made(lambda: None).settings.web
    assert (web.label, web.custom_domains, web.requires_proxy_auth) == ("my-label", ("a.example.com",), True)


@pytest.mark.parametrize("port", [0, 65536, "8000", True, None])
def test_ports(port: Any) -> None:
    with pytest.raises(InvalidError, match="port"):
        modal.web_server(port)


def test_startup_timeout_and_method() -> None:
    with pytest.raises(InvalidError, match="startup_timeout"):
        modal.web_server(8000, startup_timeout=0)
    with pytest.raises(InvalidError, match="method"):
        modal.fastapi_endpoint(method="FETCH")
    with pytest.raises(InvalidError, match="docs"):
        modal.fastapi_endpoint(docs="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("word", WORDS)
def test_generators_are_not_served(word: str) -> None:
    def items() -> Any:
        yield 1

    with pytest.raises(InvalidError, match="generator"):
        decorator(word)(items)


@pytest.mark.parametrize("word", ["asgi_app", "wsgi_app", "web_server"])
def test_builders_take_nothing_and_are_not_async(word: str) -> None:
    async def later() -> None: ...

    with pytest.raises(InvalidError, match="async"):
        decorator(word)(later)
    with pytest.raises(InvalidError, match="parameters"):
        decorator(word)(lambda x: x)


@pytest.mark.parametrize("word", WORDS)
def test_what_cannot_be_combined(word: str) -> None:
    def plain() -> None: ...

    for other in (modal.method(), modal.enter(), modal.batched(max_batch_size=2, wait_ms=1)):
        with pytest.raises(InvalidError, match="cannot be combined"):
            other(decorator(word)(plain))
    with pytest.raises(InvalidError, match="cannot be combined"):
        decorator(word)(modal.batched(max_batch_size=2, wait_ms=1)(plain))
    with pytest.raises(InvalidError, match="cannot be combined"):
        decorator(word)(modal.method()(plain))
    with pytest.raises(InvalidError, match="decorated twice"):
        decorator(word)(decorator(word)(plain))
    with pytest.raises(InvalidError, match="class"):
        decorator(word)(type("Thing", (), {}))
    with pytest.raises(InvalidError, match="must stand below"):
        decorator(word)(modal.App("x").function(serialized=True)(plain))
    with pytest.raises(InvalidError, match="retries"):
        modal.App("x").function(serialized=True, retries=2)(decorator(word)(plain))


def test_a_served_class_needs_defaults() -> None:
    class Model:
        size: int = modal.parameter()

        @modal.fastapi_endpoint()
        def show(self) -> int:
            return self.size

    with pytest.raises(InvalidError, match="default"):
        class_info(Model)


def served_app() -> modal.App:
    app = modal.App("shop")

    @app.function(serialized=True, name="one")
    @modal.concurrent(max_inputs=7)
    @modal.asgi_app(label="first")
    def one() -> None: ...

    @app.function(serialized=True, name="plain")
    def plain() -> None: ...

    @app.cls(serialized=True)
    class Model:
        @modal.fastapi_endpoint(docs=True)
        def show(self) -> int:
            return 1

        @modal.method()
        def work(self) -> int:
            return 2

    return app


def test_what_an_app_serves() -> None:
    assert served_app().registered_web_endpoints == ["one", "Model.show"]


@pytest.mark.parametrize(("state", "suffix"), [("deployed", ""), ("ephemeral", "dev")])
def test_the_specification_says_it(state: str, suffix: str) -> None:
    render = {"server_url": "http://x", "runtime_sha": "a" * 64, "web_sha": "w" * 64}
    publication = runner.prepare(served_app(), render, state=state, name="shop", environment=None)
    specs = {x["spec"]["name"]: x for x in publication.args["functions"]}
    one, plain, model = specs["one"], specs["plain"], specs["Model.*"]
    assert one["spec"]["web"]["label"] == "first" and one["spec"]["web"]["dev_suffix"] == suffix
    assert one["spec"]["max_concurrent_inputs"] == 7
    assert plain["spec"]["web"] is None
    assert model["spec"]["methods"]["show"]["web"]["docs"] is True
    assert model["spec"]["methods"]["work"]["web"] is None
    for entry, served in ((one, True), (plain, False), (model, True)):
        task = entry["job"]["TaskGroups"][0]["Tasks"][0]
        assert any("w" * 64 in x["GetterSource"] for x in task["Artifacts"]) is served
        assert ("Networks" in entry["job"]["TaskGroups"][0]) is served


@pytest.mark.parametrize("verb", ["remote", "spawn", "map", "remote_gen"])
def test_it_is_not_called(verb: str) -> None:
    app = served_app()
    with pytest.raises(InvalidError, match=f"webhook.*{verb}"):
        result = getattr(app["one"], verb)([1] if verb == "map" else 1)
        list(result)
