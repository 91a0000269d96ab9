"""``map`` and its relatives: one function, many inputs."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import exception
from ._bridge import blocking
from ._results import blocking_results
from ._returned_exceptions import returned_exception

if TYPE_CHECKING:
    from .client import Client
    from .function_call import FunctionCall

R = TypeVar("R")


class MapMethods(Generic[R]):
    """What ``Function`` offers for many inputs; it says which Function that is, and where."""

    _method: str

    async def _plain_target(self, verb: str) -> tuple[Client, str]:
        raise NotImplementedError

    def _home(self) -> str:
        raise NotImplementedError

    @property
    def tag(self) -> str:
        raise NotImplementedError

    @blocking_results
    async def map(
        self,
        *input_iterators: Iterable[Any] | AsyncIterable[Any],
        kwargs: Mapping[str, Any] | None = None,
        order_outputs: bool = True,
        return_exceptions: bool = False,
        wrap_returned_exceptions: bool = True,
    ) -> AsyncIterator[R]:
        """Run the function on every input in parallel and yield the results.

        Inputs are drawn as results are taken, so iterators may be endless. The result is for ``for``
        and for ``async for``; in async code write ``.map.aio``.

        Args:
            input_iterators: one per positional argument; the shortest ends it. Async iterables too.
            kwargs: keyword arguments of every call.
            order_outputs: results in the order of the inputs; False yields them as they come.
            return_exceptions: yield exceptions instead of raising the first one.
            wrap_returned_exceptions: as ``UserCodeException`` (which is also what it wraps), else bare.

        Raises:
            InvalidError: for a generator function, without an iterable, or iterated without ``await``
                in async code.

        Example:
            >>> with app.run():
            ...     list(square.map([1, 2, 3]))
            [1, 4, 9]
        """
        target = await self._plain_target("map")
        rows, instant = _rows("map", input_iterators)
        failed = _failed(return_exceptions, wrap_returned_exceptions)
        total = _known_length(input_iterators)
        async for value in self._outputs(target, rows, kwargs, order_outputs, instant, failed, total):
            yield value

    @blocking_results
    async def starmap(
        self,
        input_iterator: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        kwargs: Mapping[str, Any] | None = None,
        order_outputs: bool = True,
        return_exceptions: bool = False,
        wrap_returned_exceptions: bool = True,
    ) -> AsyncIterator[R]:
        """Like ``map``, over one iterable of argument tuples.

        Example:
            >>> @app.function()
            ... def power(base: int, exponent: int) -> int:
            ...     return base**exponent
            >>> with app.run():
            ...     list(power.starmap([(2, 3), (3, 2)]))
            [8, 9]
        """
        from ._map import is_instant

        target = await self._plain_target("starmap")
        failed = _failed(return_exceptions, wrap_returned_exceptions)
        rows, instant = _tuples(input_iterator), is_instant(input_iterator)
        total = _known_length([input_iterator])
        async for value in self._outputs(target, rows, kwargs, order_outputs, instant, failed, total):
            yield value

    @blocking
    async def for_each(
        self,
        *input_iterators: Iterable[Any] | AsyncIterable[Any],
        kwargs: Mapping[str, Any] | None = None,
        ignore_exceptions: bool = False,
    ) -> None:
        """Run the function on every input, wait, and drop the results.

        Args:
            input_iterators: as for ``map``.
            kwargs: keyword arguments of every call.
            ignore_exceptions: go on when an input fails; else the first exception is raised.

        Example:
            >>> with app.run():
            ...     square.for_each(range(10))
        """
        target = await self._plain_target("for_each")
        rows, instant = _rows("for_each", input_iterators)
        failed = _failed(ignore_exceptions, False)
        total = _known_length(input_iterators)
        async for _ in self._outputs(target, rows, kwargs, False, instant, failed, total):
            pass

    @blocking
    async def spawn_map(
        self, *input_iterators: Iterable[Any] | AsyncIterable[Any], kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """Start the function on every input and return once all inputs are accepted, not done.

        The inputs are on the dispatcher's disk then: they will run, whatever is killed.

        Args:
            input_iterators: as for ``map``, but not endless.
            kwargs: keyword arguments of every call.

        Example:
            >>> with app.run():
            ...     square.spawn_map(range(10))
        """
        await self._spawned("spawn_map", input_iterators, kwargs)

    @blocking
    async def experimental_spawn_map(
        self, *input_iterators: Iterable[Any] | AsyncIterable[Any], kwargs: Mapping[str, Any] | None = None
    ) -> FunctionCall[R]:
        """As ``spawn_map``, and return the call: its results are had by ``get(index=)`` and ``iter()``.

        Example:
            >>> with app.run():
            ...     call = square.experimental_spawn_map([1, 2, 3])
            ...     call.num_inputs(), list(call.iter())
            (3, [1, 4, 9])
        """
        client, call_id = await self._spawned("experimental_spawn_map", input_iterators, kwargs)
        from .function_call import FunctionCall

        return FunctionCall._new(call_id, client, is_generator=False)

    async def _spawned(
        self, verb: str, iterables: tuple[Any, ...], kwargs: Mapping[str, Any] | None
    ) -> tuple[Client, str]:
        from ._spawn_map import spawn_inputs

        client, function_id = await self._plain_target(verb)
        rows, _ = _rows(verb, iterables)
        return client, await spawn_inputs(
            client, function_id, rows, dict(kwargs or {}), self._home(), self._method
        )

    async def _outputs(
        self,
        target: tuple[Client, str],
        inputs: Iterable[tuple[Any, ...]] | AsyncIterable[tuple[Any, ...]],
        kwargs: Mapping[str, Any] | None,
        ordered: bool,
        instant: bool,
        failed: Callable[[BaseException], Any] | None,
        total: int | None,
    ) -> AsyncIterator[Any]:
        from . import _output
        from ._map import map_outputs

        body = map_outputs(
            *target,
            inputs,
            dict(kwargs or {}),
            home=self._home(),
            method=self._method,
            order_outputs=ordered,
            instant=instant,
            failed=failed,
            progress=_output.begin(self.tag, total),
        )
        try:
            async for value in body:
                yield value
        finally:
            await body.aclose()  # type: ignore[attr-defined]


def _failed(keep: bool, wrap: bool) -> Callable[[BaseException], Any] | None:
    if not keep:
        return None
    return returned_exception if wrap else _itself


def _itself(error: BaseException) -> BaseException:
    return error


def _known_length(iterables: Iterable[Any]) -> int | None:
    """Return how many inputs there will be, where that can be known before they are drawn."""
    try:
        return min(len(iterable) for iterable in iterables)
    except TypeError:
        return None


def _rows(verb: str, iterables: tuple[Any, ...]) -> tuple[Any, bool]:
    """Return the argument tuples, and whether drawing one can never wait."""
    from ._map import is_instant

    if not iterables:
        raise exception.InvalidError(f"{verb}() needs at least one iterable of inputs")
    for iterable in iterables:
        if not isinstance(iterable, (AsyncIterable, Iterable)) and not hasattr(iterable, "__getitem__"):
            raise exception.InvalidError(
                f"{verb}() takes iterables of inputs, one per argument, and got a {type(iterable).__name__}; "
                "arguments that all inputs share go into kwargs={...}"
            )
    if any(isinstance(x, AsyncIterable) for x in iterables):
        return _zip_async(iterables), False
    return zip(*iterables), all(map(is_instant, iterables))  # noqa: B905 - the shortest ends it


async def _zip_async(iterables: tuple[Any, ...]) -> AsyncIterator[tuple[Any, ...]]:
    iterators = [x.__aiter__() if isinstance(x, AsyncIterable) else iter(x) for x in iterables]
    while True:
        row = []
        for iterator in iterators:
            try:
                if isinstance(iterator, AsyncIterator):
                    row.append(await iterator.__anext__())
                else:
                    row.append(next(iterator))
            except (StopIteration, StopAsyncIteration):
                return
        yield tuple(row)


def _tuples(iterable: Any) -> Any:
    if isinstance(iterable, AsyncIterable):
        return _tuples_async(iterable)
    return map(tuple, iterable)


async def _tuples_async(iterable: AsyncIterable[Any]) -> AsyncIterator[tuple[Any, ...]]:
    async for row in iterable:
        yield tuple(row)
