"""A caller that waits reads the socket itself: nothing may be lost when callers, the loop and faults mix."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import modal_nomad as modal


@pytest.fixture(scope="module")
def functions(_shared_home: Any) -> Any:
    app = modal.App("direct-reading")

    @app.function(serialized=True, max_containers=2)
    def same(x: Any) -> Any:
        return x

    @app.function(serialized=True, max_containers=1)
    def fail(x: Any) -> Any:
        print("said", x)
        raise KeyError(x)

    with app.run():
        yield same, fail


def connection_of(function: Any) -> Any:
    return function._client._connection


def test_callers_read_by_themselves_in_a_row_of_calls(functions: Any) -> None:
    same, _ = functions
    for number in range(50):
        assert same.remote(number) == number
    seen = False
    for number in range(200):
        assert same.remote(number) == number
        seen = seen or connection_of(same).direct.callers
    assert seen


def test_calls_of_many_threads_all_end(functions: Any) -> None:
    same, _ = functions
    with ThreadPoolExecutor(8) as threads:
        for _ in range(5):
            assert list(threads.map(same.remote, range(100))) == list(range(100))
            assert same.remote("between") == "between"


async def test_blocking_calls_and_async_ones_mix(functions: Any) -> None:
    same, _ = functions

    def many() -> None:
        for number in range(200):
            assert same.remote(number) == number

    thread = threading.Thread(target=many)
    thread.start()
    for number in range(50):
        got = await asyncio.gather(*(same.remote.aio(number + k) for k in range(4)))
        assert got == [number + k for k in range(4)]
    await asyncio.to_thread(thread.join)


def test_maps_and_requests_get_the_socket_back(functions: Any) -> None:
    same, _ = functions
    for number in range(20):
        assert same.remote(number) == number
        assert list(same.map(range(5))) == list(range(5))
        assert same.remote(number) == number
        same._client.hello()
        assert same.spawn(number).get(timeout=100) == number


def test_errors_and_large_values_arrive(functions: Any) -> None:
    same, fail = functions
    for number in range(10):
        assert same.remote(number) == number
        with pytest.raises(KeyError):
            fail.remote(number)
    large = b"x" * 1_500_000
    for _ in range(5):
        assert same.remote(large) == large


def test_a_broken_socket_is_mended_under_a_waiting_caller(functions: Any) -> None:
    same, _ = functions
    connection = connection_of(same)
    for round_ in range(5):
        for number in range(20):
            assert same.remote(number) == number
        connection.loop.call_soon_threadsafe(connection._protocol.transport.abort)
        for number in range(20):
            assert same.remote(number) == number, round_
