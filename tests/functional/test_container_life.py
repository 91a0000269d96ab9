"""How a container ends: real signals to a real worker, against a scripted dispatcher."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from modal_nomad import exception

sys.path.insert(0, str(Path(__file__).parent))
from _scripted_dispatcher import of_every_kind, worker

# A call into C that never comes back to Python, as a long computation in a library is. Another thread that
# finds this one on its last line knows that it is in C: nothing else there gives Python's lock away.
STUCK = """
import ctypes, sys, threading, time

def stuck():
    lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
    lock(mutex)
    threading.Thread(target=watch, args=(threading.get_ident(),), daemon=True).start()
    lock(mutex)

def watch(ident):
    last = stuck.__code__.co_firstlineno + 4
    while True:
        frame = sys._current_frames()[ident]
        if frame.f_code is stuck.__code__ and frame.f_lineno == last:
            print("in C")
            return
        time.sleep(0.001)
"""

KINDS = [(1, False), (2, False), (1, True), (2, True)]


def sleeper(is_async: bool, extra: str = "") -> str:
    """A function that says when it begins, what it is interrupted by, and that its clean-up ran."""
    code = f"""
        import atexit, asyncio, time
        atexit.register(lambda: print("exit hook"))
        {extra}
        def f():
            try:
                print("began")
                for _ in range(6000): time.sleep(0.01)
            except BaseException as error:
                print("caught", *(x.__name__ for x in type(error).__mro__))
                time.sleep(0.01)
                print("cleaned up")
                raise
    """
    if is_async:
        code = code.replace("def f", "async def f").replace("time.sleep", "await asyncio.sleep")
    return dedent(code)


@pytest.mark.parametrize(("slots", "is_async"), KINDS)
async def test_sigint_interrupts_user_code_and_gives_its_input_back(
    tmp_path: Path, slots: int, is_async: bool
) -> None:
    async with worker(tmp_path, sleeper(is_async), is_async=is_async, max_concurrent_inputs=slots) as w:
        await w.lease(1, ())
        await w.logged(b"began")
        w.process.send_signal(signal.SIGINT)
        header, _ = await w.next("back")
        assert (header["x"], header["b"]) == ([1], 1)
        await w.next("bye")
        assert await w.exit_code() == 0
        out = w.logs[1].decode()
        word = "CancelledError" if is_async else "KeyboardInterrupt"
        assert word in out and out.index("cleaned up") < out.index("exit hook")


@pytest.mark.parametrize(("slots", "is_async"), KINDS)
async def test_an_input_that_handles_its_preemption_is_answered(
    tmp_path: Path, slots: int, is_async: bool
) -> None:
    code = sleeper(is_async).replace("        raise\n", "        return 'saved'\n")
    async with worker(tmp_path, code, is_async=is_async, max_concurrent_inputs=slots) as w:
        await w.lease(1, ())
        await w.logged(b"began")
        w.process.send_signal(signal.SIGINT)
        assert await w.outputs(1) == {1: (0, "saved")}
        await w.next("bye")
        assert await w.exit_code() == 0


async def test_sigterm_interrupts_what_outlives_the_grace_period(tmp_path: Path) -> None:
    async def case(home: Path, slots: int, is_async: bool) -> None:
        spec = {"is_async": is_async, "max_concurrent_inputs": slots}
        async with worker(home, sleeper(is_async), environ={"MODAL_KILL_TIMEOUT": "10"}, **spec) as w:
            await w.lease(1, ())
            await w.logged(b"began")
            w.process.send_signal(signal.SIGTERM)
            header, _ = await w.next("back")
            assert (header["x"], header["b"]) == ([1], 1)
            await w.next("bye")
            assert await w.exit_code() == 0
            assert b"exit hook" in w.logs[1]
            assert "drain" in w.order and w.order.index("drain") < w.order.index("back")

    await of_every_kind(tmp_path, KINDS, case)


async def test_a_draining_worker_takes_no_inputs(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    code = f"""
        import os, time
        def f(x):
            print("began")
            while not os.path.exists({str(gate)!r}): time.sleep(0.005)
            return x
    """
    async with worker(tmp_path, dedent(code)) as w:
        await w.lease(1, ("mine",))
        await w.logged(b"began")
        w.process.send_signal(signal.SIGTERM)
        await w.lease(2, ("another's",))
        header, _ = await w.next("back")
        assert header["x"] == [2] and "b" not in header
        gate.touch()
        assert await w.outputs(1) == {1: (0, "mine")}
        await w.next("bye")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_container_ends_at_once(tmp_path: Path, number: signal.Signals) -> None:
    async with worker(tmp_path, sleeper(False)) as w:
        w.process.send_signal(number)
        await w.next("bye")
        assert await w.exit_code() == 0
        assert b"exit hook" in w.logs[1]


async def test_code_that_no_signal_reaches_gives_its_input_back_before_the_kill(tmp_path: Path) -> None:
    code = STUCK + "def f(): stuck()\n"
    async with worker(tmp_path, code, environ={"MODAL_KILL_TIMEOUT": "1"}) as w:
        await w.lease(1, ())
        await w.logged(b"in C")
        w.process.send_signal(signal.SIGTERM)
        header, _ = await w.next("back")
        assert (header["x"], header["b"]) == ([1], 1)
        assert await w.exit_code() == 124


async def test_a_second_sigint_ends_what_ignores_the_first(tmp_path: Path) -> None:
    code = """
        import time
        def f():
            while True:
                try:
                    print("began")
                    time.sleep(600)
                except KeyboardInterrupt:
                    print("ignored")
    """
    async with worker(tmp_path, dedent(code)) as w:
        await w.lease(1, ())
        await w.logged(b"began")
        w.process.send_signal(signal.SIGINT)
        await w.logged(b"ignored")
        w.process.send_signal(signal.SIGINT)
        header, _ = await w.next("back")
        assert (header["x"], header["b"]) == ([1], 1)
        assert await w.exit_code() == 124


async def test_simulated_preemption_is_a_real_one(tmp_path: Path) -> None:
    code = """
        import time
        from modal_nomad.exception import simulate_preemption
        def f():
            try:
                simulate_preemption(0.05)
                time.sleep(600)
            except KeyboardInterrupt:
                print("got preempted")
                raise
    """
    async with worker(tmp_path, dedent(code)) as w:
        await w.lease(1, ())
        header, _ = await w.next("back")
        assert header["x"] == [1]
        await w.next("bye")
        assert await w.exit_code() == 0
        assert b"got preempted" in w.logs[1]


async def test_a_keyboard_interrupt_of_the_codes_own_fails_its_input_and_ends_the_container(
    tmp_path: Path,
) -> None:
    async with worker(tmp_path, "def f(): raise KeyboardInterrupt") as w:
        await w.lease(1, ())
        ((status, error),) = (await w.outputs(1)).values()
        assert status == 1 and isinstance(error, KeyboardInterrupt)
        await w.next("bye")
        assert await w.exit_code() == 0


async def test_a_container_that_is_not_ready_in_time_says_so(tmp_path: Path) -> None:
    code = "import time\ntime.sleep(600)\ndef f(): pass\n"
    async with worker(tmp_path, code, ready=False, startup_timeout=0.5) as w:
        _, payloads = await w.next("init_failed")
        from modal_nomad.wire.serialization import unpack_exception

        error = unpack_exception(payloads[0])
        assert isinstance(error, exception.FunctionTimeoutError)
        assert "0.5 s" in str(error) and "startup_timeout" in str(error)
        assert await w.exit_code() == 1


@pytest.mark.parametrize(("slots", "is_async"), KINDS)
async def test_a_cancelled_input_may_clean_up_and_knows_why(
    tmp_path: Path, slots: int, is_async: bool
) -> None:
    async with worker(tmp_path, sleeper(is_async), is_async=is_async, max_concurrent_inputs=slots) as w:
        await w.lease(1, ())
        await w.logged(b"began")
        await w.send({"t": "cancel", "x": [1]})
        assert await w.outputs(1) == {1: (3, "the input was cancelled")}
        await w.logged(b"cleaned up")
        out = w.logs[1].decode()
        assert "InputCancellation" in out and "cleaned up" in out
        assert ("CancelledError" in out) == is_async
        await w.lease(2, ())
        await w.send({"t": "cancel", "x": [2]})
        assert (await w.outputs(1))[2][0] == 3


async def test_cancelling_reaches_what_an_async_input_awaits(tmp_path: Path) -> None:
    code = """
        import asyncio
        async def inner():
            try:
                print("inner began")
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                print("inner ended")
                raise
        async def f():
            try:
                await asyncio.gather(inner(), asyncio.wait_for(inner(), 500))
            finally:
                print("outer ended")
    """
    async with worker(tmp_path, dedent(code), is_async=True, max_concurrent_inputs=2) as w:
        await w.lease(1, ())
        await w.logged(b"inner began\ninner began")
        await w.send({"t": "cancel", "x": [1]})
        assert (await w.outputs(1))[1][0] == 3
        await w.logged(b"outer ended")
        assert w.logs[1].count(b"inner ended") == 2


async def test_other_inputs_of_the_container_go_on(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    code = f"""
        import asyncio, os
        async def f(x):
            print("began", x)
            while not os.path.exists({str(gate)!r}): await asyncio.sleep(0.005)
            return x
    """
    async with worker(tmp_path, dedent(code), is_async=True, max_concurrent_inputs=2) as w:
        await w.lease(1, ("one",), ("two",))
        await w.logged(b"began two")
        await w.send({"t": "cancel", "x": [1]})
        assert (await w.outputs(1))[1][0] == 3
        gate.touch()
        assert await w.outputs(1) == {2: (0, "two")}


async def test_a_timeout_ends_one_concurrent_input_only(tmp_path: Path) -> None:
    code = """
        import asyncio, os, time
        ended = []
        def f(first):
            try:
                print("began" if first else "beside it")
                begun = time.monotonic()
                while not ended:
                    time.sleep(0.01)
                    if first and time.monotonic() > begun + 5.0:
                        first = print("half of its time")
            finally:
                ended.append(first)
            return os.getpid()
    """

    async def case(home: Path, is_async: bool) -> None:
        text = dedent(code)
        if is_async:
            text = text.replace("def f", "async def f").replace("time.sleep", "await asyncio.sleep")
        spec = {"timeout": 10.0, "max_concurrent_inputs": 2, "is_async": is_async}
        async with worker(home, text, **spec) as w:
            await w.lease(1, (True,))
            await w.logged(b"half of its time")
            # It runs when the first one's time is over, ends with that one, and has had half of its own.
            await w.lease(2, (False,))
            await w.logged(b"beside it")
            out = await w.outputs(2)
            assert out[1][0] == 4 and out[2] == (0, w.process.pid)

    await of_every_kind(tmp_path, [(False,), (True,)], case)


async def test_code_stuck_in_c_ends_its_container_and_the_others_are_given_back(tmp_path: Path) -> None:
    code = STUCK + dedent("""
        def f(in_c):
            print("began")
            stuck() if in_c else threading.Event().wait()
    """)
    async with worker(tmp_path, code, max_concurrent_inputs=2) as w:
        await w.lease(1, (True,), (False,))
        await w.logged(b"in C")
        await w.logged(b"began", 2)
        await w.send({"t": "cancel", "x": [1]})
        assert (await w.outputs(1))[1][0] == 3
        header, _ = await w.next("back")
        assert (header["x"], header["b"]) == ([2], 1)
        assert w.order.index("drain") < w.order.index("back")
        assert await w.exit_code() == 124
