"""A network that can be cut: what is sent is taken, and does not arrive until the cut is mended."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from tests._loops import serve_until


class CutProxy:
    """Passes connections on to a port of 127.0.0.1.

    Attributes:
        port: where it listens, on 127.0.0.1.
        there: set while what clients send arrives.
        back: set while what the server sends arrives.
    """

    def __init__(self, to: int) -> None:
        self.port = 0
        self._to = to
        self._loop = asyncio.new_event_loop()
        self.there, self.back = asyncio.Event(), asyncio.Event()
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(
            target=lambda: self._loop.run_until_complete(self._run()), daemon=True
        )

    def cut(self, *ways: asyncio.Event) -> None:
        """Let nothing through, one way or both."""
        self._on_loop(lambda: [way.clear() for way in ways or (self.there, self.back)])

    def mend(self) -> None:
        """Let everything through, what was held first."""
        self._on_loop(lambda: [way.set() for way in (self.there, self.back)])

    def _on_loop(self, call: object) -> None:
        done = threading.Event()

        def run() -> None:
            call()  # type: ignore[operator]
            done.set()

        self._loop.call_soon_threadsafe(run)
        assert done.wait(60)

    async def _run(self) -> None:
        self.there.set()
        self.back.set()
        await serve_until(self._stop, self._serve, 0, self._begun)

    def _begun(self, port: int) -> None:
        self.port = port
        self._started.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind = None
        try:
            await self.there.wait()
            behind = await asyncio.open_connection("127.0.0.1", self._to)
            await asyncio.gather(_pass(reader, behind[1], self.there), _pass(behind[0], writer, self.back))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in (writer, *((behind[1],) if behind else ())):
                end.transport.abort()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: asyncio.Event) -> None:
    while data := await reader.read(1 << 16):
        await way.wait()
        writer.write(data)
        await writer.drain()
    await way.wait()
    writer.close()


@contextlib.contextmanager
def cut_proxy(to: int) -> Iterator[CutProxy]:
    """Yield a proxy before a port."""
    proxy = CutProxy(to)
    proxy._thread.start()
    assert proxy._started.wait(60)
    try:
        yield proxy
    finally:
        proxy._loop.call_soon_threadsafe(proxy._stop.set)
        proxy._thread.join(60)
        proxy._loop.close()
