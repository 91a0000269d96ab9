"""A call that was spawned: its results can be fetched later, from anywhere."""

from __future__ import annotations

import builtins
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from . import exception
from ._bridge import blocking, blocking_function, blocking_gen, io
from ._invocation import decode_output
from ._older_names import Resolvable
from .wire import frames

if TYPE_CHECKING:
    from .call_graph import InputInfo
    from .client import Client

T = TypeVar("T")

_POLL_SECONDS = 20.0
"""How long one request waits for results: a reader who goes away leaves nothing behind for longer."""


class FunctionCall(Resolvable, Generic[T]):
    """A handle on a spawned call; keep ``object_id`` to find it again.

    Example:
        >>> with app.run():
        ...     call = square.spawn(3)
        ...     call.get(timeout=60)
        9
    """

    _call_id: str
    _client: Client | None
    _is_generator: bool | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise exception.InvalidError(
            "FunctionCall has no constructor; Function.spawn() and FunctionCall.from_id() make them"
        )

    @classmethod
    def _new(
        cls, call_id: str, client: Client | None = None, is_generator: bool | None = None
    ) -> FunctionCall[Any]:
        call = object.__new__(cls)
        call._call_id, call._client, call._is_generator = call_id, client, is_generator
        return cast("FunctionCall[Any]", call)

    def __repr__(self) -> str:
        return f"FunctionCall({self._call_id!r})"

    def __reduce__(self) -> Any:
        return _by_id, (self._call_id, self._is_generator)

    @property
    def object_id(self) -> str:
        """The call's id, ``fc-…``."""
        return self._call_id

    @property
    def is_hydrated(self) -> bool:
        """Always true: a call is known by its id from the beginning."""
        return True

    @staticmethod
    @blocking_function
    async def from_id(
        function_call_id: str, client: Client | None = None, is_generator: bool = False
    ) -> FunctionCall[Any]:
        """Return the handle of a call by its id; nothing is asked of the server until it is used.

        Args:
            function_call_id: ``fc-…``.
            client: the connection, or the configured one.
            is_generator: whether the function yields; where it is not said, the server is asked.

        Example:
            >>> with app.run():
            ...     call_id = square.spawn(3).object_id
            ...     FunctionCall.from_id(call_id).get()
            9
        """
        return FunctionCall._new(function_call_id, client, is_generator or None)

    @blocking
    async def hydrate(self, client: Client | None = None) -> FunctionCall[T]:
        """Find the call on the server now and return it.

        Raises:
            NotFoundError: there is no such call.
            OutputExpiredError: its results are no longer kept.

        Example:
            >>> FunctionCall.from_id("fc-nowhere").hydrate()
            Traceback (most recent call last):
            ...
            modal_nomad.exception.NotFoundError: ...
        """
        if client is not None:
            self._client = client
        await self._info()
        return self

    @blocking
    async def get(self, timeout: float | None = None, *, index: int = 0) -> T:
        """Wait for the result and return it; it can be fetched again.

        Args:
            timeout: seconds; 0 asks without waiting, None waits for ever.
            index: of which input, in a call of several.

        Raises:
            TimeoutError: the builtin one: there is no result yet.
            OutputExpiredError: the result is no longer kept.
            NotFoundError: there is no such call.
            InvalidError: the function yields: use ``get_gen``.

        Example:
            >>> with app.run():
            ...     square.spawn(3).get(timeout=60)
            9
        """
        client = await self._plain()
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _POLL_SECONDS if deadline is None else deadline - time.monotonic()
            args = {"call_id": self._call_id, "index": index, "timeout": max(0.0, min(left, _POLL_SECONDS))}
            value, payloads = await io(client._request_full("call.get", args))
            if value["done"]:
                break
            if deadline is not None and time.monotonic() >= deadline:
                raise builtins.TimeoutError(f"call {self._call_id} has no result yet")
        result: T = await decode_output(client, value["status"], payloads[0], value["flags"])
        return result

    @blocking_gen
    async def get_gen(self) -> AsyncIterator[Any]:
        """Yield what the generator yielded and yields, from its first item on; as often as one likes.

        Raises:
            BaseException: what the function raised, after all that it yielded before.
            OutputExpiredError: its items are no longer kept.
            NotFoundError: there is no such call.
            InvalidError: the function does not yield: use ``get``.

        Example:
            >>> import warnings
            >>> @app.function()
            ... def count(upto: int):
            ...     yield from range(upto)
            >>> with app.run(), warnings.catch_warnings():
            ...     warnings.simplefilter("ignore")  # spawning a generator is the older way of remote_gen()
            ...     list(count.spawn(3).get_gen())
            [0, 1, 2]
        """
        from ._generators import stream_spawned

        if self._is_generator is None:
            await self._info()
        if not self._is_generator:
            raise exception.InvalidError(
                "Cannot iterate over the call of a function that is no generator. Use get()"
            )
        body = stream_spawned(await self._connected(), self._call_id)
        try:
            async for item in body:
                yield item
        finally:
            await body.aclose()  # type: ignore[attr-defined]

    @blocking
    async def num_inputs(self) -> int:
        """Return how many inputs the call has; of a call still being made, how many it has so far.

        Example:
            >>> with app.run():
            ...     square.experimental_spawn_map([1, 2, 3]).num_inputs()
            3
        """
        return int((await self._info())["num_inputs"])

    @blocking_gen
    async def iter(self, start: int = 0, end: int | None = None) -> AsyncIterator[T]:
        """Yield the results in the order of the inputs, waiting for each.

        Args:
            start: the index of the first.
            end: the index after the last; None is the call's end.

        Raises:
            BaseException: what the function raised for an input, when its turn comes.

        Example:
            >>> with app.run():
            ...     list(square.experimental_spawn_map([1, 2, 3]).iter(start=1))
            [4, 9]
        """
        if start < 0 or (end is not None and end < start):
            raise exception.InvalidError("iter() takes 0 <= start <= end")
        client = await self._plain()
        index = start
        while end is None or index < end:
            limit = 1000 if end is None else min(1000, end - index)
            args = {"call_id": self._call_id, "start": index, "limit": limit, "timeout": _POLL_SECONDS}
            value, payloads = await io(client._request_full("call.outputs", args))
            rows = zip(value["statuses"], payloads, value["flags"])  # noqa: B905 (not on 3.9)
            for status, payload, flags in rows:
                index += 1
                yield await decode_output(client, status, payload, flags)
            if value["num_inputs"] is not None and index >= value["num_inputs"]:
                return

    @blocking
    async def get_call_graph(self) -> list[InputInfo]:
        """Return the call's inputs, each with what was called while it ran, at any depth.

        Raises:
            NotFoundError: there is no such call.

        Example:
            >>> with app.run():
            ...     call = square.spawn(3)
            ...     call.get()
            ...     [(x.function_name, x.status.name, x.children) for x in call.get_call_graph()]
            9
            [('square', 'SUCCESS', [])]
        """
        from .call_graph import build

        client = await self._connected()
        value = await io(client._request("call.graph", {"call_id": self._call_id}))
        return build(value["calls"], value["inputs"])

    @blocking
    async def cancel(self, terminate_containers: bool = False) -> None:
        """Cancel what has not finished.

        Args:
            terminate_containers: also end the containers that run it; other inputs on them run again
                elsewhere.

        Example:
            >>> @app.function()
            ... def wait(seconds: float) -> None:
            ...     import time
            ...
            ...     time.sleep(seconds)
            >>> with app.run():
            ...     call = wait.spawn(60)
            ...     call.cancel()
        """
        client = await self._connected()
        await io(
            client._request(
                "call.cancel", {"call_id": self._call_id, "terminate_containers": terminate_containers}
            )
        )

    @staticmethod
    @blocking_function
    async def gather(*function_calls: FunctionCall[Any]) -> list[Any]:
        """Wait for several calls and return their results in the order of the arguments.

        Raises:
            BaseException: what the first call to fail raises, without waiting for the others.

        Example:
            >>> with app.run():
            ...     FunctionCall.gather(square.spawn(2), square.spawn(3))
            [4, 9]
        """
        return await _gather(function_calls)

    async def _info(self) -> dict[str, Any]:
        client = await self._connected()
        info: dict[str, Any] = await io(client._request("call.info", {"call_id": self._call_id}))
        self._is_generator = info["is_generator"]
        return info

    async def _plain(self) -> Client:
        """Return the client, having made sure that the function does not yield."""
        if self._is_generator is None:
            await self._info()
        if self._is_generator:
            raise exception.InvalidError(_USE_GET_GEN)
        return await self._connected()

    async def _connected(self) -> Client:
        if self._client is None or self._client.is_closed():
            from .client import Client

            self._client = await Client.from_env.aio()
        return self._client


_USE_GET_GEN = "A generator's call has no single result. Use get_gen() to iterate over what it yields"


def _by_id(call_id: str, is_generator: bool | None) -> FunctionCall[Any]:
    return FunctionCall._new(call_id, None, is_generator)


@blocking_function
async def gather(*function_calls: FunctionCall[Any]) -> list[Any]:
    """As ``FunctionCall.gather``.

    Example:
        >>> with app.run():
        ...     gather(square.spawn(2), square.spawn(3))
        [4, 9]
    """
    return await _gather(function_calls)


async def _gather(calls: tuple[FunctionCall[Any], ...]) -> list[Any]:
    clients = [await call._plain() for call in calls]
    answers = await io(_answers(clients, [call._call_id for call in calls]))
    # A failure alone, or all of them: decoding runs user code, and so not on the library's loop.
    return [
        await decode_output(clients[position], value["status"], payloads[0], value["flags"])
        for position, (value, payloads) in answers.items()
    ]


async def _answers(clients: list[Client], call_ids: list[str]) -> dict[int, tuple[Any, list[bytes]]]:
    """Return every call's answer by position, or, as soon as one has failed, that one alone."""
    import asyncio

    async def ask(client: Client, call_id: str) -> tuple[Any, list[bytes]]:
        while True:
            args = {"call_id": call_id, "index": 0, "timeout": _POLL_SECONDS}
            value, payloads = await client._request_full("call.get", args)
            if value["done"]:
                return value, payloads

    tasks = {
        asyncio.ensure_future(ask(client, call_ids[position])): position
        for position, client in enumerate(clients)
    }
    try:
        waiting = set(tasks)
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=tasks.__getitem__):
                if task.result()[0]["status"] != frames.SUCCESS:
                    return {tasks[task]: task.result()}
        return {position: task.result() for task, position in tasks.items()}
    finally:
        for task in tasks:
            task.cancel()
