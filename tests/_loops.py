"""Servers in event loops of their own, beside a test, that leave nothing open."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def serve_until(stop: asyncio.Event, serve: Serve, port: int, begun: Callable[[int], None]) -> None:
    """Serve connections to a port of 127.0.0.1; then close every one, those of a moment ago included.

    Args:
        stop: set when it is to end.
        serve: serves one connection.
        port: the port, 0 for a free one.
        begun: told the port.
    """
    writers: set[asyncio.StreamWriter] = set()
    # A loop holds its tasks weakly, and what waits for bytes of a stream is held by nothing else.
    tasks: set[asyncio.Future[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task that is cancelled before its first step closes nothing.
        writers.add(writer)
        task = asyncio.ensure_future(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(
            lambda _: (tasks.discard(task), writers.discard(writer), writer.transport.abort())
        )

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    begun(server.sockets[0].getsockname()[1])
    await stop.wait()
    server.close()
    for _ in range(3):
        # What was accepted becomes a connection within these turns.
        for _ in range(5):
            await asyncio.sleep(0)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
