"""``spawn_map``: hand over many inputs for good, a few frames in flight at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from . import _execution_context as context
from ._bridge import io, submit
from ._invocation import encode_input
from .wire.connection import Call
from .wire.ids import new_id
from .wire.input_frames import Input

if TYPE_CHECKING:
    from .client import Client

_CHUNK = 512
_CHUNK_BYTES = 2 << 20
_IN_FLIGHT = 8
"""Chunks sent and not yet on the dispatcher's disk: enough to keep its commits busy, little to hold."""


async def spawn_inputs(
    client: Client,
    function_id: str,
    inputs: Iterable[tuple[Any, ...]] | AsyncIterable[tuple[Any, ...]],
    kwargs: dict[str, Any],
    home: str = "",
    method: str = "",
) -> str:
    """Hand over inputs as they are drawn; return the call's id when the store has all of them."""
    parent = context.current_input_id() or ""
    call = Call(new_id("fc"), function_id, _ignore, _ignore, parent=parent, method=method)
    waiting: deque[Future[None]] = deque()
    chunk: list[Input] = []
    count = size = 0
    rows = inputs
    if isinstance(rows, AsyncIterable) and not _on_a_loop():
        rows = _drawn_here(rows)
    try:
        if isinstance(rows, AsyncIterable):
            iterator: Any = rows.__aiter__()
        else:
            iterator = iter(rows)
        while True:
            try:
                args = await iterator.__anext__() if isinstance(rows, AsyncIterable) else next(iterator)
            except (StopIteration, StopAsyncIteration):
                break
            payload, flags = await encode_input(client, args, kwargs, home)
            chunk.append((count, payload, flags))
            count += 1
            size += len(payload)
            if len(chunk) >= _CHUNK or size >= _CHUNK_BYTES:
                waiting.append(submit(client._submit_durable(call, chunk)))
                chunk, size = [], 0
                if len(waiting) >= _IN_FLIGHT:
                    await io(waiting.popleft())
        while waiting:
            await io(waiting.popleft())
        # Last, so that the call is known to be complete only once it is.
        await io(client._submit_durable(call, chunk, count))
    finally:
        for future in waiting:
            future.cancel()
    return call.call_id


def _on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _drawn_here(inputs: AsyncIterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Iterate over an async iterable in this thread, on a loop of its own."""
    loop = asyncio.new_event_loop()
    iterator: AsyncIterator[tuple[Any, ...]] = inputs.__aiter__()
    try:
        while True:
            try:
                yield loop.run_until_complete(iterator.__anext__())
            except StopAsyncIteration:
                return
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _ignore(_: Any) -> None:
    pass
