"""How many containers there are: asked for, changed while the App lives, kept over a restart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Live, until

import modal_nomad as modal
from modal_nomad import exception
from modal_nomad.functions import FunctionAutoscalerSettings, FunctionStats


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A path that user code waits for: while it is not there, inputs run on."""
    path = tmp_path / "gate"
    yield path
    path.touch()


def held_app(name: str, gate: Path, **options: Any) -> modal.App:
    app = modal.App(name)

    @app.function(serialized=True, name="held", **options)
    def held(x: int = 0) -> int:
        import time

        while not gate.exists():
            time.sleep(0.01)
        return x

    return app


def runners(function: Any) -> int:
    return int(function.get_current_stats().num_total_runners)


def test_statistics(live: Live, gate: Path) -> None:
    app = held_app("stats", gate, max_containers=2)
    with app.run():
        held = app["held"]
        assert held.get_current_stats() == FunctionStats(backlog=0, num_total_runners=0)
        calls = [held.spawn(i) for i in range(5)]
        want = FunctionStats(backlog=3, num_total_runners=2, num_running_inputs=2, input_headroom=0)
        until(lambda: held.get_current_stats() == want, what=str(want))
        gate.touch()
        assert [c.get(timeout=100) for c in calls] == list(range(5))
        after = held.get_current_stats()
        assert (after.backlog, after.num_running_inputs) == (0, 0)
        assert after.input_headroom == after.num_total_runners > 0


def test_the_floor_is_raised_and_lowered(live: Live, gate: Path) -> None:
    app = held_app("floor", gate)
    with app.run():
        held = app["held"]
        settings = held.update_autoscaler(min_containers=2, scaledown_window=0.2)
        assert settings == FunctionAutoscalerSettings(2, None, 0, 0.2)
        until(lambda: runners(held) == 2)
        # What is not given stays; zero is a value.
        assert held.update_autoscaler(min_containers=0) == FunctionAutoscalerSettings(0, None, 0, 0.2)
        until(lambda: runners(held) == 0)


def test_a_lowered_ceiling_lets_running_inputs_finish(live: Live, gate: Path) -> None:
    app = held_app("ceiling", gate)
    with app.run():
        held = app["held"]
        calls = [held.spawn(i) for i in range(3)]
        until(lambda: held.get_current_stats().num_running_inputs == 3)
        held.update_autoscaler(max_containers=1)
        assert held.get_current_stats().num_running_inputs == 3
        gate.touch()
        assert [c.get(timeout=100) for c in calls] == [0, 1, 2]
        until(lambda: runners(held) <= 1)


def test_wrong_values_are_named_and_change_nothing(live: Live, gate: Path) -> None:
    app = held_app("wrong", gate, min_containers=0, max_containers=2)
    with app.run():
        held = app["held"]
        before = held.update_autoscaler()
        for wrong, word in (
            ({"min_containers": 3}, r"min_containers \(3\) cannot be higher than max_containers \(2\)"),
            ({"max_containers": 0}, "max_containers is 0"),
            ({"scaledown_window": 0}, "scaledown_window is 0"),
            ({"buffer_containers": 1.5}, "buffer_containers is 1.5"),
        ):
            with pytest.raises(exception.InvalidError, match=word):
                held.update_autoscaler(**wrong)
        assert held.update_autoscaler() == before


def test_the_floor_is_there_before_any_input(live: Live, gate: Path) -> None:
    app = held_app("warm-from-the-start", gate, min_containers=2)
    with app.run():
        until(lambda: runners(app["held"]) == 2)


def test_keep_warm_is_the_old_name(live: Live, gate: Path) -> None:
    app = held_app("warm", gate)
    with app.run():
        with pytest.warns(exception.DeprecationError, match="update_autoscaler") as caught:
            app["held"].keep_warm(1)
        assert caught[0].filename == __file__
        assert app["held"].update_autoscaler().min_containers == 1
        until(lambda: runners(app["held"]) == 1)


def test_settings_survive_a_restart_until_the_next_deployment(own: Live, gate: Path) -> None:
    app = held_app("kept", gate, buffer_containers=1)
    app.deploy()
    held = modal.Function.from_name("kept", "held")
    changed = held.update_autoscaler(min_containers=1, max_containers=3)
    assert changed == FunctionAutoscalerSettings(1, 3, 1, 60.0)
    pid = own.status()["pid"]
    own.kill()
    again = modal.Function.from_name("kept", "held")
    assert again.update_autoscaler() == changed
    assert own.status()["pid"] != pid
    until(lambda: runners(again) == 1)
    app.deploy()
    assert again.update_autoscaler() == FunctionAutoscalerSettings(0, None, 1, 60.0)


def test_the_async_faces(live: Live, gate: Path) -> None:
    app = held_app("faces", gate)

    async def ask() -> tuple[Any, Any]:
        held = app["held"]
        return await held.update_autoscaler.aio(scaledown_window=5), await held.get_current_stats.aio()

    import asyncio

    with app.run():
        settings, stats = asyncio.run(ask())
    assert settings.scaledown_window == 5
    assert stats.num_total_runners == 0


def test_a_buffer_is_kept_beside_a_busy_container(live: Live, gate: Path) -> None:
    app = held_app("buffer", gate, buffer_containers=1, scaledown_window=0.2)
    with app.run():
        held = app["held"]
        call = held.spawn(1)
        until(lambda: held.get_current_stats() == FunctionStats(0, 2, 1, 1))
        gate.touch()
        assert call.get(timeout=100) == 1
        until(lambda: runners(held) == 0)


def test_a_stopped_app_says_so(live: Live, gate: Path) -> None:
    app = held_app("stopped", gate)
    with app.run():
        held = app["held"]
        assert held.get_current_stats().backlog == 0
        live.request("app.stop", app_id=app.app_id)
        with pytest.raises(exception.NotFoundError, match="deploy its app again"):
            held.get_current_stats()


def test_a_class_takes_the_same_parameters_and_its_instances_the_same_changes(live: Live) -> None:
    app = modal.App("classes")

    @app.cls(serialized=True, min_containers=1, max_containers=3, buffer_containers=1, scaledown_window=0.5)
    class Model:
        @modal.method()
        def where(self) -> str:
            import os

            return os.environ["MODAL_TASK_ID"]

    with app.run():
        model: Any = Model()
        assert model.update_autoscaler() == FunctionAutoscalerSettings(1, 3, 1, 0.5)
        assert model.where.remote().startswith("ta-")
        assert model.update_autoscaler(min_containers=0) == FunctionAutoscalerSettings(0, 3, 1, 0.5)
        mine = lambda: [c for c in live.status()["containers"] if "Model" in c["function"]]  # noqa: E731
        until(lambda: not mine())


def test_a_class_with_a_start_that_takes_too_long_says_so(live: Live) -> None:
    app = modal.App("slow-class")

    @app.cls(serialized=True, startup_timeout=1)
    class Slow:
        @modal.enter()
        def load(self) -> None:
            import threading

            threading.Event().wait()

        @modal.method()
        def f(self) -> int:
            return 1

    with app.run():
        slow: Any = Slow()
        with pytest.raises(exception.FunctionTimeoutError, match="startup_timeout of 1 s"):
            slow.f.remote()


def test_a_class_of_single_use_containers(live: Live) -> None:
    app = modal.App("single-class")

    @app.cls(serialized=True, single_use_containers=True, max_containers=2)
    class Once:
        @modal.method()
        def where(self) -> str:
            import os

            return os.environ["MODAL_TASK_ID"]

    with app.run():
        once: Any = Once()
        assert len({once.where.remote() for _ in range(3)}) == 3
