"""What is timed of a queue and a map of keys, whoever's they are."""

import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any, NamedTuple

TOGETHER = (16, 64)
"""So many threads of one program ask at the same time."""


class Store(NamedTuple):
    """A queue, another for answers, and a map: what one can do with them."""

    put: Callable[[Any], Any]
    get: Callable[[], Any]
    answer: Callable[[Any], Any]
    answered: Callable[[], Any]
    write: Callable[[Any, Any], Any]
    read: Callable[[Any], Any]


def measure(store: Store, waiter: list[str], count: int, wakes: int) -> dict[str, float]:
    """Give pairs a second and microseconds from the begin of a put to the end of a get that waited.

    Args:
        store: what is measured.
        waiter: runs ``wait`` in another process.
        count: pairs.
        wakes: wake-ups.
    """
    result = {}
    for name, pair in (
        ("queue_pairs", lambda i: (store.put(i), store.get())),
        ("dict_pairs", lambda i: (store.write("key", i), store.read("key"))),
    ):
        for i in range(20):
            pair(i)
        began = time.perf_counter()
        for i in range(count):
            pair(i)
        result[name] = count / (time.perf_counter() - began)
    for threads in TOGETHER:
        for name, pair in (
            ("queue_pairs", lambda i: (store.put(i), store.get())),
            ("dict_pairs", lambda i: (store.write(i % 64, i), store.read(i % 64))),
        ):
            result[f"{name}_{threads}"] = _together(pair, threads, count * 2)
    with subprocess.Popen([sys.executable, "-m", *waiter, str(wakes)]) as process:
        store.answered()
        times = []
        for _ in range(wakes):
            # The other side has to be waiting, whichever way it waits.
            time.sleep(0.02)
            began = time.perf_counter()
            store.put("wake")
            # One clock for all processes of a machine.
            times.append(store.answered() - began)
        process.wait(60)
    result["wake_us"] = median(times) * 1e6
    return result


def _together(pair: Callable[[int], Any], threads: int, count: int) -> float:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(pair, range(threads * 2)))
        began = time.perf_counter()
        list(pool.map(pair, range(count)))
        return count / (time.perf_counter() - began)


def wait(store: Store, wakes: int) -> None:
    """Answer each item with the moment at which it came."""
    store.answer(0.0)
    for _ in range(wakes):
        store.get()
        store.answer(time.perf_counter())


def pack(value: Any) -> bytes:
    """Serialize, as ours does by itself."""
    return pickle.dumps(value, 5)
