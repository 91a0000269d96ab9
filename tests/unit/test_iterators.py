"""What an iterating method gives is for ``for`` and for ``async for``."""

from __future__ import annotations

from collections.abc import AsyncIterator

from modal_nomad._bridge import blocking_gen


class Counter:
    def __init__(self) -> None:
        self.closed = 0

    @blocking_gen
    async def count(self, upto: int) -> AsyncIterator[int]:
        try:
            for number in range(upto):
                yield number
        finally:
            self.closed += 1


def test_for_and_next() -> None:
    counter = Counter()
    numbers = counter.count(4)
    assert iter(numbers) is numbers and next(numbers) == 0
    assert list(numbers) == [1, 2, 3]
    assert counter.closed == 1


async def test_async_for_with_and_without_aio() -> None:
    counter = Counter()
    assert [number async for number in counter.count(2)] == [0, 1]
    assert [number async for number in counter.count.aio(2)] == [0, 1]
    numbers = counter.count(3)
    assert [await anext(numbers), await anext(numbers)] == [0, 1]
    await numbers.aclose()
    assert counter.closed == 3


def test_left_early() -> None:
    counter = Counter()
    numbers = counter.count(4)
    assert next(numbers) == 0
    numbers.close()
    assert counter.closed == 1
    unstarted = counter.count(4)
    del numbers, unstarted
    assert counter.closed == 1
