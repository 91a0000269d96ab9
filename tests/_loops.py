"""Servers in event loops, a test's own or one beside it, that leave nothing open."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Connections:
    """What a server accepted.

    Args:
        serve: serves one connection.
    """

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        # A loop holds its tasks weakly, and what waits for bytes of a stream is held by nothing else.
        self._tasks: set[asyncio.Future[None]] = set()

    def accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one, as ``asyncio.start_server`` calls it."""
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        # A task that is cancelled before its first step closes nothing.
        task.add_done_callback(lambda _: (self._tasks.discard(task), writer.transport.abort()))

    async def end(self) -> None:
        """Close every one, those of a moment ago included."""
        for _ in range(3):
            # What was accepted becomes a connection within these turns.
            for _ in range(5):
                await asyncio.sleep(0)
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def serving(serve: Serve, port: int = 0, **options: Any) -> AsyncIterator[int]:
    """Serve connections to a port of 127.0.0.1 meanwhile, and close every one at the end.

    Args:
        serve: serves one connection.
        port: the port, 0 for a free one.
        options: of ``asyncio.start_server``.

    Yields:
        the port.
    """
    connections = Connections(serve)
    server = await asyncio.start_server(connections.accepted, "127.0.0.1", port, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await connections.end()


async def serve_until(stop: asyncio.Event, serve: Serve, port: int, begun: Callable[[int], None]) -> None:
    """Serve connections in a loop of one's own; then close every one, and end every other task as well.

    Args:
        stop: set when it is to end.
        serve: serves one connection.
        port: the port of 127.0.0.1, 0 for a free one.
        begun: told the port.
    """
    async with serving(serve, port) as found:
        begun(found)
        await stop.wait()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
