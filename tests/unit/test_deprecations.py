"""Old names for new: both work, and the old one's warning names the new one and the user's own line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest

import modal_nomad as modal
from modal_nomad.exception import DeprecationError

RENAMED = [
    ("keep_warm", "min_containers", 2),
    ("concurrency_limit", "max_containers", 3),
    ("container_idle_timeout", "scaledown_window", 20),
    ("_experimental_buffer_containers", "buffer_containers", 1),
]


def here() -> int:
    """The line of the caller."""
    return sys._getframe(1).f_lineno


def warned(action: Callable[[], Any]) -> warnings.WarningMessage:
    """Do something that warns once, and return its warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    (message,) = caught
    assert message.category is DeprecationError
    return message


@pytest.mark.parametrize(("old", "new", "value"), RENAMED)
def test_an_old_parameter_works_as_the_new_one(old: str, new: str, value: int) -> None:
    def define(name: str) -> Any:
        app = modal.App("old")
        app.function(serialized=True, name="f", **{name: value})(lambda: 1)
        return getattr(app["f"]._options, new)

    results: list[Any] = []
    message = warned(lambda: results.append(define(old)))
    assert repr(old) in str(message.message) and repr(new) in str(message.message)
    assert results == [value] == [define(new)]


def test_the_warning_points_at_the_line_of_the_decorator() -> None:
    app = modal.App("line")
    lines: list[int] = []

    def define() -> None:
        lines.append(here() + 2)

        @app.function(serialized=True, name="f", keep_warm=1)
        def f() -> None: ...

    message = warned(define)
    assert (message.filename, message.lineno) == (__file__, lines[0])


def test_the_warning_points_at_the_line_in_a_class_body_and_in_a_helper() -> None:
    app = modal.App("deep")
    lines: list[int] = []

    def helper(**options: Any) -> Any:
        lines.append(here() + 1)
        return app.function(serialized=True, name="g", **options)(lambda: 1)

    message = warned(lambda: helper(concurrency_limit=1))
    assert (message.filename, message.lineno) == (__file__, lines[0])


def test_max_inputs_of_one() -> None:
    app = modal.App("inputs")
    lines: list[int] = []

    def define() -> None:
        lines.append(here() + 1)
        app.function(serialized=True, name="f", max_inputs=1)(lambda: 1)

    message = warned(define)
    assert "single_use_containers=True" in str(message.message)
    assert (message.filename, message.lineno) == (__file__, lines[0])
    assert app["f"]._options.single_use_containers


@pytest.mark.parametrize(("old", "new", "value"), RENAMED)
def test_both_names_at_once_are_refused(old: str, new: str, value: int) -> None:
    app = modal.App("both")
    with pytest.raises(modal.exception.InvalidError, match=f"{old}.*{new}"):
        app.function(serialized=True, **{old: value, new: value})(lambda: 1)


def test_new_names_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = {new: value for _, new, value in RENAMED}
        modal.App("new").function(serialized=True, single_use_containers=True, **options)(lambda: 1)


def test_the_category_is_a_warning_that_is_shown_by_default() -> None:
    assert issubclass(DeprecationError, UserWarning)
    assert not issubclass(DeprecationError, DeprecationWarning)
