"""Cls and its instances without a server: registration, options, pickles, local calls."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import modal_nomad as modal
from modal_nomad import runner
from modal_nomad.exception import ExecutionError, InvalidError
from modal_nomad.wire.serialization import dumps, loads
from modal_nomad.wire.spec import FunctionSpec


def _app() -> tuple[modal.App, Any]:
    app = modal.App("one")

    @app.cls(serialized=True, cpu=2, retries=3)
    class Model:
        size: int = modal.parameter(default=2)

        @modal.enter()
        async def begin(self) -> None:
            self.begun = True

        @modal.method()
        def get(self) -> tuple[int, bool]:
            return self.size, self.begun

        @modal.method()
        async def aget(self) -> tuple[int, bool]:
            return self.size, self.begun

        @modal.method()
        def items(self, n: int) -> Any:
            yield from range(n)

    return app, Model


def test_the_parameters_are_those_of_function() -> None:
    function = inspect.signature(modal.App.function).parameters
    cls = inspect.signature(modal.App.cls).parameters
    assert set(function) - set(cls) == {"name", "is_generator", "schedule"} and set(cls) <= set(function)


def test_a_class_is_registered_with_its_one_function() -> None:
    app, model = _app()
    assert app.registered_classes == {"Model": model} and list(app.registered_functions) == ["Model.*"]
    assert app["Model"] is model and "Model" in app and app.indexed_objects["Model"] is model
    (spec,), _ = runner.function_specs(app, "one")
    assert spec.is_class and list(spec.methods) == ["get", "aget", "items"]
    assert spec.methods["aget"].is_async and spec.methods["items"].is_generator
    assert spec.cpu == (2.0, None) and spec.parameters[0].default == 2 and not spec.needs_parameters
    assert FunctionSpec.from_dict(spec.to_dict()) == spec


def test_include_brings_classes_along() -> None:
    app, model = _app()
    other = modal.App("two")
    other.include(app)
    assert other.registered_classes == {"Model": model}


def test_a_function_and_a_class_of_one_name() -> None:
    app, _ = _app()
    with pytest.raises(InvalidError, match="has a class named Model"):
        app.function(serialized=True, name="Model")(lambda: 1)
    app.function(serialized=True, name="Other")(lambda: 1)
    with pytest.raises(InvalidError, match="has a function named Other"):
        app.cls(serialized=True)(type("Other", (), {}))


@pytest.mark.parametrize("target", [lambda: 1, 3, None])
def test_cls_decorates_classes(target: Any) -> None:
    with pytest.raises(TypeError, match="it decorates classes"):
        modal.App().cls(serialized=True)(target)


def test_wrong_uses_of_cls() -> None:
    app, model = _app()
    with pytest.raises(InvalidError, match="decorated twice"):
        app.cls(serialized=True)(model)
    with pytest.raises(InvalidError, match=r"Did you forget parentheses\? Suggestion: `@app.cls\(\)`"):
        app.cls(type("Plain", (), {}))
    with pytest.raises(InvalidError, match=r"not in global scope; .* use cls\(serialized=True\)"):
        app.cls()(type("Local", (), {"__qualname__": "f.<locals>.Local"}))
    with pytest.raises(InvalidError, match="has no constructor"):
        modal.Cls()

    class Both:
        a: int = modal.parameter(default=1)

        def __init__(self) -> None: ...

    with pytest.raises(InvalidError, match=r"both __init__ and modal.parameter\(\)"):
        app.cls(serialized=True)(Both)


def test_local_calls_run_the_hooks_once() -> None:
    _, model = _app()
    one = model(size=5)
    assert one.get.local() == (5, True)
    assert list(one.items.local(3)) == [0, 1, 2]


async def test_local_calls_in_async_code() -> None:
    _, model = _app()
    assert await model().aget.local() == (2, True)
    assert model(size=1).get.local() == (1, True)


def test_nothing_runs_before_a_run() -> None:
    _, model = _app()
    with pytest.raises(ExecutionError, match="is not hydrated"):
        model().get.remote()
    assert not model.is_hydrated and not model().get.is_hydrated
    with pytest.raises(InvalidError, match="cannot be passed on before it is hydrated"):
        dumps(model())


def test_attributes_of_the_class_itself() -> None:
    app = modal.App()

    @app.cls(serialized=True)
    class Model:
        VERSION = 3

        @staticmethod
        def plain(x: int) -> int:
            return x + 1

    assert Model.VERSION == 3 and Model.plain(1) == 2
    assert Model.__name__ == "Model"


def test_a_looked_up_class_asks_nothing() -> None:
    found = modal.Cls.from_name("app", "Model", environment_name="prod")
    again = loads(dumps(found))
    assert isinstance(again, modal.Cls) and repr(again) == "Cls('Model', not hydrated)"
    assert repr(found(size=3)) == "Model(size=3)"
    with pytest.raises(InvalidError, match="needs the name of a class"):
        modal.Cls.from_name("app")


def test_own_constructors_run_late_and_once() -> None:
    app = modal.App()
    made: list[int] = []

    @app.cls(serialized=True)
    class Model:
        def __init__(self, x: int) -> None:
            made.append(x)
            self.x = x

    one: Any = Model(4)
    assert made == []
    assert one.x == 4 and one.x == 4 and made == [4]


def test_gpus_and_positional_options() -> None:
    _, model = _app()
    overrides = model.with_options(3, (100, 200), "A100:2")._service._overrides
    assert tuple(overrides["cpu"]) == (3.0, None) and tuple(overrides["memory"]) == (100, 200)
    assert overrides["gpu"]
    with pytest.raises(InvalidError, match="has the options of its class"):
        model().get.with_options(cpu=1)


def test_options_of_a_class_are_those_of_its_containers() -> None:
    app = modal.App("options", include_source=True)
    app.cls(
        serialized=True,
        env={"A": "1"},
        min_containers=1,
        max_containers=4,
        buffer_containers=2,
        scaledown_window=9,
        startup_timeout=70,
        nonpreemptible=True,
        single_use_containers=True,
        include_source=False,
    )(type("Model", (), {"__qualname__": "f.<locals>.Model"}))
    (spec,), _ = runner.function_specs(app, "options")
    assert spec.env["A"] == "1" and spec.code_bundle is None
    assert (spec.min_containers, spec.max_containers, spec.buffer_containers) == (1, 4, 2)
    assert (spec.scaledown_window, spec.startup_timeout) == (9.0, 70.0)
    assert spec.nonpreemptible and spec.single_use_containers


def test_options_that_differ_are_fields_of_the_specification() -> None:
    _, model = _app()
    changed = model.with_options(
        env={"A": "1", "B": None},
        max_containers=3,
        buffer_containers=2,
        scaledown_window=5,
        timeout=7,
        retries=2,
        region=["eu", "us"],
        cloud="aws",
    )
    overrides = changed._service._overrides
    assert overrides["env"] == {"A": "1"}
    assert (overrides["max_containers"], overrides["buffer_containers"]) == (3, 2)
    assert (overrides["scaledown_window"], overrides["timeout"]) == (5.0, 7.0)
    assert overrides["retries"]["max_retries"] == 2 and overrides["cloud"] == "aws"
    assert list(overrides["region"]) == ["eu", "us"]
    stacked = changed.with_options(env={"C": "2"}, timeout=8)._service
    assert stacked._overrides["env"] == {"A": "1", "C": "2"} and stacked._overrides["timeout"] == 8.0
    assert stacked._parent is model._service, "one variant, not one of another"
