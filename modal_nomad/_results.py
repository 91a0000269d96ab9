"""What ``map`` and ``starmap`` give: an iterator for ``for`` and ``async for``; it runs once drawn from."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from ._bridge import AsyncOrSyncIterable, _GenFace
from .exception import InvalidError

if TYPE_CHECKING:
    from typing import Concatenate, ParamSpec

    from ._bridge import _GenMethod

    P = ParamSpec("P")
    S = TypeVar("S")
T = TypeVar("T")


class Results(AsyncOrSyncIterable[T]):
    """The results of one ``map``; nothing is run before the first one is asked for.

    Args:
        body: yields them.
        name: the method that made it, for messages.

    Raises:
        InvalidError: when iterated without ``await`` in async code, where it would stop the loop.
    """

    def __init__(self, body: Any, name: str) -> None:
        super().__init__(body)
        self._name = name
        self._started = False

    def _sync_items(self) -> Iterator[T]:
        if self._plain is None:
            self._started = True
            _refuse_in_async(self._name)
        return super()._sync_items()

    def _async_items(self) -> AsyncIterator[T]:
        self._started = True
        return super()._async_items()

    def __iter__(self) -> Iterator[T]:
        # The generator itself: another Python frame per result would be felt at 100,000 a second.
        return self._sync_items()

    def __aiter__(self) -> AsyncIterator[T]:
        return self._async_items()

    def __del__(self) -> None:
        if not self._started:
            sys.stderr.write(
                f"Warning: the results of a call of .{self._name}() were never taken, so nothing was run. "
                f"Iterate over them, for instance in a for-loop, or use .for_each() or .spawn_map().\n"
            )


def _refuse_in_async(name: str) -> None:
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    # A notebook runs every cell inside its kernel's loop, and its cells may block.
    if "ipykernel" in sys.modules:
        return
    raise InvalidError(
        f"`.{name}` cannot be iterated synchronously in async code: "
        f"write `async for result in function.{name}.aio(...)`"
    )


class _ResultsFace(_GenFace):
    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return Results(self._function(*args, **kwargs), self._function.__name__)

    aio = __call__


if TYPE_CHECKING:

    def blocking_results(function: Callable[Concatenate[S, P], AsyncIterator[T]]) -> _GenMethod[S, P, T]: ...

else:

    def blocking_results(function):
        """Make an async generator method one that gives ``Results``, with an ``.aio`` twin."""
        return _ResultsFace(function)
