"""Handles on spawned calls: of one input and of many, here and in another process."""

from __future__ import annotations

import builtins
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Live, alive, until

import modal_nomad as modal
from modal_nomad import exception


@pytest.fixture(scope="module")
def app(_shared_home: Any) -> Iterator[modal.App]:
    app = modal.App("function-calls")

    @app.function(serialized=True, name="square")
    def square(x: int) -> int:
        if x < 0:
            raise ValueError(f"{x} is negative")
        return x * x

    @app.function(serialized=True, name="wait")
    def wait(path: str) -> str:
        import os
        import time

        while not os.path.exists(path):
            time.sleep(0.005)
        return path

    with app.run():
        yield app


def test_a_call_of_many_inputs(app: modal.App) -> None:
    call = app["square"].experimental_spawn_map(range(3000))
    assert call.num_inputs() == 3000
    assert call.get(index=7) == 49
    assert list(call.iter()) == [x * x for x in range(3000)]
    # Again, and only some of them.
    assert list(call.iter(10, 13)) == [100, 121, 144]
    assert list(call.iter(start=2998)) == [2998**2, 2999**2]
    assert list(call.iter(5, 5)) == []
    with pytest.raises(exception.InvalidError, match="start"):
        list(call.iter(5, 4))


def test_a_call_without_inputs(app: modal.App) -> None:
    call = app["square"].experimental_spawn_map([])
    assert call.num_inputs() == 0 and list(call.iter()) == []


def test_iter_raises_when_a_failed_inputs_turn_comes(app: modal.App) -> None:
    call = app["square"].experimental_spawn_map([1, -2, 3])
    results = call.iter()
    assert next(results) == 1
    with pytest.raises(ValueError, match="-2 is negative"):
        next(results)
    assert call.get(index=2) == 9


def test_iter_gives_results_as_they_come(app: modal.App, live: Live) -> None:
    first, second = live.folder / "first", live.folder / "second"
    call = app["wait"].experimental_spawn_map([str(first), str(second)])
    results = call.iter()
    first.touch()
    assert next(results) == str(first)
    second.touch()
    assert next(results) == str(second)


def test_get_times_out_with_the_builtin_error(app: modal.App, live: Live) -> None:
    gate = live.folder / "gate"
    call = app["wait"].spawn(str(gate))
    for timeout in (0, 0.05):
        with pytest.raises(builtins.TimeoutError, match="no result yet"):
            call.get(timeout)
    gate.touch()
    assert call.get(timeout=100) == str(gate) and call.get(timeout=0) == str(gate)
    assert call.num_inputs() == 1


def test_gather_raises_the_first_failure_without_waiting_for_the_rest(app: modal.App, live: Live) -> None:
    never = live.folder / "never"
    blocked = app["wait"].spawn(str(never))
    with pytest.raises(ValueError, match="-3 is negative"):
        modal.FunctionCall.gather(blocked, app["square"].spawn(-3))
    never.touch()
    good = [app["square"].spawn(x) for x in (3, 1, 2)]
    assert modal.FunctionCall.gather(*good) == modal.gather(*good) == [9, 1, 4]
    assert modal.gather() == []


async def test_async_twins(app: modal.App) -> None:
    call = await app["square"].experimental_spawn_map.aio(range(5))
    assert await call.num_inputs.aio() == 5
    assert [x async for x in call.iter.aio(1)] == [1, 4, 9, 16]
    assert await modal.FunctionCall.gather.aio(await app["square"].spawn.aio(4)) == [16]


def test_another_process_finds_the_call_by_its_id(app: modal.App, live: Live) -> None:
    call = app["square"].experimental_spawn_map(range(10))
    script = live.write(
        "reader.py",
        """
        import sys
        import modal_nomad as modal

        call = modal.FunctionCall.from_id(sys.argv[1])
        assert call.hydrate() is call
        print(call.num_inputs(), call.get(index=3), sum(call.iter()))
        """,
    )
    assert live.python(script, call.object_id).split() == ["10", "9", "285"]
    again = pickle.loads(pickle.dumps(call))
    assert again.object_id == call.object_id and again.get(index=2) == 4


def test_hydrate_of_an_unknown_call(live: Live) -> None:
    with pytest.raises(exception.NotFoundError, match="fc-unknown"):
        modal.FunctionCall.from_id("fc-unknown").hydrate()
    with pytest.raises(exception.InvalidError, match="no constructor"):
        modal.FunctionCall()


def test_a_spawn_map_cut_short_says_what_it_has(app: modal.App, live: Live) -> None:
    def inputs() -> Iterator[int]:
        yield from range(600)
        calls.append(app["square"].spawn(1))
        raise LookupError("cut short")

    calls: list[Any] = []
    with pytest.raises(LookupError, match="cut short"):
        app["square"].spawn_map(inputs())
    # What was handed over by then runs; the call is only never known to be complete.
    until(lambda: live.status()["backlog"] == 0, what="the end of the backlog")


def test_cancel(app: modal.App, live: Live) -> None:
    call = app["wait"].experimental_spawn_map([str(live.folder / "a"), str(live.folder / "b")])
    call.cancel()
    for index in (0, 1):
        with pytest.raises(exception.RemoteError, match="cancelled"):
            call.get(timeout=100, index=index)


@pytest.mark.filterwarnings("ignore:.*allow_concurrent_inputs.*:modal_nomad.exception.DeprecationError")
def test_cancel_with_terminate_containers_runs_the_others_again(live: Live) -> None:
    app = modal.App("terminated")

    @app.function(serialized=True, name="hold", max_containers=1, allow_concurrent_inputs=2)
    def hold(folder: str, name: str) -> tuple[str, int]:
        import os
        import time
        from pathlib import Path

        Path(folder, f"{name}-{os.getpid()}").touch()
        while not Path(folder, "go").exists():
            time.sleep(0.005)
        return name, os.getpid()

    def pids(name: str) -> list[int]:
        return [int(x.name.rpartition("-")[2]) for x in live.folder.glob(f"{name}-*")]

    with app.run():
        victim = app["hold"].spawn(str(live.folder), "victim")
        other = app["hold"].spawn(str(live.folder), "other")
        until(lambda: pids("victim") and pids("other"), what="both inputs")
        (first,) = pids("other")
        assert pids("victim") == [first]
        victim.cancel(terminate_containers=True)
        with pytest.raises(exception.RemoteError, match="cancelled"):
            victim.get(timeout=100)
        until(lambda: not alive(first), what="the container's end")
        until(lambda: len(pids("other")) == 2, what="the other input's second run")
        (live.folder / "go").touch()
        name, pid = other.get(timeout=100)
        assert name == "other" and pid != first and len(pids("victim")) == 1


def test_results_are_kept_for_the_time_that_the_dispatcher_is_told(
    own: Live, serve: Callable[..., Any]
) -> None:
    # No time at all.
    first = serve(result_days=1e-9)
    app = modal.App("expires")

    @app.function(serialized=True)
    def same(x: int) -> int:
        return x

    app.deploy()
    call = same.spawn(3)
    with pytest.raises(exception.OutputExpiredError, match="no longer kept: spawn it again"):
        call.get(timeout=100)
    first.terminate()
    first.wait()
    serve(result_days=1e-9)
    # What is kept is looked through at each start, and every ten minutes.
    with pytest.raises(exception.OutputExpiredError, match="no longer kept: spawn it again"):
        modal.FunctionCall.from_id(call.object_id).get(timeout=100)
