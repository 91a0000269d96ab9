"""Classes in containers: instances, parameters, hooks, and calls between methods."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Live, until

import modal_nomad as modal
from modal_nomad import exception
from modal_nomad.exception import DeprecationError
from modal_nomad.wire.ids import new_id


@pytest.fixture(scope="module")
def app(_shared_home: Any) -> Iterator[modal.App]:
    app = modal.App("classes")

    @app.cls(serialized=True)
    class Counter:
        start: int = modal.parameter(default=0)
        step: int = modal.parameter(default=1)
        label: str = modal.parameter(default="plain")

        @modal.enter()
        def begin(self) -> None:
            self.count = self.start

        @modal.method()
        def add(self, times: int = 1) -> int:
            self.count += self.step * times
            return self.count

        @modal.method()
        def pid(self) -> int:
            import os

            return os.getpid()

        @modal.method()
        def describe(self) -> tuple[str, int, int]:
            return self.label, self.start, self.step

        @modal.method()
        def twice(self) -> tuple[tuple[str, int, int], tuple[str, int, int]]:
            return self.describe.remote(), self.describe.local()

        def helper(self) -> str:
            return f"helped {self.label}"

    @app.cls(serialized=True)
    class Plain:
        def __init__(self, first: Any, *, second: Any = "two") -> None:
            self.given = (first, second)

        @modal.method()
        def get(self) -> Any:
            return self.given

    @app.cls(serialized=True)
    class Mixed:
        @modal.enter()
        async def connect(self) -> None:
            import asyncio

            self.loop = asyncio.get_running_loop()

        @modal.method()
        async def same_loop(self) -> bool:
            import asyncio

            return asyncio.get_running_loop() is self.loop

        @modal.method()
        def off_the_loop(self) -> bool:
            import asyncio
            import threading

            try:
                asyncio.get_running_loop()
            except RuntimeError:
                return threading.current_thread() is not threading.main_thread()
            return False

        @modal.method()
        def fails(self, text: str) -> None:
            raise LookupError(text)

    with app.run():
        yield app


def test_state_is_kept_between_inputs(app: modal.App) -> None:
    counter = app.registered_classes["Counter"](label="kept")
    first = counter.add.remote()
    assert counter.add.remote(times=2) > first


def test_each_set_of_parameters_has_containers_of_its_own(app: modal.App) -> None:
    counter = app.registered_classes["Counter"]
    assert counter(start=5, label="x").describe.remote() == ("x", 5, 1)
    assert counter(start=6).describe.remote() == ("plain", 6, 1)
    one, same, other = counter(start=1), counter(start=1, step=1), counter(start=2)
    assert one.pid.remote() == same.pid.remote() != other.pid.remote()
    assert one.pid.object_id == same.pid.object_id != other.pid.object_id
    # All defaults, said or not, are the class itself.
    assert counter(step=1).pid.remote() == counter().pid.remote()


def test_map_spawn_and_starmap_of_a_method(app: modal.App) -> None:
    counter = app.registered_classes["Counter"](step=0, start=4)
    assert list(counter.add.map(range(20))) == [4] * 20
    assert list(counter.add.starmap([(1,), (2,)])) == [4, 4]
    assert counter.add.spawn(times=9).get(timeout=100) == 4
    counter.add.for_each(range(3))


async def test_async_twins_of_methods(app: modal.App) -> None:
    counter = app.registered_classes["Counter"](step=0, start=8)
    assert await counter.add.remote.aio() == 8
    assert [x async for x in counter.add.map.aio(range(3))] == [8] * 3


def test_a_method_calls_another_of_the_same_instance(app: modal.App) -> None:
    counter = app.registered_classes["Counter"](start=3, label="self")
    assert counter.twice.remote() == (("self", 3, 1), ("self", 3, 1))


def test_a_constructor_takes_any_arguments(app: modal.App) -> None:
    plain = app.registered_classes["Plain"]
    assert plain([1, {"a": 2}]).get.remote() == ([1, {"a": 2}], "two")
    assert plain(1, second=None).get.remote() == (1, None)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'first'"):
        plain().get.remote()


def test_async_hooks_and_methods_share_a_loop_that_sync_methods_do_not_block(app: modal.App) -> None:
    mixed = app.registered_classes["Mixed"]()
    assert mixed.same_loop.remote() and mixed.off_the_loop.remote()
    with pytest.raises(LookupError, match="not there"):
        mixed.fails.remote("not there")


def test_instances_here(app: modal.App) -> None:
    counter = app.registered_classes["Counter"](start=10, label="here")
    assert counter.helper() == "helped here" and counter.start == 10
    assert not hasattr(counter, "count"), "enter hooks run with .local() only"
    assert counter.add.local() == 11 and counter.add.local() == 12
    counter.step = 100
    assert counter.add.local() == 112
    with pytest.raises(AttributeError):
        counter.nothing  # noqa: B018


def test_an_instance_travels_as_an_argument(app: modal.App) -> None:
    from modal_nomad.wire.serialization import dumps, loads

    counter = app.registered_classes["Counter"](start=3, label="self")
    copy = loads(dumps(counter))
    assert copy.describe.remote() == ("self", 3, 1)
    assert loads(dumps(counter.describe)).remote() == ("self", 3, 1)


def test_the_old_form_without_an_instance_warns(app: modal.App) -> None:
    counter = app.registered_classes["Counter"]
    with pytest.warns(DeprecationError, match=r"say Counter\(\).describe"):
        assert counter.describe.remote() == ("plain", 0, 1)


def test_a_missing_or_wrong_parameter(app: modal.App) -> None:
    lonely = modal.App("lonely")

    @lonely.cls(serialized=True)
    class Needs:
        name: str = modal.parameter()

        @modal.method()
        def get(self) -> str:
            return self.name

    with lonely.run():
        unnamed: Any = Needs()  # type: ignore[call-arg]
        with pytest.raises(exception.InvalidError, match="Missing required parameter of Needs: name"):
            unnamed.get.remote()
        with pytest.raises(TypeError, match="Expected str, got int"):
            Needs(name=3)  # type: ignore[call-arg]
        with pytest.raises(exception.InvalidError, match="by name"):
            Needs("x")  # type: ignore[call-arg]
        with pytest.raises(AttributeError, match="Did you forget to instantiate the class first"):
            Needs.get  # noqa: B018
        named: Any = Needs(name="n")  # type: ignore[call-arg]
        assert named.get.remote() == "n"


def test_a_class_of_another_program(live: Live) -> None:
    deployed = modal.App("class-library")

    @deployed.cls(serialized=True)
    class Model:
        size: int = modal.parameter()

        @modal.method()
        def double(self, x: int) -> tuple[int, int]:
            return x * 2, self.size

    deployed.deploy()
    try:
        found = modal.Cls.from_name("class-library", "Model")
        assert not found.is_hydrated
        assert found(size=7).double.remote(2) == (4, 7)
        assert found.is_hydrated and found.object_id.startswith("cs-")
        model = found(size=7)
        with pytest.raises(exception.NotFoundError, match="can't be accessed for remote classes"):
            model.other  # noqa: B018
        with pytest.raises(exception.ExecutionError, match="its code is not here"):
            model.double.local(2)
        with pytest.raises(exception.InvalidError, match="Missing required parameter of Model: size"):
            found().double.remote(1)
        with pytest.raises(TypeError, match="Expected int, got str"):
            found(size="7").double.remote(1)
        unhydrated = modal.Cls.from_name("class-library", "Model")(size=1)
        with pytest.raises(exception.NotFoundError, match="has no method 'nothing'"):
            unhydrated.nothing.remote()
        with pytest.raises(exception.NotFoundError, match="has no class 'Other': its classes are Model"):
            modal.Cls.from_name("class-library", "Other").hydrate()
        with pytest.warns(DeprecationError, match=r"Cls.lookup is deprecated"):
            assert modal.Cls.lookup("class-library", "Model").is_hydrated
        with pytest.warns(DeprecationError, match="'tag' of Cls.from_name"):
            modal.Cls.from_name("class-library", tag="Model")
        with pytest.raises(exception.NotFoundError, match=r"use Cls.from_name\('class-library', 'Model'\)"):
            modal.Function.from_name("class-library", "Model.double").remote(1)
    finally:
        live.request("app.stop", app_id=deployed.app_id)


def test_the_order_of_a_containers_life(live: Live, tmp_path: Path) -> None:
    path = str(tmp_path / "order")

    def mark(word: str) -> None:
        with open(path, "a") as file:
            file.write(word + "\n")

    app = modal.App("order")

    class Base:
        @modal.enter()
        def base_enter(self) -> None:
            mark("enter base")

        @modal.exit()
        def base_exit(self) -> None:
            mark("exit base")

    @app.cls(serialized=True, enable_memory_snapshot=True)
    class Model(Base):
        @modal.enter()
        async def enter(self) -> None:
            mark("enter")

        @modal.enter(snap=True)
        def snap(self) -> None:
            mark("snap")

        @modal.method()
        def run(self) -> None:
            mark("input")

        @modal.exit()
        async def failing(self) -> None:
            mark("exit that fails")
            raise ValueError("not heard")

        @modal.exit()
        def last(self) -> None:
            mark("exit")

    with app.run():
        Model().run.remote()
        Model().run.remote()
    lines = until(lambda: (found := Path(path).read_text().split("\n")[:-1]) and len(found) == 8 and found)
    assert lines == ["snap", "enter base", "enter", "input", "input", "exit base", "exit that fails", "exit"]


def test_exit_hooks_run_at_sigterm(live: Live, tmp_path: Path) -> None:
    path = tmp_path / "ended"
    app = modal.App("sigterm")

    @app.cls(serialized=True)
    class Model:
        @modal.method()
        def pid(self) -> int:
            import os

            return os.getpid()

        @modal.exit()
        def bye(self) -> None:
            path.write_text("bye")

    with app.run():
        os.kill(Model().pid.remote(), 15)
        until(path.exists, what="the exit hook")


def test_a_failing_hook_is_the_callers_exception_with_its_traceback(live: Live) -> None:
    app = modal.App("init-failure")

    @app.cls(serialized=True)
    class Model:
        @modal.enter()
        def load_weights(self) -> None:
            raise FileNotFoundError("no weights")

        @modal.method()
        def run(self) -> None: ...

    with app.run(), pytest.raises(FileNotFoundError, match="no weights") as caught:
        Model().run.remote()
    assert any(entry.name == "load_weights" for entry in caught.traceback)


def test_build_hooks_run_once_per_node(live: Live, tmp_path: Path) -> None:
    path = str(tmp_path / "built")

    def mark(word: str) -> None:
        with open(path, "a") as file:
            file.write(word + "\n")

    # Another class than at an earlier run of this test, whose build this node remembers.
    app = modal.App(new_id("ap"))
    with pytest.warns(DeprecationError, match=r"@modal.build is deprecated"):

        @app.cls(serialized=True, single_use_containers=True)
        class Model:
            @modal.build()
            def download(self) -> None:
                mark("build")

            @modal.method()
            def run(self) -> int:
                import os

                return os.getpid()

    with app.run():
        assert Model().run.remote() != Model().run.remote()
    assert Path(path).read_text() == "build\n"


def test_parameters_follow_a_deployment(live: Live) -> None:
    found = modal.Cls.from_name("class-again", "Model")
    for version in (1, 2):
        app = modal.App("class-again")

        @app.cls(serialized=True, env={"VERSION": str(version)})
        class Model:
            size: int = modal.parameter()

            @modal.method()
            def version(self) -> tuple[str, int]:
                import os

                return os.environ["VERSION"], self.size

        app.deploy()
        assert found(size=3).version.remote() == (str(version), 3)
    live.request("app.stop", app_id=app.app_id)


def test_containers_are_settled_for_an_instance_not_for_a_method(app: modal.App) -> None:
    counter = app.registered_classes["Counter"](start=77)
    counter.update_autoscaler(min_containers=1, max_containers=1)
    with pytest.warns(DeprecationError, match="is now called 'update_autoscaler"):
        counter.keep_warm(0)
    with pytest.raises(exception.InvalidError, match="shares its containers"):
        counter.add.keep_warm(1)
    with pytest.raises(exception.InvalidError, match="shares its containers"):
        counter.add.update_autoscaler(min_containers=1)


def test_a_class_derived_from_a_decorated_one(live: Live) -> None:
    app = modal.App("derived")

    @app.cls(serialized=True)
    class Base:
        @modal.method()
        def name(self) -> str:
            return type(self).__name__

    @app.cls(serialized=True)
    class Derived(Base):
        pass

    with app.run():
        assert (Base().name.remote(), Derived().name.remote()) == ("Base", "Derived")


def test_a_method_runs_from_the_command_line(live: Live) -> None:
    script = live.write(
        "model_script.py",
        """
        import modal

        app = modal.App("model-script")

        @app.cls()
        class Model:
            label: str = modal.parameter()
            size: int = modal.parameter(default=3)

            @modal.method()
            def predict(self, x: float, times: int = 1) -> str:
                return f"{self.label} {self.size} {x * times}"

        @app.cls()
        class Old:
            def __init__(self, start: int, step: int = 1) -> None:
                self.start = start + step

            @modal.method()
            def get(self, step_back: bool = False) -> str:
                return str(-self.start if step_back else self.start)

        Limited = Model.with_options(env={"A": "1"})
        """,
    )
    out = live.folder / "out"

    def run(name: str, *flags: str) -> str:
        done = live.cli("run", "-q", "-w", str(out), f"{script}::{name}", *flags)
        assert done.returncode == 0, done.stderr
        return out.read_text()

    assert run("Model.predict", "--label", "a", "--x", "2.5", "--times", "2") == "a 3 5.0"
    assert run("app.Old.get", "--start", "4", "--step-back") == "-5"
    assert run("Old", "--start", "1") == "2"
    assert run("Limited.predict", "--label", "b", "--x", "1", "--size", "9") == "b 9 1.0"
    shown = live.cli("run", f"{script}::Model.predict", "--help").stdout
    assert "--label" in shown and "--x" in shown and "[required]" in shown
    many = live.cli("run", str(script))
    assert many.returncode == 1 and "Model.predict / app.Model.predict" in many.stderr


def test_output_is_named_after_the_method_that_prints(live: Live) -> None:
    script = live.write(
        "printing.py",
        """
        import modal

        app = modal.App("printing")

        @app.cls()
        class Model:
            @modal.enter()
            def begin(self):
                print("from the hook")

            @modal.method()
            def one(self):
                print("from one")

            @modal.method()
            def two(self):
                print("from two")

        @app.local_entrypoint()
        def main():
            Model().one.remote()
            Model().two.remote()
        """,
    )
    done = live.cli("run", str(script))
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "| from" in line]
    assert [line.strip() for line in lines] == [
        "Model | from the hook",
        "Model.one | from one",
        "Model.two | from two",
    ]
