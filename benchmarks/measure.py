"""Clocks and medians. Only the standard library: the peers' environment imports it too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

CONCURRENCY = 100
"""How many inputs of the async function one container runs at a time."""
WAIT_SECONDS = 0.01
"""How long each of them waits: more than ``CONCURRENCY / WAIT_SECONDS`` a second is not possible."""


def noop(_: Any) -> None:
    """The work of every benchmark."""


def noop_batch(values: list[Any]) -> list[None]:
    """The work of every benchmark, for a batch."""
    return [None] * len(values)


def warm_calls(call: Callable[[], Any], calls: int, rounds: int) -> dict[str, float]:
    """Give the p50 and the p99 of one blocking call in microseconds: medians over rounds."""
    for _ in range(min(100, calls)):
        call()
    halves, tails = [], []
    for _ in range(rounds):
        times = []
        for _ in range(calls):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        times.sort()
        halves.append(times[len(times) // 2] * 1e6)
        tails.append(times[int(len(times) * 0.99)] * 1e6)
    return {"p50_us": median(halves), "p99_us": median(tails)}


def map_rate(run: Callable[[int], Iterable[Any]], inputs: int, rounds: int) -> float:
    """Give inputs per second from the first input drawn to the last result: the median over rounds."""
    rates = []
    for _ in range(rounds):
        began = time.perf_counter()
        count = sum(1 for _ in run(inputs))
        assert count == inputs, f"{count} results of {inputs} inputs"
        rates.append(inputs / (time.perf_counter() - began))
    return median(rates)


def map_rates(run: Callable[[int], Iterable[Any]], sizes: Iterable[int], rounds: int) -> dict[str, float]:
    """Give the rate for each number of inputs; small ones are repeated more often."""
    list(run(100))
    result = {}
    for size in sizes:
        result[f"map_{size}"] = map_rate(run, size, rounds * (20 if size <= 100 else 1))
    return result
