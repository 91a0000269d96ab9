"""What an App says of itself, and options that a run honours or takes, with real containers."""

from __future__ import annotations

import os
from typing import Any

import pytest
from conftest import Live, until

import modal_nomad as modal
from modal_nomad import exception
from modal_nomad.call_graph import InputInfo, InputStatus


def test_what_an_app_says_of_itself_before_during_and_after_a_run(live: Live) -> None:
    image, other_image = modal.Image.debian_slim().env({"WHICH": "one"}), modal.Image.debian_slim()
    app, other = modal.App("rows-one", image=image), modal.App("rows-two", image=other_image)

    @app.function(serialized=True)
    def first() -> str:
        return os.environ["WHICH"]

    @app.cls(serialized=True)
    class Model:
        @modal.method()
        def second(self) -> str:
            return os.environ.get("WHICH", "none")

    @other.function(serialized=True, env={"MORE": "more"})
    def third() -> tuple[str, str]:
        return os.environ["MORE"], os.environ.get("WHICH", "none")

    @app.local_entrypoint()
    def main() -> None: ...

    app.include(other)
    assert (app.name, app.description, app.app_id, app.is_interactive) == (
        "rows-one",
        "rows-one",
        None,
        False,
    )
    assert app.image is image
    assert set(app.registered_functions) == {"first", "Model.*", "third"}
    assert set(app.registered_classes) == {"Model"} and set(app.registered_entrypoints) == {"main"}
    assert {"first", "Model", "third"} <= set(app.indexed_objects)
    with pytest.raises(exception.ExecutionError, match="hydrated"):
        first.remote()

    app.set_description("rows of an App")
    assert app.description == "rows of an App"
    with pytest.warns(exception.DeprecationError, match="show_progress"):
        running = app.run(show_progress=False, name="this one run")
        with running as given:
            assert given is app and not app.is_interactive
            app_id = app.app_id
            assert app_id is not None and app_id.startswith("ap-")
            found = [x for x in live.request("app.list")["apps"] if x["app_id"] == app_id]
            assert [x["description"] for x in found] == ["this one run"]
            # Each in the image and with the options of the App that it was made in.
            assert first.remote() == "one" and Model().second.remote() == "one"
            assert third.remote() == ("more", "none")
            with pytest.raises(exception.InvalidError, match="App is already running"), app.run():
                pass
            # Ctrl-C in the block ends it, and no more.
            raise KeyboardInterrupt
    assert app.app_id == app_id
    with pytest.raises(exception.ExecutionError, match="hydrated"):
        first.remote()


def test_a_detached_app_outlives_its_client_and_another_does_not(live: Live) -> None:
    script = live.write(
        "detached.py",
        """
        import os
        import modal_nomad as modal

        one, two = modal.App("goes-on"), modal.App("goes-along")

        @one.function(serialized=True)
        def f(): ...

        @two.function(serialized=True)
        def g(): ...

        with one.run(detach=True), two.run():
            print(one.app_id, two.app_id, flush=True)
            os._exit(0)
        """,
    )
    detached, ephemeral = live.python(script).split()

    def states() -> dict[str, str]:
        return {x["app_id"]: x["state"] for x in live.request("app.list")["apps"]}

    # By the time that the one is missed, the other would be.
    until(lambda: states().get(ephemeral) in (None, "stopped"), 100)
    assert states()[detached] == "detached"
    live.request("app.stop", app_id=detached)


def test_an_app_that_runs_in_global_scope_is_refused_inside_a_container(live: Live) -> None:
    script = live.write(
        "globally.py",
        """
        import modal_nomad as modal

        app = modal.App("globally")

        @app.function()
        def f(): ...

        with app.run():
            try:
                f.remote()
            except modal.exception.InvalidError as error:
                print("refused:", error)
        """,
    )
    assert "refused: Can not run an app in global scope within a container" in live.python(script)


# Where there is one machine, these choose among nothing; they are rendered for a cluster.
PLACES: dict[str, Any] = {
    "region": ["eu", "us"],
    "cloud": "aws",
    "nonpreemptible": True,
    "ephemeral_disk": 1024,
    "cpu": (0.5, 1.0),
    "memory": (128, 4096),
}
HINTS: dict[str, Any] = {
    "allow_cross_region_volumes": True,
    "routing_region": "eu",
    "experimental_options": {"a": 1},
    "_experimental_proxy_ip": "10.0.0.1",
    "_experimental_custom_scaling_factor": 0.5,
}


def test_functions_and_classes_run_with_every_option_that_is_taken(live: Live) -> None:
    app = modal.App("options")

    @app.function(
        serialized=True,
        name="renamed",
        env={"ONE": "1"},
        timeout=60,
        startup_timeout=60,
        retries=0,
        single_use_containers=True,
        is_generator=False,
        include_source=False,
        **PLACES,
        **HINTS,
    )
    def function(x: int) -> tuple[int, str]:
        return x, os.environ["ONE"]

    @app.cls(
        serialized=True,
        env={"ONE": "2"},
        timeout=60,
        startup_timeout=60,
        retries=0,
        min_containers=0,
        max_containers=1,
        buffer_containers=0,
        scaledown_window=60,
        include_source=False,
        **PLACES,
        **HINTS,
    )
    class Model:
        @modal.method()
        def get(self, x: int) -> tuple[int, str, int]:
            import resource

            return x, os.environ["ONE"], resource.getrlimit(resource.RLIMIT_DATA)[0] >> 20

    with app.run():
        assert set(app.registered_functions) == {"renamed", "Model.*"}
        assert function.remote(1) == (1, "1")
        assert Model().get.remote(2) == (2, "2", 4096)  # type: ignore[attr-defined]
        other = Model.with_options(  # type: ignore[attr-defined]
            cpu=1.0,
            memory=(128, 2048),
            retries=1,
            timeout=50,
            env={"ONE": "3"},
            max_containers=2,
            buffer_containers=0,
            scaledown_window=30,
            region="eu",
            cloud="gcp",
        )
        assert other().get.remote(3) == (3, "3", 2048)


def test_source_is_shipped_or_not_as_asked(live: Live) -> None:
    script = live.write(
        "source.py",
        """
        import modal_nomad as modal

        app = modal.App("source", include_source=False)

        @app.function()
        def left_out(): ...

        @app.function(include_source=True)
        def sent():
            return "sent"

        @app.cls()
        class LeftOut:
            @modal.method()
            def f(self): ...

        @app.cls(include_source=True)
        class Sent:
            @modal.method()
            def f(self):
                return "sent"

        if __name__ == "__main__":
            with app.run():
                print(sent.remote(), Sent().f.remote())
                for missing in (left_out, LeftOut().f):
                    try:
                        missing.remote()
                    except Exception as error:
                        print(type(error).__name__)
        """,
    )
    out = live.python(script).split()
    assert out[:2] == ["sent", "sent"]
    # As for whoever imports a module that is not there.
    assert out[2:] == ["ModuleNotFoundError"] * 2, out


GRAPH = """
import json
import sys
import time
import modal_nomad as modal

app = modal.App("statuses")

@app.function()
def good(): ...

@app.function()
def bad():
    raise ValueError("bad")

@app.function(timeout=1)
def slow():
    time.sleep(600)

@app.function(max_containers=1)
def held():
    time.sleep(600)

@app.cls()
class Broken:
    @modal.enter()
    def enter(self):
        raise ValueError("broken")

    @modal.method()
    def f(self): ...

@app.function()
def root():
    calls = [f.spawn() for f in (good, bad, slow, held, held, Broken().f)]
    return [call.object_id for call in calls]
"""


def test_every_status_of_a_graphs_inputs(live: Live) -> None:
    done = live.cli("deploy", str(live.write("statuses.py", GRAPH)))
    assert done.returncode == 0, done.stderr
    try:
        call = modal.Function.from_name("statuses", "root").spawn()
        ids = call.get(timeout=100)
        # One of the two that wait or run for long is cancelled, the other stays.
        modal.FunctionCall.from_id(ids[4]).cancel()

        def children() -> dict[str, InputInfo]:
            (root,) = call.get_call_graph()
            assert root.status is InputStatus.SUCCESS and root.function_name == "root"
            return {child.function_call_id: child for child in root.children}

        wanted = ["SUCCESS", "FAILURE", "TIMEOUT", "PENDING", "TERMINATED", "INIT_FAILURE"]
        until(lambda: [children()[x].status.name for x in ids] == wanted, 100)
        names = ["good", "bad", "slow", "held", "held", "Broken.f"]
        assert [children()[x].function_name for x in ids] == names
        assert {x.name for x in InputStatus} == set(wanted)
    finally:
        live.cli("app", "stop", "statuses")


def test_a_restricted_function_may_use_nothing_of_modal(live: Live) -> None:
    app = modal.App("rows-restricted")

    def ask(name: str) -> str:
        import modal_nomad as modal

        try:
            return str(modal.Dict.from_name(name, create_if_missing=True).get("key"))
        except modal.exception.AuthError as error:
            return str(error)

    restricted = app.function(serialized=True, name="restricted", restrict_modal_access=True)(ask)
    free = app.function(serialized=True, name="free")(ask)

    class Holder:
        @modal.method()
        def ask(self, name: str) -> str:
            return ask(name)

    holder = app.cls(serialized=True, restrict_modal_access=True)(Holder)
    with app.run():
        assert "restrict_modal_access=True" in restricted.remote("rows-restricted")
        assert "restrict_modal_access=True" in holder().ask.remote("rows-restricted")
        assert free.remote("rows-restricted") == "None"
    modal.Dict.objects.delete("rows-restricted")
    with pytest.raises(exception.InvalidError, match="restrict_modal_access"):
        app.function(serialized=True, restrict_modal_access=1)(ask)  # type: ignore[arg-type]
