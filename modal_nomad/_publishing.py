"""What Functions are being published: their pickled code names these, and objects, instead of holding ids."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .functions import Function

_functions: ContextVar[Mapping[str, Function[..., Any]] | None] = ContextVar("published", default=None)


@contextlib.contextmanager
def publishing(functions: Mapping[str, Function[..., Any]]) -> Iterator[None]:
    """Let code that is pickled now refer to the Functions of its own App, which have no ids yet.

    Args:
        functions: those of the App, by name.
    """
    token = _functions.set(functions)
    try:
        yield
    finally:
        _functions.reset(token)


def is_publishing() -> bool:
    """Whether it is the code of Functions that is pickled."""
    return _functions.get() is not None


def is_published_with(function: Function[..., Any]) -> bool:
    """Whether the code that is pickled is of this Function's own App."""
    functions = _functions.get()
    return functions is not None and functions.get(function.tag) is function
