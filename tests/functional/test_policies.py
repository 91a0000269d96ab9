"""Retries, timeouts, cancellation and single-use containers, on a real dispatcher with real containers."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import Live, until

import modal_nomad as modal
from modal_nomad import exception


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def failing(app: modal.App, notes: Path, **options: Any) -> Any:
    """A function that notes each attempt and fails until the given one."""

    @app.function(serialized=True, name="failing", **options)
    def failing(succeed_at: int = 10**6) -> int:
        with notes.open("a") as file:
            file.write(f"{os.environ['MODAL_TASK_ID']}\n")
        attempts = len(notes.read_text().splitlines())
        if attempts < succeed_at:
            raise ValueError(f"attempt {attempts}")
        return attempts

    return app["failing"]


# ---- retries


def test_a_failure_is_tried_again_until_it_succeeds(live: Live) -> None:
    app, notes = modal.App("retried"), live.folder / "notes"
    fn = failing(app, notes, retries=modal.Retries(max_retries=3, initial_delay=0.0))
    with app.run():
        assert fn.remote(3) == 3
        assert len(lines(notes)) == 3


@pytest.mark.parametrize("retries", [modal.Retries(max_retries=2, initial_delay=0.0), 0, None])
def test_there_is_one_attempt_more_than_retries(live: Live, retries: Any) -> None:
    app, notes = modal.App("attempts"), live.folder / "notes"
    fn = failing(app, notes, retries=retries)
    attempts = 3 if retries else 1
    with app.run():
        with pytest.raises(ValueError, match=f"attempt {attempts}"):
            fn.remote()
        assert len(lines(notes)) == attempts


def test_spawned_and_mapped_inputs_are_retried_too(live: Live) -> None:
    app, folder = modal.App("each"), live.folder

    @app.function(serialized=True, name="once", retries=modal.Retries(max_retries=1, initial_delay=0.0))
    def once(x: int) -> int:
        mark = folder / str(x)
        if not mark.exists():
            mark.touch()
            raise ValueError(x)
        return x

    with app.run():
        once_again = app["once"]
        assert list(once_again.map(range(20))) == list(range(20))
        assert once_again.spawn(100).get(timeout=100) == 100


def test_a_timeout_is_retried(live: Live) -> None:
    app, notes = modal.App("late"), live.folder / "notes"

    @app.function(
        serialized=True, name="late", timeout=6, retries=modal.Retries(max_retries=1, initial_delay=0.0)
    )
    def late(name: str, slow_attempts: int) -> int:
        mine = notes.with_name(name)
        with mine.open("a") as file:
            file.write("x\n")
        if len(mine.read_text().splitlines()) <= slow_attempts:
            threading.Event().wait()
        return len(mine.read_text().splitlines())

    with app.run():
        once, always = app["late"].spawn("once", 1), app["late"].spawn("always", 100)
        assert once.get(timeout=100) == 2
        with pytest.raises(exception.FunctionTimeoutError, match="timeout of 6 s"):
            always.get(timeout=100)
        assert len(lines(notes.with_name("always"))) == 2


def test_a_lost_container_uses_up_no_retry(live: Live) -> None:
    app, notes = modal.App("lost"), live.folder / "notes"

    @app.function(serialized=True, name="lost", retries=modal.Retries(max_retries=1, initial_delay=0.0))
    def lost() -> int:
        with notes.open("a") as file:
            file.write("x\n")
        attempt = len(notes.read_text().splitlines())
        if attempt <= 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if attempt == 4:
            raise ValueError("once")
        return attempt

    with app.run():
        assert app["lost"].remote() == 5


def test_cancelling_while_a_retry_waits_ends_the_call(live: Live) -> None:
    app, notes = modal.App("waiting"), live.folder / "notes"
    fn = failing(app, notes, retries=modal.Retries(max_retries=5, initial_delay=60.0))
    with app.run():
        call = fn.spawn()
        until(lambda: lines(notes) and fn.get_current_stats().num_running_inputs == 0)
        assert fn.get_current_stats().backlog == 1
        call.cancel()
        with pytest.raises(exception.RemoteError, match="cancel"):
            call.get(timeout=100)
        assert fn.get_current_stats().backlog == 0
        assert len(lines(notes)) == 1


def test_a_cancelled_input_is_not_retried(live: Live) -> None:
    app, notes = modal.App("cancelled"), live.folder / "notes"

    @app.function(serialized=True, name="held", retries=modal.Retries(max_retries=5, initial_delay=0.0))
    def held() -> None:
        from modal_nomad.exception import InputCancellation

        with notes.open("a") as file:
            file.write("began\n")
        try:
            threading.Event().wait()
        except InputCancellation:
            with notes.open("a") as file:
                file.write("cleaned up\n")
            raise

    with app.run():
        call = app["held"].spawn()
        until(lambda: lines(notes))
        call.cancel()
        with pytest.raises(exception.RemoteError, match="cancel"):
            call.get(timeout=100)
        until(lambda: len(lines(notes)) == 2)
        until(lambda: app["held"].get_current_stats().num_running_inputs == 0)
        assert lines(notes) == ["began", "cleaned up"]


# ---- timeouts


def test_a_container_that_is_not_ready_in_time_fails_its_inputs(live: Live) -> None:
    script = live.write(
        "slow_start.py",
        """
        import modal_nomad as modal

        app = modal.App("slow-start")
        if not modal.is_local():
            import time
            time.sleep(600)

        @app.function(startup_timeout=1)
        def f():
            return 1

        if __name__ == "__main__":
            with app.run():
                try:
                    f.remote()
                except modal.exception.FunctionTimeoutError as error:
                    print(error)
        """,
    )
    assert "not ready within its startup_timeout of 1 s" in live.python(script)


# ---- container life


def test_single_use_containers_end_after_one_input(live: Live) -> None:
    app = modal.App("single")

    @app.function(serialized=True, name="once", single_use_containers=True, max_containers=3)
    def once(x: int) -> tuple[int, str]:
        return x, os.environ["MODAL_TASK_ID"]

    with app.run():
        found = list(app["once"].map(range(6)))
        assert [x for x, _ in found] == list(range(6))
        assert len({name for _, name in found}) == 6


def test_max_inputs_of_one_is_the_old_name_and_combines_with_retries(live: Live) -> None:
    app, notes = modal.App("single-retry"), live.folder / "notes"
    with pytest.warns(exception.DeprecationError, match="single_use_containers"):
        fn = failing(app, notes, max_inputs=1, retries=modal.Retries(max_retries=2, initial_delay=0.0))
    with app.run():
        assert fn.remote(3) == 3
        assert len(set(lines(notes))) == 3, "each attempt had a container of its own"


def test_a_preempted_input_runs_again_elsewhere(live: Live) -> None:
    app, notes = modal.App("preempted"), live.folder / "notes"

    @app.function(serialized=True, name="preempted", retries=modal.Retries(max_retries=0))
    def preempted() -> str:
        import time

        from modal_nomad.exception import simulate_preemption

        with notes.open("a") as file:
            file.write(f"{os.environ['MODAL_TASK_ID']}\n")
        if len(notes.read_text().splitlines()) == 1:
            simulate_preemption(0.1)
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                with notes.open("a") as file:
                    file.write("got preempted\n")
                raise
        return os.environ["MODAL_TASK_ID"]

    with app.run():
        name = app["preempted"].remote()
        first, caught, second = lines(notes)
        assert caught == "got preempted"
        assert first != second == name


def test_an_input_that_is_always_preempted_ends_after_bounded_losses(live: Live) -> None:
    app, notes = modal.App("hopeless"), live.folder / "notes"

    @app.function(serialized=True, name="hopeless")
    def hopeless() -> None:
        with notes.open("a") as file:
            file.write("x\n")
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait()

    with app.run():
        with pytest.raises(exception.RemoteError, match="lost 9 times"):
            app["hopeless"].remote()
        assert len(lines(notes)) == 9


def test_sigterm_to_a_busy_container_lets_its_input_finish(live: Live) -> None:
    app, notes, gate = modal.App("term"), live.folder / "notes", live.folder / "gate"

    @app.function(serialized=True, name="term", max_containers=1)
    def term(x: int) -> tuple[int, int]:
        import time

        with notes.open("a") as file:
            file.write(f"{os.getpid()}\n")
        while not gate.exists():
            time.sleep(0.01)
        return x, os.getpid()

    with app.run():
        first = app["term"].spawn(1)
        until(lambda: lines(notes))
        pid = int(lines(notes)[0])
        second = app["term"].spawn(2)
        os.kill(pid, signal.SIGTERM)
        gate.touch()
        assert first.get(timeout=100) == (1, pid)
        x, other = second.get(timeout=100)
        assert x == 2 and other != pid


def test_a_preempted_batch_and_generator_run_again(live: Live) -> None:
    app, notes = modal.App("preempted-more"), live.folder / "notes"

    def begin(name: str) -> bool:
        with notes.open("a") as file:
            file.write(f"{name}\n")
        first = notes.read_text().splitlines().count(name) == 1
        if first:
            os.kill(os.getpid(), signal.SIGINT)
        return first

    @app.function(serialized=True, name="batch")
    @modal.batched(max_batch_size=4, wait_ms=50)
    async def batch(xs: list[int]) -> list[int]:
        import asyncio

        if begin("batch"):
            await asyncio.sleep(60)
        return [x + 1 for x in xs]

    @app.function(serialized=True, name="generator")
    def generator() -> Any:
        yield 0
        if begin("generator"):
            threading.Event().wait(60)
        yield 1

    with app.run():
        assert list(app["batch"].map(range(4))) == [1, 2, 3, 4]
        assert list(app["generator"].remote_gen()) == [0, 1]
        assert sorted(lines(notes))[-2:] == ["generator", "generator"]
