"""What the decorators of classes and functions refuse where they stand, and what they leave behind."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import modal_nomad as modal
from modal_nomad._class_info import class_info
from modal_nomad._partial_function import BUILD, ENTER, EXIT, SNAP, PartialFunction
from modal_nomad.exception import DeprecationError, InvalidError


def _names(user_cls: type, role: str) -> list[str]:
    return [hook.name for hook in class_info(user_cls).hooks[role]]


@pytest.mark.parametrize("word", ["method", "enter", "exit", "build", "batched", "concurrent"])
def test_parentheses_that_were_forgotten(word: str) -> None:
    options: dict[str, Any] = {
        "batched": {"max_batch_size": 1, "wait_ms": 1},
        "concurrent": {"max_inputs": 1},
    }
    with pytest.raises(InvalidError, match=rf"Did you forget parentheses\? Suggestion: `@modal.{word}\(\)`"):
        getattr(modal, word)(lambda self: None, **options.get(word, {}))


def test_parameters_are_given_by_name() -> None:
    with pytest.raises(InvalidError, match="takes its parameters by name"):
        modal.enter(True)


def test_lifecycle_and_method_cannot_be_combined() -> None:
    for first, second in ((modal.enter(), modal.method()), (modal.method(), modal.exit())):
        with pytest.raises(InvalidError, match="cannot be combined"):
            first(second(lambda self: None))


def test_a_hook_may_be_enter_and_build_at_once() -> None:
    class Model:
        with pytest.warns(DeprecationError, match=r"@modal.build is deprecated"):

            @modal.build()
            @modal.enter()
            def load(self) -> None: ...

    assert _names(Model, ENTER) == _names(Model, BUILD) == ["load"]


@pytest.mark.parametrize("word", ["enter", "exit"])
def test_hooks_take_nothing_and_yield_nothing(word: str) -> None:
    with pytest.raises(InvalidError, match="takes no arguments besides self"):
        getattr(modal, word)()(lambda self, x: None)

    def hook(self: Any) -> Any:
        yield 1

    with pytest.raises(InvalidError, match="generator function"):
        getattr(modal, word)()(hook)


def test_an_exit_hook_of_older_code_takes_the_exception() -> None:
    class Model:
        @modal.exit()
        def bye(self, kind: Any, error: Any, trace: Any) -> None: ...

    assert _names(Model, EXIT) == ["bye"]


def test_a_hook_cannot_be_batched_or_concurrent() -> None:
    with pytest.raises(InvalidError, match="cannot be batched or concurrent"):
        modal.enter()(modal.concurrent(max_inputs=2)(lambda self: None))
    with pytest.raises(InvalidError, match="cannot be batched or concurrent"):
        modal.concurrent(max_inputs=2)(modal.enter()(lambda self: None))


@pytest.mark.parametrize("target", [staticmethod(lambda: None), classmethod(lambda cls: None), int, 3])
def test_what_a_method_is_not(target: Any) -> None:
    with pytest.raises(InvalidError):
        modal.method()(target)


def test_decorators_stand_below_those_of_the_app() -> None:
    app = modal.App()
    function = app.function(serialized=True)(lambda: 1)
    with pytest.raises(InvalidError, match=r"must stand below @app.function\(\)"):
        modal.concurrent(max_inputs=2)(function)
    with pytest.raises(InvalidError, match=r"@app.cls\(\) decorates the class"):
        app.function(serialized=True)(modal.method()(lambda self: 1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch_size": 0, "wait_ms": 1},
        {"max_batch_size": 1001, "wait_ms": 1},
        {"max_batch_size": 2.0, "wait_ms": 1},
        {"max_batch_size": 2, "wait_ms": -1},
        {"max_batch_size": 2, "wait_ms": 600_001},
    ],
)
def test_batches_have_bounds(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidError, match="give a whole number"):
        modal.batched(**options)


def test_batched_functions_have_no_defaults_and_do_not_yield() -> None:
    with pytest.raises(InvalidError, match="default arguments; leave out that of 'y'"):
        modal.batched(max_batch_size=2, wait_ms=1)(lambda x, y=1: [x])

    def items(xs: Any) -> Any:
        yield xs

    with pytest.raises(InvalidError, match="cannot be batched"):
        modal.batched(max_batch_size=2, wait_ms=1)(items)


@pytest.mark.parametrize("options", [{"max_inputs": 0}, {"max_inputs": 2, "target_inputs": 3}])
def test_concurrency_has_bounds(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidError):
        modal.concurrent(**options)


def test_decorators_of_a_function_become_its_options() -> None:
    app = modal.App()

    @app.function(serialized=True, name="f")
    @modal.batched(max_batch_size=8, wait_ms=20)
    @modal.concurrent(max_inputs=3, target_inputs=2)
    def f(xs: list[int]) -> list[int]:
        return xs

    options = app.registered_functions["f"]._options
    assert options is not None
    assert (options.max_concurrent_inputs, options.target_concurrent_inputs) == (3, 2)
    assert (options.batch_max_size, options.batch_wait_ms) == (8, 20)
    assert f.local([1]) == [1]
    assert inspect.isfunction(f.get_raw_f())


def test_a_partial_function_outside_of_an_app_says_so() -> None:
    partial = modal.method()(lambda self: 1)
    assert isinstance(partial, PartialFunction)
    with pytest.raises(InvalidError, match=r"stands in no App: decorate its class with @app.cls\(\)"):
        partial(1)


def test_an_undecorated_class_is_a_plain_class() -> None:
    class Model:
        @modal.enter()
        def load(self) -> None:
            self.x = 1

        @modal.method()
        def get(self, y: int) -> int:
            return self.x + y

    model: Any = Model()
    model.load()
    assert model.get(2) == 3


def test_hooks_are_in_order_of_definition_base_class_first() -> None:
    class Base:
        @modal.enter(snap=True)
        def a(self) -> None: ...

        @modal.enter()
        def b(self) -> None: ...

        @modal.method()
        def run(self) -> str:
            return "base"

    class Middle(Base):
        @modal.enter()
        def c(self) -> None: ...

    class Model(Middle):
        @modal.enter()
        def b(self) -> None: ...

        @modal.exit()
        def d(self) -> None: ...

        def run(self) -> str:  # type: ignore[override]
            return "derived"

    assert _names(Model, SNAP) == ["a"]
    assert _names(Model, ENTER) == ["b", "c"]
    assert _names(Model, EXIT) == ["d"]
    run = class_info(Model).methods["run"]
    assert run.raw_f(Model()) == "derived", "a plain override keeps the role"


def test_a_batched_method_is_the_only_one() -> None:
    class Model:
        @modal.batched(max_batch_size=2, wait_ms=1)
        def a(self, xs: Any) -> Any: ...

        @modal.method()
        def b(self) -> None: ...

    with pytest.raises(InvalidError, match="the batched method a and others"):
        class_info(Model)


def test_methods_share_their_containers_concurrency() -> None:
    app = modal.App()
    with pytest.raises(InvalidError, match=r"differ in @modal.concurrent"):

        @app.cls(serialized=True)
        class Model:
            @modal.method()
            @modal.concurrent(max_inputs=2)
            def a(self) -> None: ...

            @modal.method()
            @modal.concurrent(max_inputs=3)
            def b(self) -> None: ...

    with pytest.raises(InvalidError, match=r"add @modal.method\(\)"):

        @app.cls(serialized=True)
        class Other:
            @modal.concurrent(max_inputs=2)
            def a(self) -> None: ...


def test_concurrent_stands_on_the_class_as_well() -> None:
    app = modal.App()

    @app.cls(serialized=True)
    @modal.concurrent(max_inputs=5)
    class Model:
        @modal.method()
        def a(self) -> None: ...

    options = app.registered_functions["Model.*"]._options
    assert options is not None and options.max_concurrent_inputs == 5


def test_keep_warm_of_a_method_is_the_classs_floor() -> None:
    app = modal.App()
    with pytest.warns(DeprecationError, match="'keep_warm' of @modal.method"):

        @app.cls(serialized=True)
        class Model:
            @modal.method(keep_warm=2)
            def a(self) -> None: ...

    options = app.registered_functions["Model.*"]._options
    assert options is not None and options.min_containers == 2


def test_snapshot_hooks_need_the_option() -> None:
    app = modal.App()

    class Model:
        @modal.enter(snap=True)
        def load(self) -> None: ...

    with pytest.raises(InvalidError, match="enable_memory_snapshot=True"):
        app.cls(serialized=True)(Model)
    app.cls(serialized=True, enable_memory_snapshot=True)(Model)


def test_the_old_name_of_concurrency_warns() -> None:
    app = modal.App()
    with pytest.warns(DeprecationError, match=r"@modal.concurrent\(max_inputs=...\)"):
        app.function(serialized=True, name="f", allow_concurrent_inputs=7)(lambda: 1)
    options = app.registered_functions["f"]._options
    assert options is not None and options.max_concurrent_inputs == 7
