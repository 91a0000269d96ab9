"""Containers forked from a parent that holds what the first of them had loaded."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import Live, alive, until

import modal_nomad as modal
from modal_nomad import exception


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def noter(notes: Path) -> Any:
    """A function that writes a line; of no module, so that it travels with the class that uses it."""

    def note(text: str) -> None:
        with notes.open("a") as file:
            file.write(f"{text}\n")

    return note


def snapshots(live: Live) -> list[Path]:
    return [x for x in (live.home / "snapshots").glob("*") if x.suffix not in (".lock", ".new")]


def model_app(name: str, notes: Path, **options: Any) -> modal.App:
    app, note = modal.App(name), noter(notes)

    @app.cls(serialized=True, enable_memory_snapshot=True, **options)
    class Model:
        @modal.enter(snap=True)
        def load(self) -> None:
            note(f"load {os.getpid()}")
            self.weights = list(range(1000))

        @modal.enter(snap=False)
        def connect(self) -> None:
            import random

            note(f"connect {os.getpid()}")
            self.container = os.environ["MODAL_TASK_ID"]
            self.draw = random.random()

        @modal.method()
        def ask(self, x: int) -> tuple[int, str, int, float]:
            print(f"asked {x}")
            return self.weights[x], self.container, os.getpid(), self.draw

        @modal.method()
        def end(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        @modal.exit()
        def leave(self) -> None:
            note(f"leave {os.getpid()}")

    return app


def test_snapshot_hooks_run_once_and_the_others_in_each_container(live: Live) -> None:
    notes = live.folder / "notes"
    app = model_app("snap", notes, single_use_containers=True, max_containers=1)
    with app.run():
        model = app.registered_classes["Model"]()
        before = set(snapshots(live))
        first = model.ask.remote(1)
        until(lambda: set(snapshots(live)) - before)
        later = [model.ask.remote(x) for x in range(2, 6)]
        assert [first[0], *(x[0] for x in later)] == [1, 2, 3, 4, 5]
        assert len({x[1] for x in [first, *later]}) == 5, "five containers"
        assert len({x[3] for x in [first, *later]}) == 5, "each with random numbers of its own"
        said = lines(notes)
        assert [x for x in said if x.startswith("load")] == [f"load {first[2]}"]
        assert [x for x in said if x.startswith("connect")] == [f"connect {x[2]}" for x in [first, *later]]
        until(lambda: sum(x.startswith("leave") for x in lines(notes)) == 5)


def test_a_forked_container_ends_as_any_other(live: Live) -> None:
    notes = live.folder / "notes"
    app = model_app("ends", notes, max_containers=1, scaledown_window=60)
    with app.run():
        model = app.registered_classes["Model"]()
        before = set(snapshots(live))
        first = model.ask.remote(0)
        until(lambda: set(snapshots(live)) - before)
        os.kill(first[2], signal.SIGTERM)
        until(lambda: f"leave {first[2]}" in lines(notes))
        second = model.ask.remote(0)
        assert second[1] != first[1]
        # The fork, told to end by a signal of its own.
        os.kill(second[2], signal.SIGTERM)
        until(lambda: f"leave {second[2]}" in lines(notes))
        third = model.ask.remote(0)
        assert third[1] not in (first[1], second[1])
        # And one killed without warning: its input is lost with it, again and again, and that is said.
        with pytest.raises(exception.RemoteError, match=r"lost 9 times.*(SIGKILL|signal 9)"):
            model.end.remote()
        assert len([x for x in lines(notes) if x.startswith("load")]) == 1
        last = model.ask.remote(3)
        assert last[0] == 3
    until(lambda: not alive(last[2]))


def test_a_plain_functions_imports_are_kept(live: Live) -> None:
    script = live.write(
        "plain.py",
        """
        import os, pathlib, sys
        import modal_nomad as modal

        app = modal.App("plain-snapshot")
        here = pathlib.Path(sys.argv[1]) if modal.is_local() else None
        if not modal.is_local():
            LOADED = os.getpid()

        @app.function(enable_memory_snapshot=True, single_use_containers=True, max_containers=1)
        def f(x):
            return LOADED, os.getpid()

        if __name__ == "__main__":
            import time
            with app.run():
                first = f.remote(0)
                deadline = time.monotonic() + 60
                while not [x for x in here.glob("*") if not x.suffix] and time.monotonic() < deadline:
                    time.sleep(0.01)
                second, third = f.remote(1), f.remote(2)
            assert first[0] == first[1], first
            print(second[0] == third[0] == first[0], len({first[1], second[1], third[1]}))
        """,
    )
    for old in snapshots(live):
        old.unlink()
    assert live.python(script, str(live.home / "snapshots")).split() == ["True", "3"]


def test_what_a_fork_cannot_carry_is_said_and_containers_start_anew(live: Live) -> None:
    # No GPU is needed: what is loaded under the name of CUDA's library, and cannot say that it was not
    # used, is taken for one that was. Threads of C code and the rest are real.
    script = live.write(
        "obstacles.py",
        """
        import ctypes, os, pathlib, select, shutil, socket, subprocess, sys, threading, time
        import modal_nomad as modal

        app = modal.App("obstacles")
        folder = sys.argv[1] if modal.is_local() else ""

        def thread(self):
            threading.Thread(target=threading.Event().wait, name="poller", daemon=True).start()

        def native(self):
            libc, self.thread = ctypes.CDLL(None), ctypes.c_ulong()
            libc.pthread_create(ctypes.byref(self.thread), None, libc.pause, None)
            libc.pthread_setname_np(self.thread, b"native-pool")

        def handled(self):
            native(self)
            libc, threads = ctypes.CDLL(None), [self.thread]

            def stop():
                while threads:
                    thread = threads.pop()
                    libc.pthread_cancel(thread)
                    libc.pthread_join(thread, None)

            os.register_at_fork(before=stop)

        def connection(self):
            self.pair = socket.socketpair()

        def queue(self):
            self.queue = select.epoll()

        def process(self):
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(["cat"], stdin=pipe, stdout=pipe, bufsize=0)
            # Until it answers, it may still go by the name of the process that started it.
            self.process.stdin.write(b"?")
            assert self.process.stdout.read(1) == b"?"

        def cuda(self):
            with open("/proc/self/maps") as maps:
                loaded = [x.split()[-1] for x in maps if ".so" in x]
            library = pathlib.Path(self.folder, "libcuda.so.1")
            shutil.copy(next(x for x in loaded if "ctypes" in x or "/libc" in x), library)
            self.library = ctypes.CDLL(str(library))

        @app.cls(enable_memory_snapshot=True, single_use_containers=True, max_containers=1)
        class Busy:
            kind: str = modal.parameter()
            folder: str = modal.parameter()

            @modal.enter(snap=True)
            def load(self):
                self.pid = os.getpid()
                globals()[self.kind](self)

            @modal.method()
            def anew(self):
                return self.pid == os.getpid()

        if __name__ == "__main__":
            kinds = ["thread", "native", "handled", "connection", "queue", "process", "cuda"]
            with modal.enable_output(), app.run():
                for kind in kinds:
                    one = Busy(kind=kind, folder=folder)
                    first = one.anew.remote()
                    if kind == "handled":
                        while not list(pathlib.Path(sys.argv[2]).glob("*[0-9a-f]")):
                            time.sleep(0.02)
                    print(kind, first, one.anew.remote(), flush=True)
        """,
    )
    for old in snapshots(live):
        old.unlink()
    with live.start(str(script), str(live.folder), str(live.home / "snapshots")) as process:
        out, err = process.communicate(timeout=250)
    said = " ".join((out + err).split())
    for kind, words in {
        "thread": "thread 'poller' runs",
        "native": "thread 'native-pool' of a C library runs",
        "connection": "a socket is open",
        "queue": "an epoll queue is open",
        "process": "process 'cat' runs",
        "cuda": f"CUDA has been initialized ({live.folder}/libcuda.so.1)",
    }.items():
        assert f"{kind} True True" in said, said
        assert f"no memory snapshot is kept, because {words}" in said, said
    # Whoever ends its threads before a fork is ready for one.
    assert "handled True False" in said, said


def test_async_snapshot_hooks(live: Live) -> None:
    app = modal.App("async-snap")

    @app.cls(serialized=True, enable_memory_snapshot=True, single_use_containers=True, max_containers=1)
    class Model:
        @modal.enter(snap=True)
        async def load(self) -> None:
            import asyncio

            await asyncio.sleep(0)
            self.loaded = os.getpid()

        @modal.method()
        async def ask(self) -> tuple[int, int]:
            import asyncio

            await asyncio.sleep(0)
            return self.loaded, os.getpid()

    with app.run():
        before = set(snapshots(live))
        first = Model().ask.remote()  # type: ignore[attr-defined]
        until(lambda: set(snapshots(live)) - before)
        second = Model().ask.remote()  # type: ignore[attr-defined]
        assert first[0] == first[1] == second[0] != second[1]


def test_a_new_version_has_a_snapshot_of_its_own(own: Live) -> None:
    notes = own.folder / "notes"
    note = noter(notes)

    def deploy(value: int) -> Any:
        app = modal.App("versions")

        @app.cls(serialized=True, enable_memory_snapshot=True, single_use_containers=True)
        class Model:
            @modal.enter(snap=True)
            def load(self) -> None:
                note(str(value))

            @modal.method()
            def ask(self) -> int:
                return value

        app.deploy()
        return modal.Cls.from_name("versions", "Model")()

    model = deploy(1)
    assert model.ask.remote() == 1
    until(lambda: len(snapshots(own)) == 1)
    assert model.ask.remote() == 1
    model = deploy(2)
    assert model.ask.remote() == 2
    until(lambda: len(snapshots(own)) == 2)
    assert model.ask.remote() == 2
    assert lines(notes) == ["1", "2"]
