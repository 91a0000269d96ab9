"""Variants: with_options, with_concurrency and with_batching, on classes and on functions."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Live

import modal_nomad as modal
from modal_nomad import exception
from modal_nomad.exception import DeprecationError


def test_a_spawned_call_of_a_parametrized_class_survives_a_restart(own: Live) -> None:
    deployed = modal.App("survivor")

    @deployed.cls(serialized=True)
    class Model:
        size: int = modal.parameter()

        @modal.method()
        def run(self, path: str) -> int:
            import os
            import time

            while not os.path.exists(path):
                time.sleep(0.02)
            return self.size

    deployed.deploy()
    gate = own.folder / "gate"
    call = Model(size=5).run.spawn(str(gate))  # type: ignore[call-arg]
    own.kill()
    gate.touch()
    assert modal.FunctionCall.from_id(call.object_id).get(timeout=100) == 5


def test_options_make_containers_of_their_own(live: Live) -> None:
    app = modal.App("options")

    @app.cls(serialized=True, env={"A": "1", "B": "1"})
    class Model:
        size: int = modal.parameter(default=0)

        @modal.method()
        def look(self) -> tuple[int, str, str, int]:
            import os

            return self.size, os.environ["A"], os.environ["B"], os.getpid()

    with app.run():
        changed: Any = Model.with_options(env={"B": "2"}, timeout=50).with_options(max_containers=1)
        plain, other, sized = Model().look.remote(), changed().look.remote(), changed(size=4).look.remote()
        assert plain[:3] == (0, "1", "1") and other[:3] == (0, "1", "2") and sized[:3] == (4, "1", "2")
        assert len({plain[3], other[3], sized[3]}) == 3
        assert changed().look.remote()[3] == other[3], "the same options are the same containers"
        again: Any = Model.with_options(timeout=50, max_containers=1, env={"B": "2"})
        assert again().look.remote()[3] == other[3]


def test_options_before_any_run_and_of_a_looked_up_class(live: Live) -> None:
    app = modal.App("option-library")

    @app.cls(serialized=True)
    class Model:
        @modal.method()
        def cpus(self) -> str:
            import os

            return os.environ.get("SAID", "")

    eager: Any = Model.with_options(env={"SAID": "here"})
    app.deploy()
    try:
        assert eager().cpus.remote() == "here"
        found = modal.Cls.from_name("option-library", "Model", client=modal.Client.from_env())
        assert found.with_options(env={"SAID": "there"})().cpus.remote() == "there"
        assert found().cpus.remote() == ""
    finally:
        live.request("app.stop", app_id=app.app_id)


def test_a_class_with_other_concurrency_and_batching(live: Live) -> None:
    app = modal.App("option-batches")

    @app.cls(serialized=True)
    class Model:
        @modal.method()
        def sizes(self, xs: Any) -> Any:
            return [len(xs)] * len(xs) if isinstance(xs, list) else xs

    @app.cls(serialized=True)
    class Meeting:
        @modal.enter()
        def begin(self) -> None:
            import threading

            self.barrier = threading.Barrier(3)

        @modal.method()
        def meet(self, x: int) -> int:
            self.barrier.wait(100)
            return x

    with app.run():
        batched: Any = Model.with_batching(max_batch_size=5, wait_ms=30_000)
        assert list(batched().sizes.map(range(10))) == [5] * 10
        assert Model().sizes.remote(3) == 3
        # Each waits for the two others in the same container.
        together: Any = Meeting.with_concurrency(max_inputs=3).with_options(max_containers=1)
        assert list(together().meet.map(range(3))) == [0, 1, 2]


def test_options_of_a_function(live: Live) -> None:
    app = modal.App("function-options")

    @app.function(serialized=True, name="look")
    def look() -> str:
        import os

        return os.environ.get("SAID", "")

    @app.function(serialized=True, name="length")
    def length(xs: Any) -> Any:
        return [len(xs)] * len(xs)

    with app.run():
        assert look.with_options(env={"SAID": "yes"}).remote() == "yes"
        assert look.remote() == ""
        assert list(length.with_batching(max_batch_size=3, wait_ms=30_000).map(range(3))) == [3, 3, 3]
        assert look.with_concurrency(max_inputs=2).spawn().get(timeout=100) == ""


def test_options_that_cannot_be() -> None:
    app = modal.App("wrong-options")

    @app.cls(serialized=True)
    class Two:
        @modal.method()
        def a(self) -> None: ...

        @modal.method()
        def b(self) -> None: ...

    two: Any = Two
    with pytest.raises(exception.InvalidError, match="timeout"):
        two.with_options(timeout=-1)
    with pytest.raises(TypeError, match="has no parameter 'nonsense'"):
        two.with_options(nonsense=1)
    with pytest.raises(exception.InvalidError, match="only a class of one can be batched"):
        two.with_batching(max_batch_size=2, wait_ms=1)
    with pytest.raises(exception.InvalidError, match="max_batch_size"):
        two.with_batching(max_batch_size=0, wait_ms=1)
    with pytest.raises(exception.InvalidError, match="target_inputs"):
        two.with_concurrency(max_inputs=2, target_inputs=3)
    with pytest.warns(DeprecationError, match="'concurrency_limit' of .with_options is now called"):
        two.with_options(concurrency_limit=3)


def test_a_floor_above_the_ceiling_is_refused_at_the_first_use(live: Live) -> None:
    app = modal.App("floors")

    @app.function(serialized=True, name="one", min_containers=2)
    def one() -> int:
        return 1

    with app.run(), pytest.raises(exception.InvalidError, match="cannot be higher than max_containers"):
        one.with_options(max_containers=1).remote()


def test_options_by_position_as_older_programs_give_them() -> None:
    app = modal.App("by-position")

    @app.function(serialized=True, name="one")
    def one() -> int:
        return 1

    with pytest.warns(DeprecationError) as caught:
        old: Any = one.with_options(1.5, (64, 128), ["L4:2", "T4:2"], (), {}, 2, 30, 3, 4, 20)
    new: Any = one.with_options(
        cpu=1.5, memory=(64, 128), gpu=["L4:2", "T4:2"], retries=2, timeout=30, max_containers=3,
        scaledown_window=20,
    ).with_concurrency(max_inputs=4)  # fmt: skip
    assert old._overrides == {k: v for k, v in new._overrides.items() if k != "target_concurrent_inputs"}
    assert [str(w.message).split("'")[1] for w in caught] == [
        "concurrency_limit", "container_idle_timeout", "allow_concurrent_inputs",
    ]  # fmt: skip
    with pytest.raises(exception.InvalidError, match=r"list or tuple of Secrets"):
        one.with_options(secrets=["x"])


def test_a_malformed_variant_is_refused(live: Live) -> None:
    app = modal.App("malformed")

    @app.function(serialized=True, name="one")
    def one() -> int:
        return 1

    with app.run():
        parent = live.request("function.describe", function_id=one.object_id)
        good = {"spec": parent["spec"], "job": {"ID": f"{parent['job_id']}--1"}}
        for wrong, words in (
            ({}, "needs parameters or options"),
            ({**good, "job": {"ID": "another-job"}}, "is named after"),
            ({**good, "spec": {**parent["spec"], "name": "other"}}, "not those of one"),
            ({**good, "spec": {**parent["spec"], "timeout": -1}}, "out of bounds|above 0"),
        ):
            with pytest.raises(exception.InvalidError, match=words):
                live.request("function.bind", function_id=one.object_id, **wrong)
        with pytest.raises(exception.NotFoundError, match="fu-nothing is not known here"):
            live.request("function.bind", function_id="fu-nothing")
        assert one.remote() == 1


def test_variants_end_with_their_app(live: Live) -> None:
    app = modal.App("ending")

    @app.cls(serialized=True)
    class Model:
        size: int = modal.parameter(default=0)

        @modal.method()
        def get(self) -> int:
            return self.size

    with app.run():
        model: Any = Model.with_options(env={"A": "1"})
        one = model(size=3)
        assert one.get.remote() == 3
        variant = one.get.object_id
        assert live.request("function.describe", function_id=variant)["job_id"].count("--") == 2
    with pytest.raises(exception.NotFoundError):
        live.request("function.describe", function_id=variant)
