"""A tunnel's two ends with nothing else around them: a dispatcher that comes back, and halves that break."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from conftest import until

from modal_nomad.dispatcher.auth import Identity
from modal_nomad.dispatcher.http_tunnels import add_routes
from modal_nomad.dispatcher.tunnels import Tunnels, TunnelSettings
from modal_nomad.dispatcher.tunnels.tls import gateway_context
from modal_nomad.exception import InvalidError
from modal_nomad.wire._tunnel_client import Refused, TunnelClient
from modal_nomad.wire.tunnels import Framed, Plain
from tests._ports import free_ports

LIMIT = 60.0
SETTINGS = TunnelSettings("localhost", "127.0.0.1")


class Side:
    """As much of a dispatcher as tunnels need, at a socket in a folder."""

    def __init__(self, folder: Path, settings: TunnelSettings = SETTINGS) -> None:
        self.url = f"unix://{folder}/d.sock"
        self.settings = settings
        self.folder = folder
        self.tunnels: Any = None
        self.spec = SimpleNamespace(restrict_modal_access=False)
        self.containers = {"ta-1": SimpleNamespace(function=SimpleNamespace(spec=self.spec))}
        self._runner: Any = None

    async def start(self) -> None:
        self.tunnels = Tunnels(self.settings, b"key", lambda: gateway_context(self.folder, "", ""))
        application = web.Application()
        dispatcher: Any = SimpleNamespace(
            tunnels=self.tunnels, containers=SimpleNamespace(infos=self.containers)
        )

        async def identify(request: web.Request) -> Identity:
            return Identity("x", container=request.headers["Authorization"][7:])

        add_routes(application, dispatcher, identify)
        self._runner = web.AppRunner(application, handle_signals=False, shutdown_timeout=1)
        await self._runner.setup()
        await web.UnixSite(self._runner, f"{self.folder}/d.sock").start()

    async def stop(self) -> None:
        await self._runner.cleanup()


@pytest.fixture
async def side(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Side]:
    # Short: the paths of sockets are.
    made = Side(tmp_path_factory.mktemp("t"))
    await made.start()
    yield made
    await made.stop()


@contextlib.asynccontextmanager
async def client(
    side: Side, port: int, container: str = "ta-1", **options: Any
) -> AsyncIterator[TunnelClient]:
    async def address() -> tuple[str, str]:
        return side.url, container

    made = TunnelClient(address, port, **options)
    try:
        await made.open()
        yield made
    finally:
        await made.close()


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.write(b"<end>")
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def said(port: int, context: ssl.SSLContext | None = None) -> bytes:
    """What a tunnel says to who says something and ends."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="localhost" if context else None
    )
    try:
        writer.write(b"hello")
        if context is not None:
            return await reader.readexactly(5)
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_a_dispatcher_that_comes_back(side: Side) -> None:
    async with echo() as port, client(side, port, unencrypted=True) as tunnel:
        before = dict(tunnel.told)
        trusting = ssl.create_default_context(cafile=str(side.folder / "tunnels.pem"))
        assert await said(before["unencrypted_port"]) == b"hello<end>"
        reader, writer = await asyncio.open_connection("127.0.0.1", before["unencrypted_port"])
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        await side.stop()
        # Who was connected is told that this was no end.
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        await side.start()
        await asyncio.to_thread(until, lambda: tunnel.told["id"] != before["id"])
        ports = ("port", "unencrypted_port")
        assert [tunnel.told[x] for x in ports] == [before[x] for x in ports]
        assert await said(before["unencrypted_port"]) == b"hello<end>"
        assert await said(before["port"], trusting) == b"hello"
    await empty(side)


async def empty(side: Side) -> None:
    """Wait until the dispatcher has no tunnel any more."""
    await asyncio.to_thread(until, lambda: not len(side.tunnels))


async def test_ports_are_from_the_range(tmp_path_factory: pytest.TempPathFactory) -> None:
    low = free_ports(1)[0]
    side = Side(tmp_path_factory.mktemp("t"), TunnelSettings("h", "127.0.0.1", f"{low}-{low}"))
    await side.start()
    try:
        async with client(side, 1) as tunnel:
            assert (tunnel.told["host"], tunnel.told["port"]) == ("h", low)
            with pytest.raises(Refused, match="no port is free"):
                async with client(side, 1):
                    pass
        await empty(side)
        # Nobody gets a port by asking for it, nor with the ticket of another container.
        none, _ = await side.tunnels.open("ta-1", print, unencrypted=False, h2=False, ticket="80.0.ab")
        assert none.port == low
        side.tunnels.close(none)
        ticket = side.tunnels._ticket("ta-2", 80, 0)
        assert side.tunnels._known("ta-2", ticket) == (80, 0)
        assert side.tunnels._known("ta-1", ticket) == (0, 0)
        for text in ("", ".", "..", "80", "80.0", "80.0.", "²·0.a", "80.x.y"):
            assert side.tunnels._known("ta-1", text) == (0, 0)
    finally:
        await side.stop()


async def test_who_may_have_one(side: Side) -> None:
    with pytest.raises(Refused, match="403"):
        async with client(side, 1, container=""):
            pass
    side.spec.restrict_modal_access = True
    with pytest.raises(Refused, match="may use nothing of modal"):
        async with client(side, 1):
            pass
    off = Tunnels(TunnelSettings(), b"key", lambda: gateway_context(side.folder, "", ""))
    with pytest.raises(InvalidError, match="name a host under"):
        await off.open("ta-1", print, unencrypted=False, h2=False)


async def test_another_container_cannot_take_a_connection(side: Side) -> None:
    side.containers["ta-2"] = side.containers["ta-1"]
    numbers: asyncio.Queue[int] = asyncio.Queue()
    tunnel, told = await side.tunnels.open("ta-1", numbers.put_nowait, unencrypted=True, h2=False)
    reader, writer = await asyncio.open_connection("127.0.0.1", told["unencrypted_port"])
    number = await asyncio.wait_for(numbers.get(), LIMIT)

    async def asked(container: str, what: object) -> bytes:
        there, back = await asyncio.open_unix_connection(side.url.removeprefix("unix://"))
        back.write(
            f"GET /v1/tunnels/{told['id']}/{what} HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {container}\r\n"
            "Upgrade: modal-nomad-tunnel\r\nConnection: Upgrade\r\n\r\n".encode()
        )
        line = await there.readline()
        back.close()
        return line.split()[1]

    assert await asked("ta-2", number) == b"404"
    assert await asked("ta-1", number + 1) == b"404"
    assert await asked("ta-1", "1x") == b"404"
    assert await asked("ta-1", number) == b"101"
    assert await asked("ta-1", number) == b"404"
    # What took it has gone: that was no end.
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    side.tunnels.close(tunnel)


class Pipe:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closed = self.aborted = self.ended = False
        self.reading = True

    def get_extra_info(self, name: str) -> None:
        """There is no socket."""

    def write(self, data: bytes) -> None:
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def halves() -> tuple[Framed, Pipe, Plain, Pipe]:
    framed, plain, one, other = Framed(), Plain(), Pipe(), Pipe()
    framed.connection_made(one)
    plain.connection_made(other)
    return framed, one, plain, other


def test_what_comes_early_is_kept_and_no_more_is_read() -> None:
    framed, one, plain, other = halves()
    plain.data_received(b"early")
    framed.data_received(b"\0\0\0\2h")
    assert not one.reading and not other.reading
    framed.join(plain)
    assert one.reading and other.reading
    framed.data_received(b"i\0\0\0\0")
    assert (bytes(one.written), bytes(other.written)) == (b"\0\0\0\5early", b"hi")
    assert other.ended and not other.closed
    # Each is read no faster than the other takes it.
    framed.pause_writing()
    assert not other.reading
    framed.resume_writing()
    assert other.reading
    # The other direction goes on, and ends both.
    plain.data_received(b"!" * ((1 << 20) + 1))
    plain.eof_received()
    assert one.written[9:13] == b"\0\x10\0\0" and one.written[-4:] == b"\0\0\0\0"
    assert len(one.written) == 9 + 4 + (1 << 20) + 4 + 1 + 4
    assert one.closed and other.closed and not other.aborted


@pytest.mark.parametrize("data", [b"", b"\0\0\0\5hal", b"\xff\xff\xff\xff"])
def test_what_breaks_is_no_end(data: bytes) -> None:
    framed, one, plain, other = halves()
    framed.join(plain)
    framed.data_received(data)
    framed.connection_lost(None)
    assert other.aborted and not other.ended
    assert one.aborted == (data == b"\xff\xff\xff\xff")
    framed, one, plain, other = halves()
    framed.join(plain)
    plain.connection_lost(ConnectionResetError())
    assert one.aborted and not one.written
