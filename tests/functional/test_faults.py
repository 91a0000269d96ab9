"""Processes of ours killed without warning."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Live, until

import modal_nomad as modal


def square_app(name: str) -> modal.App:
    app = modal.App(name)

    @app.function(serialized=True, name="square")
    def square(x: int) -> int:
        return x * x

    return app


def test_a_map_outlives_the_dispatcher(own: Live) -> None:
    app = square_app("map")
    with app.run():
        before = own.status()["pid"]
        results = []
        for value in app["square"].map(range(10_000)):
            results.append(value)
            if len(results) == 500:
                os.kill(before, signal.SIGKILL)
        assert results == [x * x for x in range(10_000)]
        assert own.status()["pid"] != before
        # The App and its client are as they were.
        assert app["square"].remote(3) == 9


def test_an_unordered_map_outlives_the_dispatcher_with_each_result_once(own: Live) -> None:
    app = square_app("unordered")
    with app.run():
        results = []
        for value in app["square"].map(range(5_000), order_outputs=False):
            results.append(value)
            if len(results) == 700:
                own.kill()
        assert sorted(results) == [x * x for x in range(5_000)]


def test_spawned_calls_outlive_the_dispatcher_and_their_client(own: Live) -> None:
    deploy = own.write(
        "spawns.py",
        """
        import sys
        from pathlib import Path

        import modal_nomad as modal

        app = modal.App("spawns")

        @app.function(max_containers=2)
        def held(x, gate):
            open(gate).read()
            return x + 1

        if __name__ == "__main__":
            app.deploy()
            print(*[held.spawn(x, sys.argv[1]).object_id for x in range(40)])
        """,
    )
    fetch = own.write(
        "fetch.py",
        """
        import sys

        import modal_nomad as modal

        print(*[modal.FunctionCall.from_id(call).get(timeout=100) for call in sys.argv[1:]])
        """,
    )
    gate = own.folder / "gate"
    os.mkfifo(gate)
    calls = own.python(deploy, str(gate)).split()
    own.kill()
    assert own.status()["pid"]
    # Both ends open: every reader gets its end of file at once, from now on.
    gate.unlink()
    gate.touch()
    assert own.python(fetch, *calls).split() == [str(x + 1) for x in range(40)]


def test_nothing_acknowledged_is_lost_when_the_dispatcher_is_killed_at_once(own: Live) -> None:
    count = 2_000
    app = square_app("acknowledged")
    app.deploy()
    pid = own.status()["pid"]

    async def spawn() -> list[str]:
        calls = await asyncio.gather(*(app["square"].spawn.aio(x) for x in range(count)))
        # All are acknowledged, and most have not run.
        os.kill(pid, signal.SIGKILL)
        return [call.object_id for call in calls]

    async def fetch(ids: list[str]) -> list[int]:
        calls = [modal.FunctionCall.from_id(call) for call in ids]
        return list(await asyncio.gather(*(call.get.aio(timeout=100) for call in calls)))

    ids = asyncio.run(spawn())
    assert len(set(ids)) == count
    assert asyncio.run(fetch(ids)) == [x * x for x in range(count)]
    assert own.status()["pid"] != pid


def test_containers_lost_before_a_restart_count_after_it(own: Live) -> None:
    runs = own.folder / "runs"
    app = modal.App("poison")

    @app.function(serialized=True, name="poison", max_containers=1)
    def poison() -> None:
        with runs.open("a") as file:
            file.write("x")
        if runs.stat().st_size == 5:
            signal.pause()
        os.kill(os.getpid(), signal.SIGKILL)

    app.deploy()
    call = app["poison"].spawn()

    def stored() -> bool:
        with contextlib.closing(sqlite3.connect(f"file:{own.home}/store.db?mode=ro", uri=True)) as store:
            return store.execute("SELECT losses FROM inputs").fetchall() == [(4,)]

    until(lambda: runs.exists() and runs.stat().st_size == 5 and stored())
    own.kill()
    with pytest.raises(modal.exception.Error, match="lost 9 times"):
        call.get(timeout=100)
    # Four before the restart, the one that it ended, and five to the bound.
    assert runs.stat().st_size == 10


def test_retries_before_a_restart_count_after_it(own: Live) -> None:
    runs = own.folder / "runs"
    app = modal.App("failing")

    @app.function(serialized=True, name="failing", retries=modal.Retries(max_retries=4, initial_delay=0.0))
    def failing() -> None:
        with runs.open("a") as file:
            file.write("x")
        size = runs.stat().st_size
        if size == 3:
            signal.pause()
        raise ValueError(f"run {size}")

    app.deploy()
    call = app["failing"].spawn()

    def stored() -> bool:
        with contextlib.closing(sqlite3.connect(f"file:{own.home}/store.db?mode=ro", uri=True)) as store:
            return store.execute("SELECT attempts FROM inputs").fetchall() == [(2,)]

    until(lambda: runs.exists() and runs.stat().st_size == 3 and stored())
    own.kill()
    # Two failed before the restart, which ended the third; two retries are left.
    with pytest.raises(ValueError, match="run 6"):
        call.get(timeout=100)
    assert runs.stat().st_size == 6


def test_a_call_that_runs_outlives_the_dispatcher(own: Live) -> None:
    started, gate = own.folder / "started", own.folder / "gate"
    app = modal.App("runs")

    @app.function(serialized=True, name="held")
    def held() -> str:
        with started.open("a") as file:
            file.write("x")
        while not gate.exists():
            time.sleep(0.01)
        return "done"

    with app.run():
        outcome: list[Any] = []
        thread = threading.Thread(target=lambda: outcome.append(app["held"].remote()))
        thread.start()
        until(started.exists)
        own.kill()
        own.status()
        # Be it the container that runs it or another, if the input was leased again.
        gate.touch()
        thread.join(100)
        assert outcome == ["done"]


def test_a_restarted_dispatcher_gives_a_living_client_its_app_back(
    own: Live, serve: Callable[..., Any]
) -> None:
    app = modal.App("survivor")

    @app.function(serialized=True)
    def same(x: int) -> int:
        return x

    script = own.write(
        "other.py",
        """
        import sys
        import modal_nomad as modal

        with modal.App("another").run():
            print("up", flush=True)
            sys.stdin.read()
        """,
    )
    killed = serve(client_grace=5.0)
    with app.run():
        assert same.remote(1) == 1
        with own.start(str(script), stdin=subprocess.PIPE) as other:
            assert other.stdout is not None and other.stdout.readline() == "up\n"
            killed.kill()
            killed.wait()
            other.kill()
        serve(client_grace=5.0)
        assert same.remote(2) == 2
        # The time after which an App that nobody claims is stopped is over when the other one's is.
        until(lambda: own.status()["apps"] == 1, what="the end of the App that nobody claims")
        assert same.remote(3) == 3


def test_a_killed_client_takes_its_ephemeral_app_along(own: Live, serve: Callable[..., Any]) -> None:
    serve(client_grace=0.3)
    script = own.write(
        "client.py",
        """
        import modal_nomad as modal

        app = modal.App("orphan")

        @app.function()
        def forever(path):
            import threading
            open(path, "w").close()
            threading.Event().wait()

        if __name__ == "__main__":
            import sys
            with app.run():
                forever.remote(sys.argv[1])
        """,
    )
    mark = own.folder / "mark"
    client = own.start(str(script), str(mark))
    with client:
        until(lambda: mark.exists() or client.poll() is not None)
        assert own.status()["apps"] == 1
        client.kill()
        client.communicate()
    until(lambda: own.status()["apps"] == 0, what="the end of the client's app")
    until(lambda: not own.status()["containers"], what="the end of its containers")
    (app,) = (a for a in own.request("app.list", environment=None)["apps"] if a["description"] == "orphan")
    assert app["state"] == "stopped"


def test_the_embedded_dispatcher_takes_the_grace_from_the_configuration(
    own: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own.home / "modal.toml").write_text("[default]\nclient_grace = 0.2\n")
    script = own.write(
        "killed.py",
        """
        import os
        import signal

        import modal_nomad as modal

        app = modal.App("short-grace")

        @app.function()
        def f():
            pass

        if __name__ == "__main__":
            with app.run():
                f.remote()
                os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    with own.start(str(script)) as client:
        client.communicate(timeout=100)
    environ = Path(f"/proc/{own.status()['pid']}/environ").read_bytes().split(b"\0")
    assert b"MODAL_CLIENT_GRACE=0.2" in environ
    until(lambda: own.status()["apps"] == 0, what="the end of the client's app")


def test_interrupting_the_client_ends_its_app_quietly(own: Live) -> None:
    script = own.write(
        "interrupted.py",
        """
        import modal

        app = modal.App("interrupted")

        @app.function()
        def forever(path):
            import threading
            open(path, "w").close()
            threading.Event().wait()

        @app.local_entrypoint()
        def main(path: str):
            forever.remote(path)
        """,
    )
    mark = own.folder / "mark"
    with own.start("-m", "modal_nomad", "run", str(script), "--path", str(mark)) as client:
        until(lambda: mark.exists() or client.poll() is not None)
        client.send_signal(signal.SIGINT)
        out, err = client.communicate(timeout=100)
    assert "Traceback" not in out + err
    assert client.returncode in (0, 130)
    until(lambda: own.status()["apps"] == 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_next_client_starts_a_killed_dispatcher_again(own: Live, number: int) -> None:
    app = square_app("again")
    app.deploy()
    pid = own.status()["pid"]
    os.kill(pid, number)
    square = modal.Function.from_name("again", "square")
    assert square.remote(4) == 16
    assert own.status()["pid"] != pid


def test_containers_go_when_nothing_is_left_to_do(live: Live) -> None:
    app = modal.App("idle")

    @app.function(serialized=True, name="short", scaledown_window=1)
    def short() -> int:
        return 1

    with app.run():
        assert app["short"].remote() == 1
        mine = lambda: [c for c in live.status()["containers"] if c["function"] == "short"]  # noqa: E731
        assert mine()
        until(lambda: not mine(), what="the end of the idle container")
        assert app["short"].remote() == 1
