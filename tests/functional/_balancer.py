"""What stands before dispatchers that share a store: it sends each connection to the one at work."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence

from tests._loops import serve_until
from tests._ports import free_ports


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(OSError, asyncio.CancelledError):
        await writer.wait_closed()


async def healthy(port: int) -> bool:
    """Tell whether a dispatcher says that it is at work, as a balancer asks."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
        return b" 200 " in await reader.readline()
    except OSError:
        return False
    finally:
        await _close(writer)


@contextlib.contextmanager
def balancer(backends: Sequence[int]) -> Iterator[int]:
    """Yield the port on 127.0.0.1 behind which the backends are."""
    (port,) = free_ports(1)
    loop = asyncio.new_event_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for backend in backends:
                if await healthy(backend):
                    with contextlib.suppress(OSError):
                        back = await asyncio.open_connection("127.0.0.1", backend)
                        try:
                            await asyncio.gather(_pass(reader, back[1]), _pass(back[0], writer))
                        finally:
                            await _close(back[1])
                        return
        finally:
            await _close(writer)

    async def run() -> None:
        await serve_until(stop, serve, port, lambda _: started.set())

    started, stop = threading.Event(), asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True)
    thread.start()
    assert started.wait(60)
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        loop.close()
