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


def test_requests_are_answered_to_who_reads(functions: Any) -> None:
    same, _ = functions
    with modal.Dict.ephemeral() as d, modal.Queue.ephemeral() as q:
        seen = False
        for number in range(200):
            d["key"] = number
            assert d["key"] == number
            q.put(number)
            assert q.get() == number
            seen = seen or connection_of(same).direct.callers
        assert seen and same.remote("after") == "after"


def test_requests_of_many_threads_calls_and_broken_sockets_mix(functions: Any) -> None:
    same, _ = functions
    connection = connection_of(same)
    with modal.Queue.ephemeral() as q, ThreadPoolExecutor(6) as threads:

        def work(number: int) -> Any:
            if number % 20 == 0:
                connection.loop.call_soon_threadsafe(connection._protocol.transport.abort)
            if number % 3 == 0:
                return same.remote(number)
            q.put(number)
            return None

        done = list(threads.map(work, range(120)))
        assert [x for x in done if x is not None] == [*range(0, 120, 3)]
        put = [x for x in range(120) if x % 3]
        assert q.len() == len(put)
        got = [item for some in threads.map(lambda _: q.get_many(20), range(4)) for item in some]
        assert sorted(got) == put and q.len() == 0
        assert not connection._requests and not connection._calls


def test_a_get_that_waits_reads_for_other_threads(functions: Any) -> None:
    same, _ = functions
    with modal.Queue.ephemeral() as q, ThreadPoolExecutor(1) as threads:
        for number in range(10):
            for _ in range(10):
                q.len()
            waiting = threads.submit(q.get, timeout=100)
            assert same.remote(number) == number
            q.put(number)
            assert waiting.result(100) == number
