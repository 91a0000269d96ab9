"""What goes wrong in user code: a clear, named error at the caller and a healthy system afterwards."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Live, until

import modal_nomad as modal
from modal_nomad import exception


@pytest.fixture
def app(live: Live) -> Iterator[modal.App]:
    app = modal.App("failures")

    @app.function(serialized=True, name="fine")
    def fine(x: Any = 1) -> Any:
        return x

    yield app


def healthy(app: modal.App) -> None:
    assert list(app["fine"].map(range(3))) == [0, 1, 2]


def test_an_exception_arrives_as_itself(live: Live) -> None:
    script = live.write(
        "raises.py",
        """
        import traceback

        import modal_nomad as modal

        app = modal.App("raises")

        class Odd(Exception):
            def __init__(self, code):
                super().__init__(f"odd {code}")
                self.code = code
            def __reduce__(self):
                return Odd, (self.code,)

        def deeper():
            {}["key"]

        @app.function()
        def f():
            try:
                deeper()
            except KeyError as error:
                odd = Odd(7)
                if hasattr(odd, "add_note"):
                    odd.add_note("a note from afar")
                raise odd from error

        if __name__ == "__main__":
            with app.run():
                try:
                    f.remote()
                except Odd as error:
                    print("code", error.code, type(error.__cause__).__name__)
                    print(getattr(error, "__notes__", ["a note from afar"]))
                    print("".join(traceback.format_exception(type(error), error, error.__traceback__)))
        """,
    )
    out = live.python(script)
    assert "code 7 KeyError" in out and "a note from afar" in out
    # The remote frames, with the user's own lines.
    assert "in deeper" in out and '{}["key"]' in out and "raise odd from error" in out


def test_unpicklable_exception_is_told_in_words(app: modal.App) -> None:
    @app.function(serialized=True, name="bad")
    def bad() -> None:
        class Held(Exception):
            def __init__(self) -> None:
                super().__init__("the words of it")
                self.lock = threading.Lock()

        raise Held

    with app.run():
        with pytest.raises(exception.ExecutionError, match=r"Held: the words of it") as caught:
            app["bad"].remote()
        assert "in bad" in "".join(traceback.format_exception(caught.value))
        healthy(app)


def test_unpicklable_argument_and_result(app: modal.App) -> None:
    @app.function(serialized=True, name="lock")
    def lock() -> Any:
        return threading.Lock()

    with app.run():
        with pytest.raises(exception.SerializationError, match="lock"):
            app["fine"].remote(threading.Lock())
        with pytest.raises(exception.SerializationError, match="lock"):
            list(app["fine"].map([threading.Lock()]))
        with pytest.raises(exception.SerializationError, match="lock"):
            app["lock"].remote()
        healthy(app)


def test_unimportable_module_is_named(live: Live) -> None:
    script = live.write(
        "imports.py",
        """
        import modal

        app = modal.App("imports")
        if not modal.is_local():
            import no_such_module_here

        @app.function()
        def f():
            return 1

        @app.local_entrypoint()
        def main():
            f.remote()
        """,
    )
    done = live.cli("run", str(script))
    assert done.returncode == 1
    assert "no_such_module_here" in done.stderr


def test_a_large_value_goes_both_ways(app: modal.App) -> None:
    with app.run():
        value = os.urandom(1 << 20) * 100
        assert app["fine"].remote(value) == value


def test_a_flood_of_output_is_carried(app: modal.App) -> None:
    @app.function(serialized=True, name="flood")
    def flood(lines: int) -> int:
        for i in range(lines):
            print(f"line {i} " + "x" * 100)
        return lines

    with app.run():
        assert app["flood"].remote(50_000) == 50_000
        healthy(app)


@pytest.mark.parametrize("how", ["os._exit(7)", "ctypes.string_at(0)", "os.kill(os.getpid(), 9)"])
def test_a_dying_container_is_named_after_bounded_losses(live: Live, app: modal.App, how: str) -> None:
    tries = live.folder / "tries"

    @app.function(serialized=True, name="dies")
    def dies() -> None:
        import ctypes
        import os

        with tries.open("a") as file:
            file.write("x")
        eval(how, {"os": os, "ctypes": ctypes})

    word = {"os._exit(7)": "7", "ctypes.string_at(0)": "SIGSEGV|signal 11|11"}.get(
        how, "SIGKILL|signal 9|memory"
    )
    with app.run():
        with pytest.raises(exception.RemoteError, match=rf"lost \d+ times.*({word})"):
            app["dies"].remote()
        assert 2 <= len(tries.read_text()) <= 10
        healthy(app)


def test_beyond_the_memory_limit(app: modal.App) -> None:
    @app.function(serialized=True, name="eats", memory=(64, 256))
    def eats() -> int:
        return len(bytearray(1 << 30))

    with app.run():
        with pytest.raises((MemoryError, exception.RemoteError)):
            app["eats"].remote()
        healthy(app)


def test_timeout(app: modal.App) -> None:
    @app.function(serialized=True, name="slow", timeout=1)
    def slow() -> None:
        threading.Event().wait()

    @app.function(serialized=True, name="spins", timeout=1)
    async def spins() -> None:
        import asyncio

        await asyncio.Event().wait()

    with app.run():
        with pytest.raises(exception.FunctionTimeoutError, match="1"):
            app["slow"].remote()
        with pytest.raises(exception.FunctionTimeoutError):
            app["spins"].remote()
        healthy(app)


def test_an_input_whose_worker_is_killed_runs_again_elsewhere(live: Live, app: modal.App) -> None:
    started, gate = live.folder / "started", live.folder / "gate"
    os.mkfifo(gate)

    @app.function(serialized=True, name="held")
    def held() -> str:
        import os

        with started.open("a") as file:
            file.write(f"{os.getpid()}\n")
        if started.read_text().count("\n") == 1:
            with gate.open() as pipe:
                pipe.read()
        return os.environ["MODAL_TASK_ID"]

    with app.run():
        call = app["held"].spawn()
        until(lambda: started.exists() and started.read_text().endswith("\n"))
        os.kill(int(started.read_text()), signal.SIGKILL)
        assert call.get(timeout=100).startswith("ta-")
        assert started.read_text().count("\n") == 2


def test_cancel_ends_a_running_and_a_waiting_input(live: Live, app: modal.App) -> None:
    started = live.folder / "started"

    @app.function(serialized=True, name="waits", max_containers=1)
    def waits() -> None:
        started.touch()
        threading.Event().wait()

    with app.run():
        running = app["waits"].spawn()
        until(started.exists)
        waiting = app["waits"].spawn()
        for call in (waiting, running):
            call.cancel()
            with pytest.raises(exception.RemoteError, match="cancel"):
                call.get(timeout=100)
        healthy(app)
