"""Functions of an App that run on the caller's machine."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._function_info import FunctionInfo

if TYPE_CHECKING:
    from typing import ParamSpec

    from .app import App

    P = ParamSpec("P")
else:
    P = TypeVar("P")
R = TypeVar("R")


class LocalEntrypoint(Generic[P, R]):
    """A function that ``modal-nomad run`` starts on this machine, inside a run of its App.

    Calling it calls the function itself, and starts no run.
    """

    def __init__(self, app: App, info: FunctionInfo, raw_f: Callable[P, R]) -> None:
        self._app = app
        self._info = info
        self._raw_f = raw_f
        functools.update_wrapper(self, raw_f)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._raw_f(*args, **kwargs)

    @property
    def app(self) -> App:
        """The App that it belongs to."""
        return self._app

    @property
    def info(self) -> FunctionInfo:
        """Where the function stands, and what kind it is."""
        return self._info

    def get_raw_f(self) -> Callable[P, R]:
        """Return the original function."""
        return self._raw_f

    def __repr__(self) -> str:
        return f"LocalEntrypoint({self._info.name!r})"


def called_without_parentheses(decorator: str, first: Any) -> str:
    """Return what to say when a decorator got something by position."""
    if callable(first):
        return f"Did you forget parentheses? Suggestion: `@app.{decorator}()`."
    kind = type(first).__name__.lower()
    return f"@app.{decorator} takes its parameters by name; write `@app.{decorator}({kind}={kind})`"
