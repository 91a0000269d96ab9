"""Parameters by their old names."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ._options import warn_deprecated
from .exception import InvalidError

if TYPE_CHECKING:
    from typing import ParamSpec

    P = ParamSpec("P")
R = TypeVar("R")


def renamed(old: str, new: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Take a keyword by its old name as well, with a warning."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                where = function.__qualname__
                if new in kwargs or args:
                    raise InvalidError(f"{where} got both {old!r} and its newer name {new!r}; keep {new!r}")
                warn_deprecated(f"{old!r} of {where} is now called {new!r}")
                kwargs[new] = kwargs.pop(old)
            return cast(Any, function)(*args, **kwargs)

        return cast("Callable[P, R]", call)

    return decorate
