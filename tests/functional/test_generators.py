"""Generators that run remotely: streamed, held back, left early, killed, kept."""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from conftest import Live, until

import modal_nomad as modal
from modal_nomad import exception
from modal_nomad.wire.window import WINDOW_ITEMS


@pytest.fixture(scope="module")
def app(_shared_home: Any) -> Iterator[modal.App]:
    app = modal.App("generators")

    @app.function(serialized=True, name="count")
    def count(n: int, fail_at: int = -1) -> Iterator[int]:
        for x in range(n):
            if x == fail_at:
                raise ValueError(f"no {x}")
            yield x

    @app.function(serialized=True, name="count_async")
    async def count_async(n: int, fail_at: int = -1) -> AsyncIterator[int]:
        import asyncio

        for x in range(n):
            if x == fail_at:
                raise ValueError(f"no {x}")
            await asyncio.sleep(0)
            yield x

    @app.function(serialized=True, name="noted")
    def noted(folder: str, n: int = 100_000) -> Iterator[int]:
        """Notes how far it is, and how it ends."""
        from pathlib import Path

        try:
            for x in range(n):
                Path(folder, "at").write_text(str(x))
                yield x
        except BaseException as error:
            Path(folder, "ended").write_text(type(error).__name__)
            raise

    @app.function(serialized=True, name="noted_async")
    async def noted_async(folder: str, n: int = 100_000) -> AsyncIterator[int]:
        from pathlib import Path

        at, ended = Path(folder, "at").write_text, Path(folder, "ended").write_text
        try:
            for x in range(n):
                at(str(x))
                yield x
        except BaseException as error:
            ended(type(error).__name__)
            raise

    @app.function(serialized=True, name="large")
    def large(sizes: list[int]) -> Iterator[bytes]:
        for size in sizes:
            yield b"x" * size

    @app.function(serialized=True, name="returned", is_generator=True)
    def returned(n: int) -> Any:
        return (x * x for x in range(n)) if n else 5

    @app.function(serialized=True, name="returned_async", is_generator=True)
    async def returned_async(n: int) -> Any:
        async def items() -> AsyncIterator[int]:
            for x in range(n):
                yield x

        return items()

    @app.function(serialized=True, name="plain")
    def plain(x: int) -> int:
        return x

    with app.run():
        yield app


KINDS = pytest.mark.parametrize("name", ["count", "count_async"])
NOTED = pytest.mark.parametrize("name", ["noted", "noted_async"])


@KINDS
def test_items_come_in_order(app: modal.App, name: str) -> None:
    assert list(app[name].remote_gen(2000)) == list(range(2000))
    assert list(app[name].remote_gen(0)) == []
    results = app[name].remote_gen(2)
    assert iter(results) is results and next(results) == 0 and next(results) == 1
    with pytest.raises(StopIteration):
        next(results)


@KINDS
def test_an_exception_comes_after_what_was_yielded_before(app: modal.App, name: str) -> None:
    seen = []
    with pytest.raises(ValueError, match="no 700") as caught:
        for x in app[name].remote_gen(1000, fail_at=700):
            seen.append(x)
    assert seen == list(range(700))
    assert "in count" in "".join(traceback.format_exception(caught.value))


def test_items_come_while_it_runs(app: modal.App, live: Live) -> None:
    gated = modal.App("gated")

    @gated.function(serialized=True, name="gated")
    def step(folder: str) -> Iterator[int]:
        import os
        import time

        for x in range(4):
            while not os.path.exists(f"{folder}/{x}"):
                time.sleep(0.002)
            yield x
            yield -x

    with gated.run():
        results = gated["gated"].remote_gen(str(live.folder))
        for x in range(4):
            # The next item exists only once the one before was taken.
            (live.folder / str(x)).touch()
            assert (next(results), next(results)) == (x, -x)
        assert list(results) == []


@NOTED
def test_a_slow_reader_holds_the_generator_back(app: modal.App, live: Live, name: str) -> None:
    results = app[name].remote_gen(str(live.folder))
    assert next(results) == 0
    at = live.folder / "at"
    until(lambda: at.read_text() == str(WINDOW_ITEMS - 1), what="the edge of the window")
    seen = [next(results) for _ in range(1000)]
    assert seen == list(range(1, 1001))
    # Progress is told every quarter of a window.
    edge = 1001 - 1001 % (WINDOW_ITEMS // 4) + WINDOW_ITEMS - 1
    until(lambda: at.read_text() == str(edge), what="the edge of the window")
    # Left early, it is closed where it waits, and its slot is free.
    results.close()
    ended = live.folder / "ended"
    until(ended.exists, what="the generator's end")
    until(lambda: ended.read_text() == "GeneratorExit", what="GeneratorExit")
    assert next(app[name].remote_gen(str(live.folder), 1)) == 0


@NOTED
def test_a_generator_dropped_without_a_word_is_closed(app: modal.App, live: Live, name: str) -> None:
    for x in app[name].remote_gen(str(live.folder)):
        if x == 3:
            break
    until((live.folder / "ended").exists, what="the generator's end")
    until(lambda: live.status()["calls"] == 0, what="the end of the call")


async def test_async_twins(app: modal.App, live: Live) -> None:
    assert [x async for x in app["count"].remote_gen.aio(300)] == list(range(300))
    results = app["noted_async"].remote_gen.aio(str(live.folder))
    async for x in results:
        if x == 5:
            break
    await results.aclose()
    with pytest.warns(exception.DeprecationError, match="remote_gen"):
        call = await app["count_async"].spawn.aio(10)
    assert [x async for x in call.get_gen.aio()] == list(range(10))


def test_large_items_go_by_way_of_blobs(app: modal.App) -> None:
    sizes = [10, 3 << 20, 0, 9 << 20, 5 << 20, 100]
    assert [len(x) for x in app["large"].remote_gen(sizes)] == sizes
    # More than the window in bytes, with items that are each below a blob's size.
    assert [len(x) for x in app["large"].remote_gen([1 << 20] * 12)] == [1 << 20] * 12


def test_functions_that_return_generators(app: modal.App) -> None:
    assert list(app["returned"].remote_gen(5)) == [0, 1, 4, 9, 16]
    assert list(app["returned_async"].remote_gen(3)) == [0, 1, 2]
    assert list(app["returned"].local(3)) == [0, 1, 4]
    with pytest.raises(exception.InvalidError, match="declared a generator and returned a int"):
        list(app["returned"].remote_gen(0))


def test_local_gives_the_generator_itself(app: modal.App) -> None:
    assert list(app["count"].local(3)) == [0, 1, 2]


def test_wrong_uses_are_named(app: modal.App) -> None:
    with pytest.raises(exception.InvalidError, match="remote_gen"):
        app["count"].remote(3)
    with pytest.raises(exception.InvalidError, match=r"non-generator.*remote_gen.*\.remote\("):
        next(app["plain"].remote_gen(3))
    with pytest.raises(exception.InvalidError, match=r"Cannot iterate.*Use get\(\)"):
        next(app["plain"].spawn(1).get_gen())
    with pytest.warns(exception.DeprecationError):
        call = app["count"].spawn(3)
    with pytest.raises(exception.InvalidError, match=r"Use get_gen"):
        call.get()
    with pytest.raises(exception.InvalidError, match=r"Use get_gen"):
        # The server knows what the id alone does not say.
        modal.FunctionCall.from_id(call.object_id).get()
    with pytest.raises(exception.InvalidError, match=r"Use get_gen"):
        modal.gather(call)


@KINDS
@pytest.mark.filterwarnings("ignore:.*spawn.*:modal_nomad.exception.DeprecationError")
def test_a_spawned_generator_is_read_again_and_elsewhere(app: modal.App, live: Live, name: str) -> None:
    call = app[name].spawn(1500)
    assert list(call.get_gen()) == list(range(1500))
    assert list(call.get_gen()) == list(range(1500))
    script = live.write(
        "reader.py",
        """
        import sys
        import modal_nomad as modal

        call = modal.FunctionCall.from_id(sys.argv[1], is_generator=True)
        print(sum(call.get_gen()))
        """,
    )
    assert int(live.python(script, call.object_id)) == sum(range(1500))
    failing = app[name].spawn(10, fail_at=4)
    seen = []
    with pytest.raises(ValueError, match="no 4"):
        for x in failing.get_gen():
            seen.append(x)
    assert seen == [0, 1, 2, 3]


@pytest.mark.filterwarnings("ignore:.*spawn.*:modal_nomad.exception.DeprecationError")
def test_a_spawned_generator_goes_on_without_a_reader(app: modal.App, live: Live) -> None:
    call = app["noted"].spawn(str(live.folder), 2000)
    at = live.folder / "at"
    until(lambda: at.exists() and at.read_text() == "1999", what="the generator's end")
    assert sum(1 for _ in call.get_gen()) == 2000
    assert [len(x) for x in app["large"].spawn([3 << 20, 5]).get_gen()] == [3 << 20, 5]


@NOTED
@pytest.mark.filterwarnings("ignore:.*spawn.*:modal_nomad.exception.DeprecationError")
def test_cancel_in_mid_stream(app: modal.App, live: Live, name: str) -> None:
    call = app[name].spawn(str(live.folder), 10_000_000)
    results = call.get_gen()
    assert next(results) == 0
    call.cancel()
    with pytest.raises(exception.RemoteError, match="cancelled"):
        for _ in results:
            pass
    until((live.folder / "ended").exists, what="the generator's end")


def test_generators_run_side_by_side(app: modal.App) -> None:
    readers = [app["count"].remote_gen(600) for _ in range(3)]
    columns = list(zip(*readers, strict=True))
    assert columns == [(x, x, x) for x in range(600)]


def test_a_generator_that_runs_too_long(live: Live) -> None:
    app = modal.App("endless")

    # The first two are to be on their way before it is over.
    @app.function(serialized=True, name="endless", timeout=6)
    def endless() -> Iterator[int]:
        import time

        yield 1
        yield 2
        time.sleep(600)

    with app.run():
        seen = []
        with pytest.raises(exception.FunctionTimeoutError):
            for x in app["endless"].remote_gen():
                seen.append(x)
        assert seen == [1, 2]


def test_a_container_reads_the_generator_of_another(live: Live) -> None:
    script = live.write(
        "pipeline.py",
        """
        import modal

        app = modal.App("pipeline")

        @app.function()
        def numbers(n):
            yield from range(n)

        @app.function()
        async def doubled(n):
            async for x in numbers.remote_gen.aio(n):
                yield 2 * x

        @app.local_entrypoint()
        def main():
            print("sum", sum(doubled.remote_gen(700)))
        """,
    )
    done = live.cli("run", str(script))
    assert done.returncode == 0 and f"sum {sum(range(0, 1400, 2))}" in done.stdout, done.stderr


@pytest.mark.parametrize("kind", ["threads", "tasks"])
@pytest.mark.filterwarnings("ignore:.*allow_concurrent_inputs.*:modal_nomad.exception.DeprecationError")
def test_several_generators_share_a_container(live: Live, kind: str) -> None:
    app = modal.App(f"shared-{kind}")
    options: Any = {"serialized": True, "name": "f", "max_containers": 1, "allow_concurrent_inputs": 4}

    if kind == "threads":

        @app.function(**options)
        def f(n: int) -> Iterator[Any]:
            import os

            for x in range(n):
                yield x, os.getpid()

    else:

        @app.function(**options)
        async def f(n: int) -> AsyncIterator[Any]:
            import os

            for x in range(n):
                yield x, os.getpid()

    with app.run():
        endless = [app["f"].remote_gen(10_000_000) for _ in range(3)]
        firsts = [next(results) for results in endless]
        assert {x for x, _ in firsts} == {0} and len({pid for _, pid in firsts}) == 1
        # Three wait at the edge of their windows, and the fourth slot serves others.
        assert [x for x, _ in app["f"].remote_gen(3000)] == list(range(3000))
        for results in endless:
            results.close()
        again = [app["f"].remote_gen(2000) for _ in range(4)]
        assert [[x for x, _ in row] for row in zip(*again, strict=True)] == [[x] * 4 for x in range(2000)]
