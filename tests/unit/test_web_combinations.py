"""Which decorators and options go together with the web: every pair, right ones and wrong ones."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest

import modal_nomad as modal
from modal_nomad.exception import InvalidError
from modal_nomad.wire.spec import FunctionSpec, WebSpec
from modal_nomad.worker._pools import web_pool

WEB: dict[str, Callable[[], Any]] = {
    "asgi_app": modal.asgi_app,
    "wsgi_app": modal.wsgi_app,
    "fastapi_endpoint": modal.fastapi_endpoint,
    "web_endpoint": modal.web_endpoint,
    "web_server": lambda: modal.web_server(8000),
}
OTHERS: dict[str, Callable[[], Any]] = {
    "concurrent": lambda: modal.concurrent(max_inputs=3),
    "batched": lambda: modal.batched(max_batch_size=2, wait_ms=1),
    "method": modal.method,
    "enter": modal.enter,
    "enter(snap=True)": lambda: modal.enter(snap=True),
    "exit": modal.exit,
    "build": modal.build,
}
ALL = {**WEB, **OTHERS}
PAIRS = list(itertools.product(ALL, ALL))
HOOKS = ("enter", "enter(snap=True)", "exit", "build")


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def outcome(build: Callable[[], Any]) -> str:
    """Return nothing where it works, else the one line that says why not."""
    try:
        build()
    except InvalidError as error:
        text = str(error)
        assert "\n" not in text and len(text) > 20
        return text
    return ""


def on_function(above: str, below: str) -> str:
    def plain() -> None: ...

    def build() -> None:
        modal.App("x").function(serialized=True)(ALL[above]()(ALL[below]()(plain)))

    return outcome(build)


def on_method(above: str, below: str) -> str:
    def build() -> None:
        class Model:
            @ALL[above]()
            @ALL[below]()
            def both(self) -> None: ...

        modal.App("x").cls(serialized=True, enable_memory_snapshot=True)(Model)

    return outcome(build)


def beside(one: str, other: str) -> str:
    def build() -> None:
        class Model:
            @ALL[one]()
            def first(self) -> None: ...

            @ALL[other]()
            def second(self) -> None: ...

        modal.App("x").cls(serialized=True, enable_memory_snapshot=True)(Model)

    return outcome(build)


@pytest.mark.parametrize(("above", "below"), [x for x in PAIRS if set(x) & set(WEB)])
def test_two_on_one_function(above: str, below: str) -> None:
    """``@modal.concurrent`` alone goes with the web, in either order, on functions and on methods."""
    works = "concurrent" in (above, below)
    for text in (on_function(above, below), on_method(above, below)):
        assert (text == "") is works, text
        if works:
            continue
        if above in WEB and below in WEB:
            assert "decorated twice for the web" in text
        elif below in HOOKS:
            assert "hook" in text or "cannot be combined" in text
        else:
            assert "cannot be combined" in text


@pytest.mark.parametrize(("one", "other"), [x for x in PAIRS if set(x) & set(WEB)])
def test_two_in_one_class(one: str, other: str) -> None:
    """An endpoint shares its class with all but what batches, and what is no method by itself."""
    text = beside(one, other)
    if "batched" in (one, other):
        assert "must be the only one of its class" in text
    elif "concurrent" in (one, other):
        assert "has @modal.concurrent alone" in text
    else:
        assert text == ""


def test_concurrency_is_said_once() -> None:
    """On the class, or alike on methods; twice on one function it would be one of both, silently."""
    assert "decorated twice with @modal.concurrent" in on_function("concurrent", "concurrent")
    assert "decorated twice with @modal.concurrent" in outcome(
        lambda: modal.concurrent(max_inputs=2)(modal.concurrent(max_inputs=3)(type("Model", (), {})))
    )


# --- options of @app.function and @app.cls ---------------------------------------------------------

FINE: list[dict[str, Any]] = [
    {"schedule": modal.Period(days=1)},
    {"schedule": modal.Cron("0 6 * * *")},
    {"gpu": "A100"},
    {"gpu": ["H100:2", "A100:2"]},
    {"single_use_containers": True},
    {"enable_memory_snapshot": True},
    {"min_containers": 1},
    {"max_containers": 1},
    {"buffer_containers": 1},
    {"scaledown_window": 5},
    {"timeout": 10},
    {"startup_timeout": 10},
    {"block_network": True},
    {"restrict_modal_access": True},
    {"is_generator": False},
]
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"retries": 2}, "cannot have retries"),
    ({"retries": modal.Retries(max_retries=1)}, "cannot have retries"),
    ({"is_generator": True}, "cannot be a generator"),
]
OF_FUNCTIONS = {"schedule", "is_generator"}


def served_function(word: str, options: dict[str, Any]) -> str:
    def plain() -> None: ...

    return outcome(lambda: modal.App("x").function(serialized=True, **options)(WEB[word]()(plain)))


def served_class(word: str, options: dict[str, Any]) -> str:
    def build() -> None:
        class Model:
            @WEB[word]()
            def show(self) -> None: ...

        modal.App("x").cls(serialized=True, **options)(Model)

    return outcome(build)


@pytest.mark.parametrize("word", WEB)
def test_options(word: str) -> None:
    for options in FINE:
        assert served_function(word, options) == "", options
        if not options.keys() & OF_FUNCTIONS:
            assert served_class(word, options) == "", options
    for options, why in WRONG:
        assert why in served_function(word, options), options
        if not options.keys() & OF_FUNCTIONS:
            assert why in served_class(word, options), options


@pytest.mark.parametrize("word", WEB)
def test_retries_of_a_class_are_those_of_its_methods(word: str) -> None:
    class Model:
        @WEB[word]()
        def show(self) -> None: ...

        @modal.method()
        def work(self) -> None: ...

    modal.App("x").cls(serialized=True, retries=2)(Model)


def test_a_schedule_gives_no_parameters() -> None:
    def endpoint(x: int) -> int:
        return x

    made = modal.fastapi_endpoint()(endpoint)
    text = outcome(lambda: modal.App("x").function(serialized=True, schedule=modal.Period(days=1))(made))
    assert "nobody to give it x" in text


@pytest.mark.parametrize("kind", ["asgi", "wsgi", "server"])
def test_a_run_of_a_schedule_builds_nothing_anew(kind: str) -> None:
    """The container that it starts has called the function; a second server would find its port taken."""
    spec = FunctionSpec(app="shop", name="web", web=WebSpec(kind=kind))
    _, called, _ = web_pool(spec, lambda: 1 / 0, None, {}, lambda *load: None)
    assert called() is None


def test_a_run_of_a_schedule_holds_up_no_request() -> None:
    spec = FunctionSpec(app="shop", name="web", web=WebSpec(kind="endpoint"))
    _, called, options = web_pool(spec, lambda: "ran", None, {}, lambda *load: None)
    assert called() == "ran" and options["in_thread"]("") is True
