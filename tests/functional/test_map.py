"""``map`` and its relatives: what they take, what they yield, how they end."""

from __future__ import annotations

import asyncio
import errno
import pickle
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from conftest import Live, until

import modal_nomad as modal
from modal_nomad import exception
from modal_nomad.functions import UserCodeException


@pytest.fixture(scope="module")
def app(_shared_home: Any) -> Iterator[modal.App]:
    app = modal.App("map-family")

    @app.function(serialized=True, name="add")
    def add(x: Any, y: Any = 0, *, times: int = 1) -> Any:
        return (x + y) * times

    @app.function(serialized=True, name="even")
    def even(x: int) -> int | None:
        return x if x % 2 == 0 else None

    @app.function(serialized=True, name="fail")
    def fail(kind: str) -> str:
        if kind == "exit":
            sys.exit(7)
        if kind == "os":
            raise OSError(errno.ENOENT, "gone", "/nowhere")
        if kind == "unicode":
            b"\xff".decode()
        if kind == "odd":

            class Odd(Exception):
                def __init__(self, one: int, two: int) -> None:
                    super().__init__(f"odd {one}{two}")
                    self.two = two

                def __reduce__(self) -> Any:
                    return type(self), (1, self.two)

            raise Odd(1, 2)
        if kind == "plain":
            raise Exception("ohno")
        return kind

    @app.function(serialized=True, name="count")
    def count(n: int) -> Iterator[int]:
        yield from range(n)

    @app.function(serialized=True, name="slowest_first")
    def slowest_first(x: int, path: str) -> int:
        import os
        import time

        while x == 0 and not os.path.exists(path):
            time.sleep(0.005)
        return x

    with app.run():
        yield app


def test_order_outputs_false_yields_what_is_done_first(app: modal.App, live: Live) -> None:
    gate = live.folder / "gate"
    results = app["slowest_first"].map(
        [0, 1, 2], kwargs={"path": str(gate)}, order_outputs=False, return_exceptions=False
    )
    first = next(results)
    assert first in (1, 2)
    gate.touch()
    assert sorted([first, *results]) == [0, 1, 2]


def test_results_that_are_none_are_kept_and_kwargs_go_to_every_call(app: modal.App) -> None:
    assert list(app["even"].map(range(4))) == [0, None, 2, None]
    assert list(app["add"].map([1, 2], [3, 4, 5], kwargs={"times": 2})) == [8, 12]
    assert list(app["add"].starmap([[1, 2], (3, 4)], kwargs={"times": 3})) == [9, 21]
    assert list(app["add"].starmap([])) == []


def test_returned_exceptions_are_what_they_wrap(app: modal.App) -> None:
    kinds = ["fine", "plain", "os", "unicode", "odd", "exit"]
    fine, plain, os_error, unicode, odd, left = app["fail"].map(kinds, return_exceptions=True)
    assert fine == "fine"
    # As the reference prints it.
    assert repr(plain) == "UserCodeException(Exception('ohno'))" and str(plain) == "ohno"
    for wrapped, kind in ((os_error, FileNotFoundError), (unicode, UnicodeDecodeError), (left, SystemExit)):
        assert isinstance(wrapped, UserCodeException) and isinstance(wrapped, kind)
        assert type(wrapped.exc) is kind and str(wrapped) == str(wrapped.exc)
    assert (os_error.errno, os_error.filename) == (errno.ENOENT, "/nowhere")
    assert (unicode.start, unicode.reason) == (0, "invalid start byte")
    assert left.code == 7
    assert odd.two == 2 and type(odd.exc).__name__ == "Odd" and odd.__traceback__ is not None
    again = pickle.loads(pickle.dumps(os_error))
    assert isinstance(again, UserCodeException) and isinstance(again, FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        raise os_error


def test_returned_exceptions_bare(app: modal.App) -> None:
    (bare,) = app["fail"].map(["os"], return_exceptions=True, wrap_returned_exceptions=False)
    assert type(bare) is FileNotFoundError


def test_for_each_raises_or_goes_on(app: modal.App) -> None:
    with pytest.raises(SystemExit):
        app["fail"].for_each(["exit"])
    app["fail"].for_each(["plain", "exit", "os"], ignore_exceptions=True)


def test_an_unconsumed_map_is_warned_of(app: modal.App, capsys: pytest.CaptureFixture[str]) -> None:
    app["add"].map([1])
    assert "for-loop" in capsys.readouterr().err
    app["add"].starmap([(1,)])
    assert ".starmap()" in capsys.readouterr().err
    for _ in app["add"].map([1]):
        pass
    app["add"].map([1]).close()
    assert capsys.readouterr().err == ""


async def test_map_is_not_iterated_synchronously_in_async_code(app: modal.App) -> None:
    with pytest.raises(exception.InvalidError, match=r"\.map\.aio"):
        list(app["add"].map([1]))
    assert [x async for x in app["add"].map([1, 2])] == [1, 2]
    assert [x async for x in app["add"].map.aio([1, 2])] == [1, 2]


async def test_async_iterables_of_all_kinds(app: modal.App) -> None:
    async def numbers() -> AsyncIterator[int]:
        for x in range(5):
            await asyncio.sleep(0)
            yield x

    async def pairs() -> AsyncIterator[tuple[int, int]]:
        async for x in numbers():
            yield x, 10

    add = app["add"]
    assert [x async for x in add.map.aio(numbers(), [1, 2, 3])] == [1, 3, 5]
    assert [x async for x in add.starmap.aio(pairs())] == [10, 11, 12, 13, 14]
    await add.for_each.aio(numbers())
    call = await add.experimental_spawn_map.aio(numbers())
    assert [x async for x in call.iter.aio()] == [0, 1, 2, 3, 4]


def test_async_iterables_in_blocking_code(app: modal.App) -> None:
    async def numbers() -> AsyncIterator[int]:
        for x in range(5):
            await asyncio.sleep(0)
            yield x

    assert list(app["add"].map(numbers())) == [0, 1, 2, 3, 4]
    assert list(app["add"].experimental_spawn_map(numbers()).iter()) == [0, 1, 2, 3, 4]


def test_an_async_iterator_that_raises_ends_the_map_with_its_exception(app: modal.App) -> None:
    async def inputs() -> AsyncIterator[int]:
        yield 1
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(app["add"].map(inputs()))
    with pytest.raises(LookupError, match="no more"):
        app["add"].spawn_map(inputs())


def test_wrong_inputs_are_named(app: modal.App) -> None:
    with pytest.raises(exception.InvalidError, match="at least one iterable"):
        list(app["add"].map())
    with pytest.raises(exception.InvalidError, match="got a int"):
        list(app["add"].map(3))
    for verb in ("map", "for_each", "starmap", "spawn_map", "experimental_spawn_map"):
        with pytest.raises(exception.InvalidError, match="A generator function cannot be called with"):
            result = getattr(app["count"], verb)([3])
            next(iter(result))


def test_spawn_map_returns_when_all_is_accepted(live: Live) -> None:
    app = modal.App("spawn-map")
    marks = live.folder

    @app.function(serialized=True, name="mark")
    def mark(x: int, folder: str) -> None:
        open(f"{folder}/{x}", "w").close()

    with app.run():
        assert app["mark"].spawn_map(range(40), kwargs={"folder": str(marks)}) is None
        until(lambda: len(list(marks.iterdir())) == 40, what="the spawned inputs")
