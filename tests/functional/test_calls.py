"""The ways to call a Function, in process against a live dispatcher."""

from __future__ import annotations

import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from conftest import Live

import modal_nomad as modal
from modal_nomad import exception
from modal_nomad.functions import UserCodeException


@pytest.fixture(scope="module")
def app(_shared_home: Any) -> Iterator[modal.App]:
    app = modal.App("calls")

    @app.function(serialized=True, name="square")
    def square(x: int, plus: int = 0) -> int:
        if x < 0:
            raise ValueError(f"{x} is negative")
        return x * x + plus

    @app.function(serialized=True, name="later")
    async def later(x: int) -> int:
        import asyncio

        await asyncio.sleep(0)
        return x + 1

    with app.run():
        yield app


def test_remote_with_arguments_and_keywords(app: modal.App) -> None:
    assert app["square"].remote(3) == 9
    assert app["square"].remote(3, plus=1) == 10
    assert app["square"].local(4) == 16
    assert app["later"].remote(1) == 2


def test_remote_without_arguments_it_needs_raises_its_type_error(app: modal.App) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        app["square"].remote()


def test_map_is_ordered_and_complete(app: modal.App) -> None:
    assert list(app["square"].map(range(3000), kwargs={"plus": 1})) == [x * x + 1 for x in range(3000)]
    assert sorted(app["square"].map(range(300), order_outputs=False)) == [x * x for x in range(300)]
    assert list(app["square"].map([])) == []
    assert list(app["square"].map([1, 2, 3], [10, 20])) == [11, 24]


def test_starmap_and_for_each(app: modal.App) -> None:
    assert list(app["square"].starmap([(1, 2), (3, 4)])) == [3, 13]
    assert app["square"].for_each(range(10)) is None
    with pytest.raises(ValueError, match="-1 is negative"):
        app["square"].for_each([1, -1, 2])
    app["square"].for_each([1, -1, 2], ignore_exceptions=True)


def test_map_return_exceptions(app: modal.App) -> None:
    first, failed, last = app["square"].map([1, -2, 3], return_exceptions=True)
    assert (first, last) == (1, 9)
    assert isinstance(failed, UserCodeException)
    assert isinstance(failed.exc, ValueError) and str(failed.exc) == "-2 is negative"
    bare = list(app["square"].map([-2], return_exceptions=True, wrap_returned_exceptions=False))
    assert isinstance(bare[0], ValueError)


def test_map_raises_the_first_failure_and_is_usable_afterwards(app: modal.App) -> None:
    with pytest.raises(ValueError, match="-5 is negative"):
        list(app["square"].map([1, -5, 3]))
    assert app["square"].remote(2) == 4


def test_results_come_while_inputs_are_drawn(app: modal.App) -> None:
    seen = threading.Semaphore(0)

    def inputs() -> Iterator[int]:
        yield 0
        for x in range(1, 5):
            # The next input exists only once the result of the one before was taken.
            assert seen.acquire(timeout=100)
            yield x

    results = []
    for value in app["square"].map(inputs()):
        results.append(value)
        seen.release()
    assert results == [0, 1, 4, 9, 16]


def test_an_endless_iterator_is_drawn_as_results_are_taken(app: modal.App) -> None:
    drawn = itertools.count()
    results = app["square"].map(drawn)
    assert [next(results) for _ in range(2500)] == [x * x for x in range(2500)]
    results.close()
    assert next(drawn) < 20_000


def test_an_iterator_that_raises_ends_the_map_with_its_exception(app: modal.App) -> None:
    def inputs() -> Iterator[int]:
        yield 1
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(app["square"].map(inputs()))


async def test_async_twins(app: modal.App) -> None:
    async def inputs() -> AsyncIterator[int]:
        for x in range(20):
            yield x

    assert await app["square"].remote.aio(5) == 25
    assert [x async for x in app["square"].map.aio(inputs())] == [x * x for x in range(20)]
    assert [x async for x in app["later"].map.aio(range(20))] == list(range(1, 21))
    call = await app["square"].spawn.aio(6)
    assert await call.get.aio(timeout=100) == 36


def test_spawn_get_and_gather(app: modal.App) -> None:
    calls = [app["square"].spawn(x, plus=x) for x in range(8)]
    assert modal.gather(*calls) == [x * x + x for x in range(8)]
    again = modal.FunctionCall.from_id(calls[3].object_id)
    assert again.get() == 12 and again.get(timeout=0) == 12
    with pytest.raises(ValueError, match="-1 is negative"):
        modal.gather(calls[0], app["square"].spawn(-1))


def test_an_unknown_call_is_not_found(live: Live) -> None:
    with pytest.raises(exception.NotFoundError, match="fc-nothing"):
        modal.FunctionCall.from_id("fc-nothing").get(timeout=100)


def test_nested_calls_of_one_function_go_on_when_each_waits_for_another(live: Live) -> None:
    app = modal.App("nested")

    @app.function(serialized=True, name="depth", max_containers=2)
    def depth(n: int) -> int:
        from modal_nomad import Function

        return 0 if n == 0 else 1 + Function.from_name("nested", "depth").remote(n - 1)

    app.deploy()
    try:
        assert modal.Function.from_name("nested", "depth").remote(1) == 1
    finally:
        live.request("app.stop", app_id=app.app_id)


def test_a_function_calls_another_of_its_app(live: Live) -> None:
    script = live.write(
        "twice.py",
        """
        import modal

        app = modal.App("twice")

        @app.function()
        def inner(x):
            return x + 1

        @app.function()
        def outer(x):
            return sum(inner.map(range(x))) + inner.remote(0)

        @app.local_entrypoint()
        def main(x: int = 3):
            print("answer", outer.remote(x))
        """,
    )
    done = live.cli("run", str(script), "--x", "4")
    assert done.returncode == 0 and "answer 11" in done.stdout, done.stderr
