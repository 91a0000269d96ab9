"""Limits of memory and processors hold embedded, and an over-use is told to callers as what it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Live, until

import modal_nomad as modal
from modal_nomad import exception
from tests._control_groups import allowed

CONTROL_GROUPS = allowed()

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits are those of Linux")


def test_a_process_that_wants_more_than_its_limit_gets_a_memory_error_that_says_so(live: Live) -> None:
    app = modal.App("limits-one")

    @app.function(serialized=True, memory=(64, 300))
    def eat() -> int:
        return len(bytearray(1 << 30))

    with app.run(), pytest.raises(MemoryError, match=r"limit is 300 MiB: ask for more with memory="):
        eat.remote()


def test_processes_that_use_more_together_end_their_container_at_once(live: Live, tmp_path: Path) -> None:
    app = modal.App("limits-many")

    @app.function(serialized=True, memory=(64, 300), retries=1, max_containers=1)
    def eat(marks: str) -> None:
        import os
        import pathlib
        import time

        pathlib.Path(marks, f"{os.getpid()}").touch()
        for _ in range(4):
            # Each of them is within the limit.
            if os.fork() == 0:
                held = bytearray(b"x") * (120 << 20)
                time.sleep(300)
                os._exit(len(held) & 1)
        time.sleep(300)

    @app.function(serialized=True, memory=(64, 300))
    def shares() -> int:
        import os
        import time

        held = bytearray(b"x") * (120 << 20)
        children = []
        for _ in range(4):
            # What they share is there once.
            pid = os.fork()
            if pid == 0:
                time.sleep(2)
                os._exit(len(held) & 1)
            children.append(pid)
        return sum(os.waitpid(pid, 0)[1] for pid in children)

    with app.run():
        assert shares.remote() == 0
        with pytest.raises(exception.OutOfMemoryError) as caught:
            eat.remote(str(tmp_path))
    assert isinstance(caught.value, exception.ExecutionError)
    assert "above its limit of 300 MiB: ask for more with memory=" in str(caught.value)
    # Twice by its own retries, and not as often as containers may be lost.
    assert len(list(tmp_path.iterdir())) == 2


def test_a_limit_of_processors_is_held(live: Live) -> None:
    app = modal.App("limits-cpu")

    @app.function(serialized=True, cpu=(0.1, 0.5))
    def limited() -> int:
        import os

        return len(os.sched_getaffinity(0))

    @app.cls(serialized=True, cpu=0.1)
    class Free:
        @modal.method()
        def get(self) -> int:
            import os

            return len(os.sched_getaffinity(0))

    @app.function(serialized=True, cpu=(0.1, 0.2))
    def part() -> float:
        import time

        began = time.monotonic()
        while time.process_time() < 0.4:
            pass
        return time.monotonic() - began

    with app.run():
        assert limited.remote() == 1
        if CONTROL_GROUPS:
            # At best in 1.8 seconds: what was used before is no more than one period's.
            assert part.remote() > 1.0
        assert Free().get.remote() == len(os.sched_getaffinity(0))
        assert Free.with_options(cpu=(0.1, 1.0))().get.remote() == 1  # type: ignore[attr-defined]


def test_a_fork_of_a_memory_snapshot_is_held_to_its_limit(live: Live) -> None:
    app = modal.App("limits-fork")

    @app.cls(serialized=True, memory=(64, 300), enable_memory_snapshot=True, single_use_containers=True)
    class Model:
        @modal.enter(snap=True)
        def load(self) -> None:
            self.loaded_in = os.getpid()

        @modal.method()
        def pids(self) -> tuple[int, int]:
            return self.loaded_in, os.getpid()

        @modal.method()
        def eat(self) -> None:
            import time

            for _ in range(4):
                if os.fork() == 0:
                    held = bytearray(b"x") * (120 << 20)
                    time.sleep(300)
                    os._exit(len(held) & 1)
            time.sleep(300)

    with app.run():
        model = Model()
        model.pids.remote()
        until(lambda: len(set(model.pids.remote())) == 2, what="a fork")
        with pytest.raises(exception.OutOfMemoryError, match="above its limit of 300 MiB"):
            model.eat.remote()


def test_a_child_that_the_kernel_ended_is_an_over_use_whatever_the_code_makes_of_it(live: Live) -> None:
    if not CONTROL_GROUPS:
        pytest.skip("no control groups here")
    app = modal.App("limits-child")

    @app.function(serialized=True, memory=(64, 300), retries=0)
    def ask() -> None:
        # Each of them is within the limit.
        eat = "import time; held = bytearray(b'x') * (180 << 20); time.sleep(300)"
        children = [subprocess.Popen([sys.executable, "-c", eat]) for _ in range(2)]
        pid, status = os.wait()
        for child in children:
            child.kill()
        raise RuntimeError(f"the child {pid} ended with {status}")

    with app.run(), pytest.raises(exception.OutOfMemoryError, match="above its limit of 300 MiB"):
        ask.remote()


def test_what_is_written_to_a_volume_is_no_use_of_the_containers_disk(live: Live) -> None:
    app = modal.App("limits-volume")
    volume = modal.Volume.from_name("limits-volume", create_if_missing=True)

    @app.function(serialized=True, ephemeral_disk=40, retries=0, volumes={"/limits-volume": volume})
    def write(mebibytes: int) -> str:
        import time

        for number in range(mebibytes):
            with open(f"/limits-volume/{number}", "wb") as file:
                file.write(os.urandom(1 << 20))
        # Files are counted about once a second.
        time.sleep(2.5)
        return "written"

    with app.run():
        assert write.remote(60) == "written"


def test_files_that_take_more_than_their_limit_end_the_container(live: Live) -> None:
    app = modal.App("limits-disk")

    @app.function(serialized=True, ephemeral_disk=40, retries=0)
    def write(mebibytes: int, wait: bool) -> None:
        import time

        for number in range(mebibytes):
            with open(f"{number}", "wb") as file:
                file.write(os.urandom(1 << 20))
        while wait:
            time.sleep(300)

    with app.run():
        write.remote(10, False)
        with pytest.raises(exception.OutOfDiskError) as caught:
            write.remote(60, True)
    assert "above its limit of 40 MiB: ask for more with ephemeral_disk=, or keep them in a Volume" in str(
        caught.value
    )
