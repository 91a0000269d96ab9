"""A real worker process over the wire, against a scripted dispatcher."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from itertools import product
from pathlib import Path
from textwrap import dedent

import pytest
import uv

from modal_nomad import exception
from modal_nomad.wire.serialization import dumps

sys.path.insert(0, str(Path(__file__).parent))
from _scripted_dispatcher import Worker, of_every_kind, worker


async def drained(w: Worker) -> None:
    await w.send({"t": "drain"})
    await w.next("bye")
    assert await w.exit_code() == 0


async def test_runs_inputs_in_batches_and_drains(tmp_path: Path) -> None:
    async with worker(tmp_path, "def f(x): return x * x") as w:
        assert w.hello["container"] == "ta-test"
        await w.lease(0, *[(i,) for i in range(1000)])
        assert await w.outputs(1000) == {i: (0, i * i) for i in range(1000)}
        await drained(w)


async def test_tells_its_ids_and_place(tmp_path: Path) -> None:
    code = """
        import os
        from modal_nomad import _execution_context as context
        def f():
            ids = context.current_input_id(), context.current_function_call_id()
            return (*ids, context.is_local(), os.environ["A"], os.getcwd())
    """
    image = {"env": {"A": "image", "B": "b"}, "workdir": str(tmp_path / "made" / "here")}
    async with worker(tmp_path, dedent(code), image=image, env={"A": "function"}) as w:
        await w.lease(7, ())
        value = ("in-call:7", "fc-call", False, "function", str(tmp_path / "made" / "here"))
        assert await w.outputs(1) == {7: (0, value)}


async def test_failures_are_answers(tmp_path: Path) -> None:
    code = """
        import threading
        def f(kind):
            if kind == "raise":
                raise ValueError("bad")
            if kind == "exit":
                raise SystemExit(3)
            if kind == "unpicklable":
                return threading.Lock()
            return kind
    """
    async with worker(tmp_path, dedent(code)) as w:
        await w.lease(0, ("raise",), ("exit",), ("unpicklable",), ("fine",))
        out = await w.outputs(4)
        assert [out[i][0] for i in range(4)] == [1, 1, 1, 0]
        assert isinstance(out[0][1], ValueError)
        assert isinstance(out[1][1], SystemExit)
        assert isinstance(out[2][1], exception.SerializationError) and "lock" in str(out[2][1])
        await w.send({"t": "run", "x": [9], "c": ["fc-call"], "n": [0]}, [b"cnosuchmodule\nthing\n."])
        ((status, error),) = (await w.outputs(1)).values()
        assert status == 1 and isinstance(error, exception.DeserializationError)
        assert "nosuchmodule" in str(error)
        await drained(w)


async def test_large_values_go_by_blob(tmp_path: Path) -> None:
    async with worker(tmp_path, "def f(x): return x + x") as w:
        big = b"x" * (3 << 20)
        data = dumps(((big,), {}))
        sha = hashlib.sha256(data).hexdigest()
        w.blobs[sha] = data
        await w.send({"t": "run", "x": [1], "c": ["fc-call"], "n": [0], "f": [1]}, [sha.encode()])
        assert await w.outputs(1) == {1: (0, big + big)}
        assert len(w.blobs) == 2


async def test_timeout_and_cancellation(tmp_path: Path) -> None:
    sync = """
        import time
        def f(x):
            end = time.monotonic() + x
            while time.monotonic() < end: time.sleep(0.01)
            return x
    """
    twin = "import asyncio\nasync def f(x):\n    await asyncio.sleep(x)\n    return x\n"

    async def case(home: Path, slots: int, is_async: bool) -> None:
        code = twin if is_async else dedent(sync)
        # So long, because what is to be in time must be so on a machine that has other work.
        spec = {"timeout": 8, "is_async": is_async, "max_concurrent_inputs": slots}
        async with worker(home, code, **spec) as w:
            await w.lease(1, (600,))
            assert await w.outputs(1) == {1: (4, "the input ran longer than its timeout of 8 s")}
            await w.lease(2, (0,))
            assert await w.outputs(1) == {2: (0, 0)}
            await w.lease(3, (600,))
            await w.send({"t": "cancel", "x": [3]})
            assert await w.outputs(1) == {3: (3, "the input was cancelled")}
            await w.lease(4, (0,), (0,), (0,))
            assert await w.outputs(3) == dict.fromkeys((4, 5, 6), (0, 0))
            await drained(w)

    await of_every_kind(tmp_path, product((1, 3), (False, True)), case)


async def test_slots_run_at_a_time(tmp_path: Path) -> None:
    code = """
        import threading
        barrier = threading.Barrier(4)
        def f(x):
            barrier.wait(100)
            return x
    """
    async with worker(tmp_path, dedent(code), max_concurrent_inputs=4) as w:
        await w.lease(0, *[(i,) for i in range(8)])
        assert await w.outputs(8) == {i: (0, i) for i in range(8)}
        await drained(w)


async def test_a_long_input_gives_back_what_waits_behind_it(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    code = f"""
        import os, time
        def f(x):
            while x and not os.path.exists({str(gate)!r}): time.sleep(0.005)
            return x
    """
    async with worker(tmp_path, dedent(code)) as w:
        await w.lease(0, (0,), (1,), (2,), (3,))
        # The first output must not wait for the second input either.
        assert (await w.outputs(1)) == {0: (0, 0)}
        header, _ = await w.next("back")
        assert header["x"] == [2, 3]
        gate.touch()
        assert await w.outputs(1) == {1: (0, 1)}


async def test_captures_all_output_before_the_answer(tmp_path: Path) -> None:
    code = """
        import os, subprocess, sys
        print("at import")
        def f():
            print("héllo", end="")
            os.write(1, b" raw")
            subprocess.run(["sh", "-c", "echo ' child'; echo err >&2"])
    """
    async with worker(tmp_path, dedent(code)) as w:
        await w.lease(0, ())
        await w.outputs(1)
        assert w.order[-1] == "done"
        assert w.logs[1].decode().startswith("at import\n") and "child" in w.logs[1].decode()
        assert "héllo" in w.logs[1].decode() and b"err\n" in w.logs[2]
        await drained(w)
        out, err = w.output.result()
        assert out == w.logs[1] and err == w.logs[2]


async def test_a_flood_of_output_arrives_whole(tmp_path: Path) -> None:
    code = "import sys\ndef f():\n    for i in range(200000): sys.stdout.write('%07d\\n' % i)\n"
    async with worker(tmp_path, code) as w:
        await w.lease(0, ())
        await w.outputs(1)
        assert w.logs[1] == b"".join(b"%07d\n" % i for i in range(200000))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("import nosuchmodule", ModuleNotFoundError),
        ("raise SystemExit(4)", SystemExit),
        ("g = 1", exception.NotFoundError),
        ("f = 1", exception.InvalidError),
    ],
)
async def test_what_cannot_be_loaded_is_told(tmp_path: Path, code: str, kind: type[BaseException]) -> None:
    from modal_nomad.wire.serialization import unpack_exception

    async with worker(tmp_path, code, ready=False) as w:
        _, (payload,) = await w.next("init_failed")
        assert isinstance(unpack_exception(payload), kind)
        assert await w.exit_code() == 1


async def test_an_image_that_does_not_build_is_told(tmp_path: Path) -> None:
    from modal_nomad import worker as package
    from modal_nomad.wire.serialization import unpack_exception

    options = {"find_links": str(tmp_path), "extra_options": "--no-index"}
    image = {"python": None, "layers": [{"kind": "pip", "args": ["no-such-package-xyz"], "options": options}]}
    source = Path(str(package.__file__)).parent
    w = Worker(tmp_path, {}, "def f(): pass")
    try:
        await w.start(
            "-I",
            "-S",
            str(source / "_start_worker.py"),
            MODAL_RUNTIME_DIR=str(source.parent.parent),
            MODAL_ENVIRONMENTS_DIR=str(tmp_path / "environments"),
            MODAL_IMAGE_ID="im-1",
            MODAL_IMAGE=json.dumps(image),
            # A bare interpreter does not see the installed package uv; without it the build takes its time.
            PATH=f"{os.path.dirname(uv.find_uv_bin())}{os.pathsep}{os.environ['PATH']}",
        )
        _, (payload,) = await w.next("init_failed")
        error = unpack_exception(payload)
        assert isinstance(error, exception.ImageBuildError) and error.image_id == "im-1"
        assert "step 1 (pip install no-such-package-xyz)" in str(error)
        assert await w.exit_code() == 1
        assert b"no-such-package-xyz" in w.output.result()[1]
    finally:
        await w.stop()


async def test_serialized_functions_come_as_a_blob(tmp_path: Path) -> None:
    import cloudpickle

    data = cloudpickle.dumps(lambda x: x + 1)
    sha = hashlib.sha256(data).hexdigest()
    one = Worker(tmp_path, {"serialized": True, "function_blob": sha, "file": None}, "")
    one.blobs[sha] = data
    await one.start()
    try:
        await one.next("ready")
        await one.lease(0, (1,))
        assert await one.outputs(1) == {0: (0, 2)}
    finally:
        await one.stop()


async def test_lost_connection_keeps_the_running_input(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    code = f"""
        import os, time
        def f(x):
            print("began")
            while not os.path.exists({str(gate)!r}): time.sleep(0.005)
            return x
    """
    async with worker(tmp_path, dedent(code)) as w:
        await w.lease(5, ("kept",))
        await w.logged(b"began")
        assert w.ws is not None
        w.hello = {}
        await w.ws.close()
        await w.next("ready")
        assert w.hello["leases"] == [5]
        gate.touch()
        assert await w.outputs(1) == {5: (0, "kept")}
        await drained(w)


async def test_sigterm_drains(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    code = f"""
        import atexit, os, time
        atexit.register(lambda: print("exit hook"))
        def f(x):
            print("began")
            while not os.path.exists({str(gate)!r}): time.sleep(0.005)
            return x
    """
    async with worker(tmp_path, dedent(code)) as w:
        await w.lease(1, ("done",))
        await w.logged(b"began")
        w.process.send_signal(signal.SIGTERM)
        gate.touch()
        assert await w.outputs(1) == {1: (0, "done")}
        await w.next("bye")
        assert await w.exit_code() == 0
        assert b"exit hook" in w.logs[1]


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_second_signal_gives_the_input_back(tmp_path: Path, slots: int, is_async: bool) -> None:
    # Two that come before Python's handler has run are one to it.
    code = dedent("""
        import asyncio, os, time
        from modal_nomad.worker._ending import Ending
        note = Ending.note
        def said(*arguments):
            taken = note(*arguments)
            os.write(1, b"handled\\n" if taken else b"put off\\n")
            return taken
        Ending.note = said
        def f():
            print("began")
            time.sleep(600)
    """)
    if is_async:
        code = code.replace("def f", "async def f").replace("time.sleep", "await asyncio.sleep")
    async with worker(tmp_path, code, is_async=is_async, max_concurrent_inputs=slots) as w:
        await w.lease(1, ())
        await w.logged(b"began")
        w.process.send_signal(signal.SIGTERM)
        await w.logged(b"handled")
        w.process.send_signal(signal.SIGTERM)
        header, _ = await w.next("back")
        assert header["x"] == [1]
        await w.next("bye")
        assert await w.exit_code() == 0


async def test_code_that_ignores_its_timeout_ends_the_container(tmp_path: Path) -> None:
    code = """
        import time
        def f():
            while True:
                try:
                    time.sleep(60)
                except BaseException:
                    pass
    """
    async with worker(tmp_path, dedent(code), timeout=5) as w:
        await w.lease(1, ())
        assert (await w.outputs(1))[1][0] == 4
        assert await w.exit_code() == 124


async def test_refusal_and_bad_token_end_with_one_line(tmp_path: Path) -> None:
    one = Worker(tmp_path, {}, "def f(): pass")
    one.refuse = ["VersionError", "too old"]
    await one.start()
    try:
        assert await one.exit_code() == 1
        assert one.output.result()[1] == b"modal-nomad worker: VersionError: too old\n"
    finally:
        await one.stop()
