"""Generators whose container or dispatcher is killed: the reader sees every item once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Live, alive, until

import modal_nomad as modal


def _pids(folder: Path) -> list[int]:
    return [int(x.name[4:]) for x in folder.glob("run-*")]


def test_a_container_killed_in_mid_stream(own: Live) -> None:
    app = modal.App("killed")

    @app.function(serialized=True, name="steps")
    def steps(folder: str, n: int) -> Iterator[tuple[int, int]]:
        import os
        import pathlib
        import time

        (pathlib.Path(folder) / f"run-{os.getpid()}").touch()
        for x in range(n):
            while x == n // 2 and not os.path.exists(f"{folder}/go"):
                time.sleep(0.005)
            yield x, os.getpid()

    with app.run():
        results = app["steps"].remote_gen(str(own.folder), 1000)
        seen = [next(results) for _ in range(300)]
        (first,) = _pids(own.folder)
        os.kill(first, signal.SIGKILL)
        (own.folder / "go").touch()
        seen += results
        assert [x for x, _ in seen] == list(range(1000))
        assert {pid for _, pid in seen} == set(_pids(own.folder)) and len(_pids(own.folder)) == 2


@pytest.mark.parametrize("spawned", [False, True])
@pytest.mark.filterwarnings("ignore:.*spawn.*:modal_nomad.exception.DeprecationError")
def test_a_dispatcher_killed_in_mid_stream(own: Live, spawned: bool) -> None:
    app = modal.App("survives")

    @app.function(serialized=True, name="steps", max_containers=1)
    def steps(folder: str, n: int) -> Iterator[int]:
        import os
        import time

        for x in range(n):
            while x == n // 2 and not os.path.exists(f"{folder}/go"):
                time.sleep(0.005)
            yield x

    app.deploy()
    function = modal.Function.from_name("survives", "steps")
    if spawned:
        function.hydrate()
        results = function.spawn(str(own.folder), 1000).get_gen()
    else:
        results = function.remote_gen(str(own.folder), 1000)
    seen = [next(results) for _ in range(300)]
    own.kill()
    (own.folder / "go").touch()
    seen += results
    assert seen == list(range(1000))
    # The first run, whose lease nobody knows any more, holds no slot.
    assert list(function.remote_gen(str(own.folder), 10)) == list(range(10))
    own.request("app.stop", app_id=app.app_id)


def test_a_reader_killed_in_mid_stream_leaves_nothing_running(own: Live, serve: Callable[..., Any]) -> None:
    serve(client_grace=0.1)
    app = modal.App("left")

    @app.function(serialized=True, name="steps", max_containers=1)
    def steps(folder: str) -> Iterator[int]:
        from pathlib import Path

        try:
            yield from range(1_000_000)
        except GeneratorExit:
            Path(folder, "closed").touch()
            raise

    app.deploy()
    script = own.write(
        "reader.py",
        """
        import os
        import signal
        import sys

        import modal_nomad as modal

        results = modal.Function.from_name("left", "steps").remote_gen(sys.argv[1])
        next(results)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    with own.start(str(script), str(own.folder)) as process:
        assert process.wait(100) == -signal.SIGKILL
    until((own.folder / "closed").exists, what="the generator's end")
    function = modal.Function.from_name("left", "steps")
    assert next(function.remote_gen(str(own.folder))) == 0
    own.request("app.stop", app_id=app.app_id)


def test_a_container_told_to_end_finishes_its_generator(own: Live) -> None:
    app = modal.App("drained")

    @app.function(serialized=True, name="steps")
    def steps(folder: str, n: int) -> Iterator[tuple[int, int]]:
        import os
        import time

        for x in range(n):
            while x == n // 2 and not os.path.exists(f"{folder}/go"):
                time.sleep(0.005)
            yield x, os.getpid()

    with app.run():
        results = app["steps"].remote_gen(str(own.folder), 4000)
        first, pid = next(results)
        os.kill(pid, signal.SIGTERM)
        # What comes now goes to another container, and this one ends only after its last item.
        (own.folder / "go").touch()
        rest = list(results)
        assert [first] + [x for x, _ in rest] == list(range(4000))
        assert {other for _, other in rest} == {pid}
        until(lambda: not alive(pid), what="the container's end")
        assert next(app["steps"].remote_gen(str(own.folder), 1))[1] != pid
