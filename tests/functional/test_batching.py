"""Batched and concurrent functions and methods in containers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Live

import modal_nomad as modal
from modal_nomad import exception

FOREVER = 600_000


@pytest.fixture(scope="module")
def app(_shared_home: Any) -> Iterator[modal.App]:
    app = modal.App("batching")

    @app.function(serialized=True, name="multiply")
    @modal.batched(max_batch_size=4, wait_ms=FOREVER)
    def multiply(xs: list[int], ys: list[int]) -> list[tuple[int, int]]:
        return [(x * y, len(xs)) for x, y in zip(xs, ys, strict=True)]

    @app.function(serialized=True, name="later")
    @modal.batched(max_batch_size=3, wait_ms=FOREVER)
    async def later(xs: list[int], *, plus: list[int]) -> list[int]:
        import asyncio

        await asyncio.sleep(0)
        return [x + p for x, p in zip(xs, plus, strict=True)]

    @app.function(serialized=True, name="picky")
    @modal.batched(max_batch_size=2, wait_ms=FOREVER)
    def picky(xs: list[str]) -> Any:
        if "raise" in xs:
            raise LookupError(f"one of {sorted(xs)}")
        if "short" in xs:
            return [1]
        if "tuple" in xs:
            return (1, 2)
        if "unpicklable" in xs:
            import threading

            return [threading.Lock() if x == "unpicklable" else x for x in xs]
        return xs

    @app.function(serialized=True, name="soon")
    @modal.batched(max_batch_size=100, wait_ms=1)
    def soon(xs: list[int]) -> list[int]:
        return xs

    @app.cls(serialized=True, max_containers=1)
    class Model:
        factor: int = modal.parameter(default=2)

        @modal.enter()
        def begin(self) -> None:
            self.calls = 0

        @modal.batched(max_batch_size=5, wait_ms=FOREVER)
        def scale(self, xs: list[int]) -> list[tuple[int, int, int]]:
            self.calls += 1
            return [(x * self.factor, len(xs), self.calls) for x in xs]

    with app.run():
        yield app


def test_arguments_come_as_lists(app: modal.App) -> None:
    assert list(app["multiply"].starmap([(x, 10) for x in range(8)])) == [(x * 10, 4) for x in range(8)]


def test_keywords_and_async_functions(app: modal.App) -> None:
    assert list(app["later"].map(range(6), kwargs={"plus": 100})) == [100, 101, 102, 103, 104, 105]


def test_a_batch_that_does_not_fill_up_goes_when_its_time_is_over(app: modal.App) -> None:
    assert app["soon"].remote(7) == 7
    assert list(app["soon"].map(range(250))) == list(range(250))


@pytest.mark.parametrize(
    ("inputs", "kind", "text"),
    [
        (["raise", "ok"], LookupError, r"one of \['ok', 'raise'\]"),
        (["short", "ok"], exception.ExecutionError, "returned 1 results for 2 inputs"),
        (["tuple", "ok"], exception.ExecutionError, "must return a list .* returned a tuple"),
    ],
)
def test_a_batch_that_fails_fails_for_each(app: modal.App, inputs: list[str], kind: Any, text: str) -> None:
    import re

    failed = list(app["picky"].map(inputs, return_exceptions=True, wrap_returned_exceptions=False))
    assert len(failed) == 2
    for error in failed:
        assert isinstance(error, kind) and re.search(text, str(error))
    assert list(app["picky"].map(["a", "b"])) == ["a", "b"]


def test_an_input_that_does_not_fit_fails_alone(app: modal.App) -> None:
    calls = [app["picky"].spawn("too", "many"), app["picky"].spawn("fine")]
    with pytest.raises(TypeError, match="too many positional arguments"):
        calls[0].get(timeout=100)
    assert calls[1].get(timeout=100) == "fine"
    failed, fine = app["picky"].map(
        ["unpicklable", "ok"], return_exceptions=True, wrap_returned_exceptions=False
    )
    assert isinstance(failed, exception.SerializationError) and fine == "ok"


def test_a_batched_method_with_parameters(app: modal.App) -> None:
    model = app.registered_classes["Model"](factor=3)
    assert list(model.scale.map(range(10))) == [(x * 3, 5, 1 + x // 5) for x in range(10)]


def test_a_cancelled_input_leaves_its_batch(app: modal.App) -> None:
    # The third waits for company; its end lets the others be two batches of their own.
    lonely = app["multiply"].spawn(1, 1)
    lonely.cancel()
    assert list(app["multiply"].starmap([(x, 1) for x in range(4)])) == [(x, 4) for x in range(4)]
    with pytest.raises(exception.RemoteError, match="cancelled"):
        lonely.get(timeout=100)


def test_sync_inputs_meet_in_threads_and_async_ones_on_a_loop(live: Live) -> None:
    app = modal.App("concurrent")

    @app.function(serialized=True, name="threads", max_containers=1)
    @modal.concurrent(max_inputs=3)
    def threads(x: int) -> tuple[int, bool]:
        import sys
        import threading

        place: Any = sys.modules.setdefault("meeting", threading.Barrier(3))  # type: ignore[arg-type]
        place.wait(60)
        return x, threading.current_thread() is threading.main_thread()

    @app.function(serialized=True, name="tasks", max_containers=1)
    @modal.concurrent(max_inputs=3, target_inputs=2)
    async def tasks(x: int) -> int:
        import asyncio
        import sys

        there: Any = sys.modules.setdefault("there", [])  # type: ignore[arg-type]
        there.append(x)
        while len(there) < 3:  # noqa: ASYNC110 - in a container, where no event is shared
            await asyncio.sleep(0)
        return x

    @app.cls(serialized=True, max_containers=1)
    @modal.concurrent(max_inputs=2)
    class Mixed:
        @modal.enter()
        def begin(self) -> None:
            import threading

            self.event = threading.Event()

        @modal.method()
        def wait(self) -> bool:
            return self.event.wait(60)

        @modal.method()
        async def tell(self) -> None:
            self.event.set()

    with app.run():
        assert list(threads.map(range(3))) == [(x, False) for x in range(3)]
        assert list(tasks.map(range(3))) == [0, 1, 2]
        mixed: Any = Mixed()
        waiting = mixed.wait.spawn()
        mixed.tell.remote()
        assert waiting.get(timeout=100) is True


def test_generator_methods(live: Live) -> None:
    app = modal.App("generator-methods")

    @app.cls(serialized=True)
    class Model:
        start: int = modal.parameter(default=0)

        @modal.method()
        def count(self, n: int) -> Any:
            yield from range(self.start, self.start + n)

        @modal.method(is_generator=True)
        def hidden(self, n: int) -> Any:
            return iter(range(n))

        @modal.method()
        async def acount(self, n: int) -> Any:
            for x in range(n):
                yield x

        @modal.method()
        def plain(self) -> int:
            return 5

    app.deploy()
    try:
        for model in (Model(start=3), modal.Cls.from_name("generator-methods", "Model")(start=3)):  # type: ignore[call-arg]
            assert list(model.count.remote_gen(4)) == [3, 4, 5, 6]
            assert list(model.hidden.remote_gen(2)) == [0, 1]
            assert list(model.acount.remote_gen(3)) == [0, 1, 2]
            assert model.plain.remote() == 5
            with pytest.raises(exception.InvalidError, match="generator function cannot be called with"):
                model.count.remote(1)
        with pytest.raises(exception.InvalidError, match="non-generator function"):
            list(Model().plain.remote_gen())  # type: ignore[attr-defined]
        assert list(Model(start=1).count.local(2)) == [1, 2]  # type: ignore[call-arg]
    finally:
        live.request("app.stop", app_id=app.app_id)
