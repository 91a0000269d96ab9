"""Handles on Functions: of this program, of a deployed App, and from inside a container."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Live

import modal_nomad as modal
from modal_nomad import exception


@pytest.fixture
def library(live: Live) -> Iterator[modal.App]:
    app = modal.App("library")

    @app.function(serialized=True, name="double")
    def double(x: int) -> int:
        return 2 * x

    @app.function(serialized=True, name="later")
    async def later(x: int) -> int:
        return x

    @app.function(serialized=True, name="items")
    def items(n: int) -> Iterator[int]:
        yield from range(n)

    app.deploy()
    yield app
    live.request("app.stop", app_id=app.app_id)


def test_from_name_asks_nothing_until_it_is_used(library: modal.App) -> None:
    function = modal.Function.from_name("library", "double")
    assert not function.is_hydrated
    with pytest.raises(exception.ExecutionError, match="hydrated"):
        _ = function.object_id
    assert function.hydrate() is function and function.is_hydrated
    assert function.object_id == library["double"].object_id and function.remote(4) == 8
    # The older positional form.
    assert modal.Function.from_name("library", "double", None, None).remote(1) == 2
    again = pickle.loads(pickle.dumps(function))
    assert again.remote(5) == 10
    assert list(modal.Function.from_name("library", "items").remote_gen(3)) == [0, 1, 2]
    with pytest.raises(exception.InvalidError, match="generator function"):
        modal.Function.from_name("library", "items").remote(3)
    with pytest.raises(exception.InvalidError, match="generator function"):
        list(modal.Function.from_name("library", "items").map([3]))


def test_what_is_not_there_is_named(library: modal.App) -> None:
    with pytest.raises(exception.NotFoundError, match="triple"):
        modal.Function.from_name("library", "triple").hydrate()
    with pytest.raises(exception.NotFoundError, match="no-such-app"):
        modal.Function.from_name("no-such-app", "double").remote(1)


def test_lookup_is_deprecated_and_checks_at_once(library: modal.App) -> None:
    with pytest.warns(exception.DeprecationError, match="from_name") as caught:
        function = modal.Function.lookup("library", "double")
    assert caught[0].filename == __file__
    assert function.is_hydrated and function.remote(2) == 4
    with (
        pytest.warns(exception.DeprecationError),
        pytest.raises(exception.NotFoundError, match="triple"),
    ):
        modal.Function.lookup("library", "triple")


def test_local_and_the_raw_function(library: modal.App) -> None:
    double = library["double"]
    assert double.local(3) == 6 and double.get_raw_f()(4) == 8
    assert asyncio.run(library["later"].local(5)) == 5
    looked_up = modal.Function.from_name("library", "double")
    with pytest.raises(exception.ExecutionError, match=r"\.remote"):
        looked_up.local(1)
    with pytest.raises(exception.ExecutionError, match="looked up"):
        looked_up.get_raw_f()
    with pytest.raises(exception.InvalidError, match=r"\.remote"):
        double(3)
    with pytest.raises(exception.InvalidError, match="no constructor"):
        modal.Function()


def test_apps_call_each_other(library: modal.App, live: Live) -> None:
    app = modal.App("caller")
    part = modal.App("part")

    @part.function(serialized=True, name="included")
    def included(x: int) -> int:
        return x + 1

    @app.function(serialized=True, name="outer")
    def outer(x: int) -> list[Any]:
        from modal_nomad import Function

        double = Function.from_name("library", "double")
        items = Function.from_name("library", "items")
        call = double.spawn(x)
        return [double.remote(x), list(double.map(range(3))), list(items.remote_gen(2)), call.get()]

    app.include(part)
    with app.run():
        assert app["outer"].remote(7) == [14, [0, 2, 4], [0, 1], 14]
        assert app["included"].remote(1) == 2


def test_tag_is_the_old_name_of_name(library: modal.App) -> None:
    with pytest.warns(exception.DeprecationError, match="'tag' of Function.from_name") as caught:
        assert modal.Function.from_name("library", tag="double").remote(2) == 4
    assert caught[0].filename == __file__
    with (
        pytest.warns(exception.DeprecationError, match="is now called 'name'"),
        pytest.warns(exception.DeprecationError, match="Function.lookup is deprecated"),
    ):
        assert modal.Function.lookup("library", tag="double").is_hydrated
    with pytest.raises(exception.InvalidError, match="needs the name of a Function"):
        modal.Function.from_name("library")


def test_not_found_names_the_environment(library: modal.App) -> None:
    for find in (
        lambda: modal.Function.from_name("library", "double", environment_name="other").hydrate(),
        lambda: modal.App.lookup("library", environment_name="other"),
    ):
        with pytest.raises(exception.NotFoundError, match=r"(?s)library.*other|other.*library"):
            find()


def test_names_from_before_the_reference(library: modal.App) -> None:
    with pytest.warns(exception.DeprecationError, match=r"now called \.remote") as caught:
        assert library["double"].call(4) == 8
    assert caught[0].filename == __file__
    function = modal.Function.from_name("library", "double")
    with pytest.warns(exception.DeprecationError, match=r"Function\.resolve\(\) is now called \.hydrate"):
        assert function.resolve() is function
    call = function.spawn(1)
    with pytest.warns(exception.DeprecationError, match=r"FunctionCall\.resolve"):
        assert call.resolve() is call
    with pytest.warns(exception.DeprecationError, match=r"modal\.Stub is now called modal\.App"):
        assert modal.Stub is modal.App
