"""A Function is looked at as the function that it was made of."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import modal_nomad as modal

app = modal.App("looked-at")


@app.function()
def scale(x: int, by: float = 2.0, *, label: str = "") -> str:
    """Scale x."""
    return f"{label}{x * by}"


def test_signature_docstring_and_source_are_the_functions_own() -> None:
    assert str(inspect.signature(scale)) == "(x: 'int', by: 'float' = 2.0, *, label: 'str' = '') -> 'str'"
    assert inspect.getdoc(scale) == "Scale x."
    assert 'return f"{label}{x * by}"' in inspect.getsource(scale.get_raw_f())


@pytest.mark.parametrize("parameters", [([int], str), ([int], str, str), (..., Any)])
def test_annotations_that_are_evaluated(parameters: Any) -> None:
    assert modal.Function[parameters].__origin__ is modal.Function


def test_include_takes_apps_alone() -> None:
    with pytest.raises(modal.exception.InvalidError, match="takes another App, not 3"):
        app.include(3)  # type: ignore[arg-type]
